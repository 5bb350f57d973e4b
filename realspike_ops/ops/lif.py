"""realspike::lif_fwd and realspike::lif_bwd: allocation, fake kernels, dispatch, autograd.

The kernels see N neurons side by side in memory order (csrc/core/lif.h); this file turns shapes and
memory formats into that view, the same for every device.
"""

import functools
import math

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_cpu
from realspike_ops.ops.compress_spikes import Rerun, SavedBits, note_spikes, spikes_are_dropped
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import (
    as_dense_over_time,
    as_step,
    dense_over_time,
    empty_like_over_time,
    empty_maps,
    empty_over_time,
    is_channels_last,
)
from realspike_ops.ops.lif_contract import (
    BITS_INTERVAL,
    NEURON_SCHEMA,
    POTENTIAL_INTERVAL,
    SAVE_BITS,
    SAVE_NOTHING,
    SAVE_POTENTIALS,
    Neuron,
    neuron_parameters,
    or_empty,
)
from realspike_ops.ops.lif_parameters import period_of, sum_to_parameter

# A decay or a threshold that is a tensor takes the place of its value. `save` says what is kept for
# backward (SAVE_...), `keep_state` whether v_last is wanted; what is not wanted is empty.
LIBRARY.define(
    "lif_fwd(Tensor x, Tensor? amplitude, Tensor? decay, Tensor? v_threshold, Tensor? v_init,"
    f" {NEURON_SCHEMA}, int save, bool keep_state) -> (Tensor y, Tensor v_last, Tensor saved)"
)
LIBRARY.define(
    "lif_bwd(Tensor grad_y, Tensor? grad_v_last, Tensor? x, Tensor? amplitude, Tensor? decay,"
    " Tensor? v_threshold, Tensor? v_init, Tensor saved, bool channels_last, bool[4] wanted,"
    f" {NEURON_SCHEMA}, int save)"
    " -> (Tensor grad_x, Tensor grad_amplitude, Tensor grad_decay, Tensor grad_v_threshold,"
    " Tensor grad_v_init)"
)


