"""realspike::lif_fwd and realspike::lif_bwd: allocation, fake kernels, dispatch, autograd.

The kernels see N neurons side by side in memory order (csrc/core/lif.h); this file turns shapes and
memory formats into that view, the same for every device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_cpu
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import (
    as_dense_over_time,
    as_step,
    dense_over_time,
    empty_over_time,
    empty_step,
    is_channels_last,
)
from realspike_ops.ops.lif_parameters import in_memory_order, period_of, sum_to_parameter

# csrc/core/lif.h
SAVE_NOTHING, SAVE_BITS, SAVE_POTENTIALS = 0, 1, 2
BITS_INTERVAL, POTENTIAL_INTERVAL = 4, 8

_NEURON = (
    "float decay_value, float v_threshold_value, float v_reset, str reset, bool detach_reset, "
    "bool ternary, str surrogate, float surrogate_scale"
)
# A decay or a threshold that is a tensor takes the place of its value. `save` says what is kept for
# backward (SAVE_...), `keep_state` whether v_last is wanted; what is not wanted is empty.
LIBRARY.define(
    "lif_fwd(Tensor x, Tensor? amplitude, Tensor? decay, Tensor? v_threshold, Tensor? v_init,"
    f" {_NEURON}, int save, bool keep_state) -> (Tensor y, Tensor v_last, Tensor saved)"
)
LIBRARY.define(
    "lif_bwd(Tensor grad_y, Tensor? grad_v_last, Tensor? x, Tensor? amplitude, Tensor? decay,"
    " Tensor? v_threshold, Tensor? v_init, Tensor saved, bool channels_last, bool[4] wanted,"
    f" {_NEURON}, int save)"
    " -> (Tensor grad_x, Tensor grad_amplitude, Tensor grad_decay, Tensor grad_v_threshold,"
    " Tensor grad_v_init)"
)


class Neuron(NamedTuple):
    """The form of the neuron, as the kernels take it."""

    decay: float
    v_threshold: float
    v_reset: float
    reset: str  # hard, soft or none
    detach_reset: bool
    ternary: bool
    surrogate: str
    surrogate_scale: float


def what_to_save(neuron: Neuron, *learnable: Tensor | None) -> int:
    """Return what backward needs, where decay and threshold are `learnable`."""
    learns = any(parameter is not None and parameter.requires_grad for parameter in learnable)
    # With a detached reset and a window for a surrogate, whether it fired and whether it was in the
    # window is all there is to know.
    if neuron.detach_reset and neuron.surrogate == "rectangular" and not learns:
        return SAVE_BITS
    return SAVE_POTENTIALS


def _parameters(amplitude, decay, v_threshold, neuron, shape, channels_last):
    values = ((amplitude, 1.0), (decay, neuron.decay), (v_threshold, neuron.v_threshold))
    return tuple(in_memory_order(*value, shape, channels_last) for value in values)


def _allocate_fwd(x, channels_last, ternary, save, keep_state) -> tuple[Tensor, Tensor, Tensor]:
    T, N = x.shape[0], x.shape[1:].numel()
    y = empty_over_time(x.shape, channels_last, x.dtype, x.device)
    v_last = (
        empty_step(x.shape[1:], channels_last, x.device)
        if keep_state
        else x.new_empty((0,), dtype=torch.float32)
    )
    if save == SAVE_BITS:
        word = torch.int16 if ternary else torch.uint8
        return y, v_last, x.new_empty((-(-T // BITS_INTERVAL), N), dtype=word)
    chunks = -(-T // POTENTIAL_INTERVAL) if save == SAVE_POTENTIALS else 1
    return y, v_last, x.new_empty((chunks - 1, N), dtype=torch.float32)


def _fwd_fake(x, amplitude, decay, v_threshold, v_init, *form):
    *neuron, save, keep_state = form
    x, channels_last, _ = dense_over_time(x)
    return _allocate_fwd(x, channels_last, Neuron(*neuron).ternary, save, keep_state)


def forward_with(launch):
    """Implement lif_fwd by `launch`, a device's function of dense tensors."""

    def fwd(x, amplitude, decay, v_threshold, v_init, *form):
        *neuron, save, keep_state = form
        neuron = Neuron(*neuron)
        x, channels_last, x_stride_t = dense_over_time(x)
        y, v_last, saved = _allocate_fwd(x, channels_last, neuron.ternary, save, keep_state)
        if y.numel() > 0:
            shape = x.shape[2:]
            parameters = _parameters(amplitude, decay, v_threshold, neuron, shape, channels_last)
            v_init = None if v_init is None else as_step(v_init, channels_last)
            period = period_of(parameters, shape.numel())
            launch(x, parameters, period, v_init, y, v_last, saved, neuron, save, x_stride_t)
        return y, v_last, saved

    return fwd


def _bwd_fake(grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, *rest):
    _, channels_last, wanted, *_ = rest
    return (
        empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device),
        *(
            grad_y.new_empty(parameter.shape if want else (0,), dtype=torch.float32)
            for parameter, want in zip((amplitude, decay, v_threshold), wanted, strict=False)
        ),
        _empty_grad_v_init(grad_y, channels_last, wanted[3]),
    )


def _empty_grad_v_init(grad_y, channels_last, wanted):
    if not wanted:
        return grad_y.new_empty((0,), dtype=torch.float32)
    return empty_step(grad_y.shape[1:], channels_last, grad_y.device)


