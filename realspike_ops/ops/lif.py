"""realspike::lif_fwd and realspike::lif_bwd: allocation, fake kernels, dispatch, autograd.

The kernels see N neurons side by side in memory order (csrc/core/lif.h); this file turns shapes and
memory formats into that view, the same for every device.
"""

import math
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

# csrc/core/lif.h
SAVE_NOTHING, SAVE_BITS, SAVE_POTENTIALS = 0, 1, 2
BITS_INTERVAL, POTENTIAL_INTERVAL = 4, 8

_NEURON = (
    "float decay, float v_threshold, float? v_reset, bool detach_reset, "
    "str surrogate, float surrogate_scale"
)
LIBRARY.define(
    f"lif_fwd(Tensor x, Tensor? amplitude, Tensor? v_init, {_NEURON}, bool save)"
    " -> (Tensor y, Tensor v_last, Tensor saved)"
)
LIBRARY.define(
    f"lif_bwd(Tensor grad_y, Tensor? grad_v_last, Tensor? x, Tensor? amplitude, Tensor? v_init,"
    f" Tensor saved, bool channels_last, {_NEURON})"
    " -> (Tensor grad_x, Tensor grad_v_init, Tensor grad_amplitude)"
)


class Neuron(NamedTuple):
    """The form of the neuron, as the kernels take it."""

    decay: float
    v_threshold: float
    v_reset: float | None  # None: soft reset
    detach_reset: bool
    surrogate: str
    surrogate_scale: float

    @property
    def save(self) -> int:
        # With a detached reset and a window for a surrogate, backward needs no more than two bits.
        if self.detach_reset and self.surrogate == "rectangular":
            return SAVE_BITS
        return SAVE_POTENTIALS


def _flat_amplitude(
    amplitude: Tensor | None, shape: tuple[int, ...], channels_last: bool
) -> tuple[Tensor | None, int, int]:
    """Return the amplitudes in memory order, with amplitude_inner and amplitude_size."""
    if amplitude is None:
        return None, 1, 1
    size = amplitude.numel()
    if size == 1:
        return amplitude, 1, 1
    if channels_last:
        C, H, W = shape
        if size == C and amplitude.shape == (C, 1, 1):
            return amplitude.contiguous(), 1, C
        return amplitude.expand(C, H, W).permute(1, 2, 0).contiguous(), 1, C * H * W
    # The functional layer has expanded an amplitude whose varying dimensions are not neighbours.
    trailing_ones = 0
    while amplitude.shape[-1 - trailing_ones] == 1:
        trailing_ones += 1
    inner = math.prod(shape[len(shape) - trailing_ones :])
    return amplitude.contiguous(), inner, size


def _sum_to_amplitude(
    per_neuron: Tensor,  # [N] in memory order
    amplitude: Tensor,
    step_shape: tuple[int, ...],  # [B, ...]
    channels_last: bool,
) -> Tensor:
    """Sum the gradients of the neurons that share an amplitude, in a fixed order."""
    if channels_last:
        B, C, H, W = step_shape
        per_neuron = per_neuron.view(B, H, W, C).permute(0, 3, 1, 2)
    else:
        per_neuron = per_neuron.view(step_shape)
    sizes = (1,) * (len(step_shape) - amplitude.dim()) + tuple(amplitude.shape)
    dims = [
        d for d, (size, full) in enumerate(zip(sizes, step_shape, strict=False)) if size != full
    ]
    return (per_neuron.sum(dims) if dims else per_neuron).reshape(amplitude.shape)


