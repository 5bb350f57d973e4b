"""realspike::lif_fwd and realspike::lif_bwd: allocation, fake kernels, dispatch, autograd.

The kernels see N neurons side by side in memory order (csrc/core/lif.h); this file turns shapes and
memory formats into that view, the same for every device.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_cpu
from realspike_ops.ops.layout import (
    as_dense_over_time,
    as_step,
    dense_over_time,
    empty_over_time,
    is_channels_last,
)
from realspike_ops.surrogate import Surrogate

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


@dataclass(frozen=True, slots=True)
class Neuron:
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

    @property
    def surrogate_index(self) -> int:
        return Surrogate(self.surrogate, self.surrogate_scale).index


def amplitude_span(amplitude: Tensor, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (first, end, size): the run of dimensions of `shape` that the amplitude follows.

    `shape` is x.shape[2:]. The functional layer has expanded what is not one run.
    """
    sizes = (1,) * (len(shape) - amplitude.dim()) + tuple(amplitude.shape)
    varying = [d for d, size in enumerate(sizes) if size > 1]
    if not varying:
        return 0, 0, 1
    first, end = varying[0], varying[-1] + 1
    return first, end, math.prod(sizes[first:end])


def _flat_amplitude(
    amplitude: Tensor | None, shape: tuple[int, ...], channels_last: bool
) -> tuple[Tensor | None, int, int]:
    """Return the amplitudes in memory order, with amplitude_inner and amplitude_size."""
    if amplitude is None:
        return None, 1, 1
    first, end, size = amplitude_span(amplitude, shape)
    if size == 1:
        return amplitude.reshape(1), 1, 1
    if not channels_last:
        return amplitude.contiguous(), math.prod(shape[end:]), size
    C, H, W = shape
    if (first, end) == (0, 1):  # channel
        return amplitude.contiguous(), 1, C
    full = amplitude.expand(C, H, W)
    return full.permute(1, 2, 0).contiguous(), 1, C * H * W


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


def _saved_like(x: Tensor, save: int) -> Tensor:
    T, N = x.shape[0], x.shape[1:].numel()
    if save == SAVE_BITS:
        return x.new_empty((-(-T // BITS_INTERVAL), N), dtype=torch.uint8)
    if save == SAVE_POTENTIALS:
        return x.new_empty((-(-T // POTENTIAL_INTERVAL) - 1, N), dtype=torch.float32)
    return x.new_empty((0,), dtype=torch.uint8)


def _allocate_fwd(x: Tensor, channels_last: bool, save: int) -> tuple[Tensor, Tensor, Tensor]:
    y = empty_over_time(x.shape, channels_last, x.dtype, x.device)
    v_last = empty_over_time((1, *x.shape[1:]), channels_last, torch.float32, x.device)[0]
    return y, v_last, _saved_like(x, save)


def _fwd_fake(x, amplitude, v_init, *neuron_and_save):
    *neuron, save = neuron_and_save
    x, channels_last, _ = dense_over_time(x)
    return _allocate_fwd(x, channels_last, Neuron(*neuron).save if save else SAVE_NOTHING)


def forward_with(launch):
    """Implement lif_fwd by `launch`, a device's function of dense tensors."""

    def fwd(x, amplitude, v_init, *neuron_and_save):
        *neuron, save = neuron_and_save
        neuron = Neuron(*neuron)
        save = neuron.save if save else SAVE_NOTHING
        x, channels_last, x_stride_t = dense_over_time(x)
        y, v_last, saved = _allocate_fwd(x, channels_last, save)
        if x.numel() > 0:
            flat, inner, size = _flat_amplitude(amplitude, tuple(x.shape[2:]), channels_last)
            v_init = None if v_init is None else as_step(v_init, channels_last)
            launch(x, flat, v_init, y, v_last, saved, neuron, save, x_stride_t, inner, size)
        return y, v_last, saved

    return fwd


def _allocate_bwd(grad_y, amplitude, channels_last):
    grad_x = empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device)
    v_shape = (1, *grad_y.shape[1:])
    grad_v_init = empty_over_time(v_shape, channels_last, torch.float32, grad_y.device)[0]
    N = 0 if amplitude is None else grad_y.shape[1:].numel()
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
            flat, inner, size = _flat_amplitude(amplitude, tuple(grad_y.shape[2:]), channels_last)
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
    x, amplitude, v_init, *neuron_and_save = inputs
    y, _, saved = output
    *ctx.neuron, save = neuron_and_save
    if not save:
        raise RuntimeError("realspike::lif_fwd: pass save=True where a gradient is required")
    ctx.timesteps, ctx.dtype = x.shape[0], x.dtype
    ctx.channels_last = is_channels_last(y)
    ctx.has_v_init = v_init is not None
    if Neuron(*ctx.neuron).save == SAVE_BITS:
        x = v_init = None
    ctx.save_for_backward(x, amplitude, v_init, saved)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, grad_v_last, _):
    x, amplitude, v_init, saved = ctx.saved_tensors
    if grad_y is None:
        if grad_v_last is None:
            return (None,) * 10
        grad_y = grad_v_last.new_zeros((ctx.timesteps, *grad_v_last.shape), dtype=ctx.dtype)
    grad_x, grad_v_init, grad_amplitude = torch.ops.realspike.lif_bwd(
        grad_y, grad_v_last, x, amplitude, v_init, saved, ctx.channels_last, *ctx.neuron
    )
    return (
        grad_x,
        None if amplitude is None else grad_amplitude,
        grad_v_init if ctx.has_v_init else None,
        *(None,) * 7,
    )


def _on_cuda(name):
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    def launch(*args):
        from realspike_ops.ops import lif_cuda

        getattr(lif_cuda, name)(*args)

    return launch


LIBRARY.impl("lif_fwd", forward_with(lif_cpu.launch_fwd), "CPU")
LIBRARY.impl("lif_bwd", backward_with(lif_cpu.launch_bwd), "CPU")
LIBRARY.impl("lif_fwd", forward_with(_on_cuda("launch_fwd")), "CUDA")
LIBRARY.impl("lif_bwd", backward_with(_on_cuda("launch_bwd")), "CUDA")
torch.library.register_fake("realspike::lif_fwd", _fwd_fake, lib=LIBRARY)
torch.library.register_fake("realspike::lif_bwd", _bwd_fake, lib=LIBRARY)
torch.library.register_autograd(
    "realspike::lif_fwd", _backward, setup_context=_setup_context, lib=LIBRARY
)