def _allocate_saved(x: Tensor, ternary: bool, save: int) -> Tensor | None:
    T, N = x.shape[0], math.prod(x.shape[1:])
    if save == SAVE_BITS:
        word = torch.int16 if ternary else torch.uint8
        return torch.empty((-(-T // BITS_INTERVAL), N), dtype=word, device=x.device)
    if save == SAVE_POTENTIALS:
        shape = (-(-T // POTENTIAL_INTERVAL) - 1, N)
        return torch.empty(shape, dtype=torch.float32, device=x.device)
    return None


def forward_with(launch):
    """Make the forward pass of a device out of `launch`, its function of dense tensors.

    What is not wanted of (y, v_last, saved) is None.
    """

    def fwd(x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state):
        x, channels_last, x_stride_t = dense_over_time(x)
        y = empty_like_over_time(x, channels_last)
        v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
        saved = _allocate_saved(x, neuron.ternary, save)
        if x.numel() > 0:
            shape = x.shape[2:]
            parameters = neuron_parameters(
                amplitude, decay, v_threshold, neuron, shape, channels_last
            )
            v_init = None if v_init is None else as_step(v_init, channels_last)
            period = period_of(parameters, shape)
            launch(x, parameters, period, v_init, y, v_last, saved, neuron, save, x_stride_t)
        return y, v_last, saved

    return fwd


def _fwd_fake(x, amplitude, decay, v_threshold, v_init, *form):
    *neuron, save, keep_state = form
    x, channels_last, _ = dense_over_time(x)
    y = empty_over_time(x.shape, channels_last, x.dtype, x.device)
    v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
    return y, *or_empty(x, v_last, _allocate_saved(x, Neuron(*neuron).ternary, save))


def backward_with(launch, partial_shape):
    """Make the backward pass of a device out of `launch`, its function of dense tensors.

    `partial_shape` tells the shape of its partial sums of a parameter's gradient. What is not
    wanted of (grad_x, grad_amplitude, grad_decay, grad_v_threshold, grad_v_init) is None.
    """

    def bwd(
        grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved, channels_last, wanted,
        neuron, save,
    ):  # fmt: skip
        x_stride_t = 0
        if x is not None:
            x, _, x_stride_t = dense_over_time(x)
        # The saved state lies in the memory format of x; an incoming gradient may lie in any, or be
        # expanded (that of a sum is).
        grad_y = as_dense_over_time(grad_y, channels_last)
        T, N, shape = grad_y.shape[0], grad_y.shape[1:].numel(), grad_y.shape[2:]
        grad_x = empty_like_over_time(grad_y, channels_last)
        grad_v_init = (
            empty_maps(grad_y.shape[1:], channels_last, grad_y.device) if wanted[3] else None
        )
        tensors = (amplitude, decay, v_threshold)
        if grad_y.numel() == 0:
            grads = (
                torch.zeros_like(tensor) if want else None
                for tensor, want in zip(tensors, wanted, strict=False)
            )
            return grad_x, *grads, grad_v_init
        parameters = neuron_parameters(*tensors, neuron, shape, channels_last)
        period = period_of(parameters, shape)
        partials = [None, None, None]
        if any(wanted[:3]):
            size = partial_shape(T, N, period, save, grad_y.element_size())
            partials = [
                torch.empty(size, dtype=torch.float32, device=grad_y.device) if want else None
                for want in wanted[:3]
            ]
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
            sum_to_parameter(partial, period, tensor, shape, channels_last) if want else None
            for partial, tensor, want in zip(partials, tensors, wanted, strict=False)
        )
        return grad_x, *grads, grad_v_init

    return bwd


def _bwd_fake(grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, *rest):
    _, channels_last, wanted, *_ = rest
    grads = (
        torch.empty(parameter.shape, dtype=torch.float32, device=grad_y.device) if want else None
        for parameter, want in zip((amplitude, decay, v_threshold), wanted, strict=False)
    )
    grad_v_init = empty_maps(grad_y.shape[1:], channels_last, grad_y.device) if wanted[3] else None
    grad_x = empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device)
    return grad_x, *or_empty(grad_y, *grads, grad_v_init)


def _registered_fwd(fwd):
    def call(x, amplitude, decay, v_threshold, v_init, *form):
        *neuron, save, keep_state = form
        y, v_last, saved = fwd(
            x, amplitude, decay, v_threshold, v_init, Neuron(*neuron), save, keep_state
        )
        return y, *or_empty(y, v_last, saved)

    return call


def _registered_bwd(bwd):
    def call(*args):
        *tensors_and_layout, save = args
        fixed, neuron = tensors_and_layout[:10], Neuron(*tensors_and_layout[10:])
        grad_x, *grads = bwd(*fixed, neuron, save)
        return grad_x, *or_empty(grad_x, *grads)

    return call


def _keep_for_backward(ctx, x, parameters, v_init, y, saved, neuron, save, keep_state):
    if save == SAVE_NOTHING:
        raise RuntimeError(
            "realspike::lif_fwd: save must not be 0 where a gradient is required; trace with an "
            "input that requires one (torch.jit.trace, torch.export), and under torch.func.vmap, "
            "which hides that, put the vmapped dimension into the batch"
        )
    if spikes_are_dropped():
        note_spikes(y, _recipe_of(y, (x, *parameters, v_init), neuron, saved, save))
    ctx.neuron, ctx.save, ctx.keep_state = neuron, save, keep_state
    ctx.channels_last = is_channels_last(y)
    if save == SAVE_BITS:
        x = v_init = None
    ctx.save_for_backward(x, *parameters, v_init, saved)
    ctx.set_materialize_grads(False)
    ctx.shape, ctx.dtype = y.shape, y.dtype


def _recipe_of(y, inputs, neuron, saved, save):
    """Return what makes y again, of what is kept for backward anyway."""
    if save == SAVE_BITS:
        width = 4 if neuron.ternary else 2
        return SavedBits(y, inputs[1], saved, BITS_INTERVAL, width, neuron.ternary)
    return Rerun(inputs, lambda inputs: lif(*inputs, neuron, SAVE_NOTHING, False)[0])


def _gradients(ctx, grad_y, grad_v_last):
    """Return the gradients of (x, amplitude, decay, v_threshold, v_init)."""
    if grad_y is None:
        if grad_v_last is None:
            return (None,) * 5
        grad_y = grad_v_last.new_zeros(ctx.shape, dtype=ctx.dtype)
    tensors = (grad_y, grad_v_last, *ctx.saved_tensors)
    wanted = list(ctx.needs_input_grad[1:5])
    bwd = _BWD.get(grad_y.device.type)
    # With create_graph=True the dispatcher records that this must not be differentiated again.
    # What was saved was plain already.
    if bwd and not torch.is_grad_enabled() and is_plain_eager(grad_y, grad_v_last):
        return bwd(*tensors, ctx.channels_last, wanted, ctx.neuron, ctx.save)
    grad_x, *grads = torch.ops.realspike.lif_bwd(
        *tensors, ctx.channels_last, wanted, *ctx.neuron, ctx.save
    )
    return grad_x, *(grad if want else None for grad, want in zip(grads, wanted, strict=True))


def _setup_context(ctx, inputs, output):
    x, *parameters, v_init = inputs[:5]
    *neuron, save, keep_state = inputs[5:]
    y, _, saved = output
    _keep_for_backward(ctx, x, parameters, v_init, y, saved, Neuron(*neuron), save, keep_state)


def _backward(ctx, grad_y, grad_v_last, _):
    return *_gradients(ctx, grad_y, grad_v_last if ctx.keep_state else None), *(None,) * 10


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("lif has no second derivative: that of a surrogate gradient is not defined")


class _EagerLif(torch.autograd.Function):
    """What register_autograd below makes of the same functions, without the dispatcher."""

    @staticmethod
    def forward(ctx, x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state):
        y, v_last, saved = _FWD[x.device.type](
            x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state
        )
        parameters = (amplitude, decay, v_threshold)
        _keep_for_backward(ctx, x, parameters, v_init, y, saved, neuron, save, keep_state)
        return (y, v_last) if keep_state else y

    @staticmethod
    def backward(ctx, grad_y, grad_v_last=None):
        return *_gradients(ctx, grad_y, grad_v_last), None, None, None


def lif(x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state):
    """Return (y, v_last or None); past the dispatcher where only autograd could intercept it."""
    inputs = (x, amplitude, decay, v_threshold, v_init)
    if x.device.type not in _FWD or not is_plain_eager(*inputs):
        y, v_last, _ = torch.ops.realspike.lif_fwd(*inputs, *neuron, save, keep_state)
        return y, v_last
    if save == SAVE_NOTHING:
        y, v_last, _ = _FWD[x.device.type](*inputs, neuron, save, keep_state)
        return y, v_last
    emitted = _EagerLif.apply(*inputs, neuron, save, keep_state)
    return emitted if keep_state else (emitted, None)


def merge_batch(tensor, dim, size, batch_axis):
    """Make the vmapped dimension `dim` of a tensor part of its batch, which is `batch_axis`."""
    if tensor is None:
        return None
    if dim is None:
        tensor = tensor.unsqueeze(batch_axis).expand(
            *tensor.shape[:batch_axis], size, *tensor.shape[batch_axis:]
        )
    else:
        tensor = tensor.movedim(dim, batch_axis)
    return tensor.flatten(batch_axis, batch_axis + 1)


def check_vmap(in_dims) -> None:
    """Refuse a vmapped dimension of the parameters."""
    if any(dim is not None for dim in in_dims):
        raise NotImplementedError(
            "lif: torch.func.vmap over amplitude, decay or v_threshold is not supported; vmap over "
            "x and v_init alone, or use realspike_ops.reference.lif"
        )


def _fwd_vmap(info, in_dims, x, amplitude, decay, v_threshold, v_init, *form):
    x_dim, *parameter_dims, v_init_dim = in_dims[:5]
    check_vmap(parameter_dims)
    size = info.batch_size
    *neuron, save, keep_state = form
    if save != SAVE_NOTHING:
        raise NotImplementedError(
            "lif: torch.func.vmap over a forward pass that needs gradients is not supported; put "
            "the vmapped dimension into the batch, or use realspike_ops.reference.lif"
        )
    y, v_last, saved = torch.ops.realspike.lif_fwd(
        *(merge_batch(x, x_dim, size, 1), amplitude, decay, v_threshold),
        *(merge_batch(v_init, v_init_dim, size, 0), *neuron, save, keep_state),
    )
    y = y.unflatten(1, (size, -1))
    return (y, v_last.unflatten(0, (size, -1)) if keep_state else v_last, saved), (
        *(1, 0 if keep_state else None, None),
    )


def on_cuda(name):
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    @functools.cache
    def function():
        from realspike_ops.ops import lif_cuda

        return getattr(lif_cuda, name)

    return lambda *args: function()(*args)


_FWD = {
    "cpu": forward_with(lif_cpu.launch_fwd),
    "cuda": forward_with(on_cuda("launch_fwd")),
}
_BWD = {
    "cpu": backward_with(lif_cpu.launch_bwd, lif_cpu.partial_shape),
    "cuda": backward_with(on_cuda("launch_bwd"), on_cuda("partial_shape")),
}
for device in _FWD:
    LIBRARY.impl("lif_fwd", _registered_fwd(_FWD[device]), device.upper())
    LIBRARY.impl("lif_bwd", _registered_bwd(_BWD[device]), device.upper())
torch.library.register_fake("realspike::lif_fwd", _fwd_fake, lib=LIBRARY)
torch.library.register_fake("realspike::lif_bwd", _bwd_fake, lib=LIBRARY)
torch.library.register_autograd(
    "realspike::lif_fwd", _backward, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd("realspike::lif_bwd", _refuse_second_derivative, lib=LIBRARY)
torch.library.register_vmap("realspike::lif_fwd", _fwd_vmap, lib=LIBRARY)