def _allocate_fwd(x: Tensor, channels_last: bool, save: int) -> tuple[Tensor, Tensor, Tensor]:
    T = x.shape[0]
    y = empty_over_time(x.shape, channels_last, x.dtype, x.device)
    v_last = empty_step(x.shape[1:], channels_last, x.device)
    if save == SAVE_BITS:
        planes = -(-T // BITS_INTERVAL)
        return y, v_last, x.new_empty((planes, v_last.numel()), dtype=torch.uint8)
    chunks = -(-T // POTENTIAL_INTERVAL) if save == SAVE_POTENTIALS else 1
    return y, v_last, x.new_empty((chunks - 1, v_last.numel()), dtype=torch.float32)


def _fwd_fake(x, amplitude, v_init, *neuron_and_save):
    *neuron, save = neuron_and_save
    x, channels_last, _ = dense_over_time(x)
    return _allocate_fwd(x, channels_last, Neuron(*neuron).save if save else SAVE_NOTHING)


def forward_with(launch):
    """Implement lif_fwd by `launch`, a device's function of dense tensors."""

    def fwd(x, amplitude, v_init, *neuron_and_save):
        neuron = Neuron(*neuron_and_save[:-1])
        save = neuron.save if neuron_and_save[-1] else SAVE_NOTHING
        x, channels_last, x_stride_t = dense_over_time(x)
        y, v_last, saved = _allocate_fwd(x, channels_last, save)
        if v_last.numel() > 0:
            flat, inner, size = _flat_amplitude(amplitude, x.shape[2:], channels_last)
            v_init = None if v_init is None else as_step(v_init, channels_last)
            launch(x, flat, v_init, y, v_last, saved, neuron, save, x_stride_t, inner, size)
        return y, v_last, saved

    return fwd


def _allocate_bwd(grad_y, amplitude, channels_last):
    grad_x = empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device)
    grad_v_init = empty_step(grad_y.shape[1:], channels_last, grad_y.device)
    N = 0 if amplitude is None else grad_v_init.numel()
    return grad_x, grad_v_init, grad_y.new_empty((N,), dtype=torch.float32)


def _bwd_fake(grad_y, grad_v_last, x, amplitude, v_init, saved, channels_last, *neuron):
    grad_x, grad_v_init, per_neuron = _allocate_bwd(grad_y, amplitude, channels_last)
    return (
        grad_x,
        grad_v_init,
        per_neuron if amplitude is None else amplitude.new_empty(amplitude.shape),
    )


def backward_with(launch):
    """Implement lif_bwd by `launch`, a device's function of dense tensors."""

    def bwd(grad_y, grad_v_last, x, amplitude, v_init, saved, channels_last, *neuron):
        x_stride_t = 0
        if x is not None:
            x, _, x_stride_t = dense_over_time(x)
        # The saved state lies in the memory format of x; an incoming gradient may lie in any, or be
        # expanded (that of a sum is).
        grad_y = as_dense_over_time(grad_y, channels_last)
        grad_x, grad_v_init, per_neuron = _allocate_bwd(grad_y, amplitude, channels_last)
        if grad_y.numel() > 0:
            flat, inner, size = _flat_amplitude(amplitude, grad_y.shape[2:], channels_last)
            grad_v_last = None if grad_v_last is None else as_step(grad_v_last, channels_last)
            v_init = None if v_init is None else as_step(v_init, channels_last)
            launch(
                *(grad_y, grad_v_last, x, flat, v_init, saved, grad_x, grad_v_init, per_neuron),
                *(Neuron(*neuron), x_stride_t, inner, size),
            )
        if amplitude is None:
            return grad_x, grad_v_init, per_neuron
        step_shape = tuple(grad_y.shape[1:])
        grad_amplitude = _sum_to_amplitude(per_neuron, amplitude, step_shape, channels_last)
        return grad_x, grad_v_init, grad_amplitude

    return bwd


def _setup_context(ctx, inputs, output):
    x, amplitude, v_init, *neuron, save = inputs
    y, _, saved = output
    if not save:
        raise RuntimeError("realspike::lif_fwd: pass save=True where a gradient is required")
    ctx.neuron = tuple(neuron)
    ctx.timesteps, ctx.dtype = x.shape[0], x.dtype
    ctx.channels_last = is_channels_last(y)
    ctx.has_v_init = v_init is not None
    if Neuron(*neuron).save == SAVE_BITS:
        x = v_init = None
    ctx.save_for_backward(x, amplitude, v_init, saved)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_v_last, _):
    x, amplitude, v_init, saved = ctx.saved_tensors
    if grad_y is None:
        if grad_v_last is None:
            return (None,) * 10
        grad_y = grad_v_last.new_zeros((ctx.timesteps, *grad_v_last.shape), dtype=ctx.dtype)
    tensors = (grad_y, grad_v_last, x, amplitude, v_init, saved)
    # With create_graph=True the dispatcher records that this must not be differentiated again.
    past_dispatcher = not torch.is_grad_enabled() and is_plain_eager(*tensors)
    bwd = _BWD[grad_y.device.type] if past_dispatcher else torch.ops.realspike.lif_bwd
    grad_x, grad_v_init, grad_amplitude = bwd(*tensors, ctx.channels_last, *ctx.neuron)
    return (
        grad_x,
        None if amplitude is None else grad_amplitude,
        grad_v_init if ctx.has_v_init else None,
        *(None,) * 7,
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


def lif(x, amplitude, v_init, *neuron_and_save):
    """Call realspike::lif_fwd, past the dispatcher where only autograd could intercept the call."""
    if not is_plain_eager(x, amplitude, v_init) or x.device.type not in _FWD:
        return torch.ops.realspike.lif_fwd(x, amplitude, v_init, *neuron_and_save)
    if neuron_and_save[-1]:
        return _EagerLif.apply(x, amplitude, v_init, *neuron_and_save)
    return _FWD[x.device.type](x, amplitude, v_init, *neuron_and_save)


def _on_cuda(name):
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    def launch(*args):
        from realspike_ops.ops import lif_cuda

        getattr(lif_cuda, name)(*args)

    return launch


_FWD = {
    "cpu": forward_with(lif_cpu.launch_fwd),
    "cuda": forward_with(_on_cuda("launch_fwd")),
}
_BWD = {
    "cpu": backward_with(lif_cpu.launch_bwd),
    "cuda": backward_with(_on_cuda("launch_bwd")),
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