def backward_with(launch, partial_shape):
    """Implement lif_bwd by `launch`, a device's function of dense tensors.

    `partial_shape` tells the shape of its partial sums of a parameter's gradient.
    """

    def bwd(
        grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved, channels_last, wanted,
        *form,
    ):  # fmt: skip
        *neuron, save = form
        neuron = Neuron(*neuron)
        x_stride_t = 0
        if x is not None:
            x, _, x_stride_t = dense_over_time(x)
        # The saved state lies in the memory format of x; an incoming gradient may lie in any, or be
        # expanded (that of a sum is).
        grad_y = as_dense_over_time(grad_y, channels_last)
        T, N, shape = grad_y.shape[0], grad_y.shape[1:].numel(), grad_y.shape[2:]
        grad_x = empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device)
        grad_v_init = _empty_grad_v_init(grad_y, channels_last, wanted[3])
        tensors = (amplitude, decay, v_threshold)
        if grad_y.numel() == 0:
            grads = (
                torch.zeros_like(tensor) if want else grad_y.new_empty((0,), dtype=torch.float32)
                for tensor, want in zip(tensors, wanted, strict=False)
            )
            return grad_x, *grads, grad_v_init
        parameters = _parameters(*tensors, neuron, shape, channels_last)
        period = period_of(parameters, shape.numel())
        partials = tuple(
            grad_y.new_empty(
                partial_shape(T, N, period, save, grad_y.element_size()) if want else (0,),
                dtype=torch.float32,
            )
            for want in wanted[:3]
        )
        launch(
            grad_y,
            None if grad_v_last is None else as_step(grad_v_last, channels_last),
            x,
            parameters,
            period,
            None if v_init is None else as_step(v_init, channels_last),
            saved,
            grad_x,
            partials,
            grad_v_init,
            neuron,
            save,
            x_stride_t,
        )
        grads = (
            sum_to_parameter(partial, period, tensor, shape, channels_last) if want else partial
            for partial, tensor, want in zip(partials, tensors, wanted, strict=False)
        )
        return grad_x, *grads, grad_v_init

    return bwd


def _setup_context(ctx, inputs, output):
    x, amplitude, decay, v_threshold, v_init, *neuron, save, keep_state = inputs
    y, _, saved = output
    if save == SAVE_NOTHING:
        raise RuntimeError("realspike::lif_fwd: save must not be 0 where a gradient is required")
    ctx.neuron, ctx.save, ctx.keep_state = tuple(neuron), save, keep_state
    ctx.channels_last = is_channels_last(y)
    if save == SAVE_BITS:
        x = v_init = None
    ctx.save_for_backward(x, amplitude, decay, v_threshold, v_init, saved)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype = y.shape, y.dtype


def _backward(ctx, grad_y, grad_v_last, _):
    x, amplitude, decay, v_threshold, v_init, saved = ctx.saved_tensors
    if not ctx.keep_state:
        grad_v_last = None
    if grad_y is None:
        if grad_v_last is None:
            return (None,) * 15
        grad_y = grad_v_last.new_zeros(ctx.shape, dtype=ctx.dtype)
    tensors = (grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved)
    wanted = list(ctx.needs_input_grad[1:5])
    # With create_graph=True the dispatcher records that this must not be differentiated again.
    past_dispatcher = not torch.is_grad_enabled() and is_plain_eager(*tensors)
    bwd = _BWD[grad_y.device.type] if past_dispatcher else torch.ops.realspike.lif_bwd
    grad_x, *grads = bwd(*tensors, ctx.channels_last, wanted, *ctx.neuron, ctx.save)
    return (
        grad_x,
        *(grad if want else None for grad, want in zip(grads, wanted, strict=True)),
        *(None,) * 10,
    )


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("lif has no second derivative: that of a surrogate gradient is not defined")


class _EagerLif(torch.autograd.Function):
    """What register_autograd below makes of the same two functions, without the dispatcher."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _FWD[inputs[0].device.type](*inputs)
        _setup_context(ctx, inputs, output)
        ctx.mark_non_differentiable(output[2])
        return output

    backward = staticmethod(_backward)


def lif(x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state):
    """Call realspike::lif_fwd, past the dispatcher where only autograd could intercept the call."""
    inputs = (x, amplitude, decay, v_threshold, v_init, *neuron, save, keep_state)
    if not is_plain_eager(*inputs[:5]) or x.device.type not in _FWD:
        return torch.ops.realspike.lif_fwd(*inputs)
    if save != SAVE_NOTHING:
        return _EagerLif.apply(*inputs)
    return _FWD[x.device.type](*inputs)


def _on_cuda(name):
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    def call(*args):
        from realspike_ops.ops import lif_cuda

        return getattr(lif_cuda, name)(*args)

    return call


_FWD = {
    "cpu": forward_with(lif_cpu.launch_fwd),
    "cuda": forward_with(_on_cuda("launch_fwd")),
}
_BWD = {
    "cpu": backward_with(lif_cpu.launch_bwd, lif_cpu.partial_shape),
    "cuda": backward_with(_on_cuda("launch_bwd"), _on_cuda("partial_shape")),
}
for device in _FWD:
    LIBRARY.impl("lif_fwd", _FWD[device], device.upper())
    LIBRARY.impl("lif_bwd", _BWD[device], device.upper())
torch.library.register_fake("realspike::lif_fwd", _fwd_fake, lib=LIBRARY)
torch.library.register_fake("realspike::lif_bwd", _bwd_fake, lib=LIBRARY)
torch.library.register_autograd(
    "realspike::lif_fwd", _backward, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd("realspike::lif_bwd", _refuse_second_derivative, lib=LIBRARY)
