"""Launches of the Triton LIF kernels on dense CUDA tensors.

A network of small layers is as quick as the host launches them. So a launch is a plan that is
looked up by all that decides about it (`launch_plan`); what follows makes the plans.
"""

import functools
import math
import struct
from typing import Any, NamedTuple

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.kernels.lif_packed import lif_packed_fwd_kernel
from realspike_ops.ops.batch_norm_lif_contract import Norm
from realspike_ops.ops.launch_plan import MOST_PLANS, Launch, Plans
from realspike_ops.ops.lif_contract import SAVE_BITS, Currents, Gradients, Neurons, PerNeuron
from realspike_ops.ops.lif_tiling import (
    FEW_PROGRAMS,
    NUM_WARPS,
    WIDE,
    Folding,
    Shape,
    backward_shape,
    forward_shape,
    kind_of,
    partial_shape_of,
)
from realspike_ops.ops.rounding_cuda import check_devices

_FORWARD, _BACKWARD, _PACKED = Plans(), Plans(), Plans()

# When the first CUDA tensor arrives, not at every launch.
check_devices()


def inverse(scale: float) -> float:
    """1 / scale, rounded once as float32 does it: a division in double rounds the same."""
    return 1.0 / struct.unpack("f", struct.pack("f", scale))[0]


NO_NORM = PerNeuron(None, 0.0, 1, 1)


def channels_of(norm: Norm | None) -> PerNeuron:
    """Return which of a norm's channels a neuron belongs to, as a parameter of the neurons."""
    if norm is None:
        return NO_NORM
    return PerNeuron(norm.mean, 0.0, 1 if norm.channels_last else norm.pixels, norm.C)


def period_of(neurons: Neurons, norm: Norm | None) -> int:
    """Return after how many neurons parameters and channels repeat.

    Both are multiples or divisors of each other: a sample, or the channels of a pixel.
    """
    channels = channels_of(norm)
    return max(neurons.period, 1 if channels.size == 1 else channels.inner * channels.size)


def _arguments(neurons: Neurons, norm: Norm | None, T: int, N: int, shape: Shape) -> dict[str, Any]:
    """Return what both passes take: the kind of the neurons, their parameters, and the tiles."""
    form, channels, tiles = neurons.form, channels_of(norm), shape.tiles
    arguments: dict[str, Any] = {
        "T": T,
        "N": N,
        "row": tiles.row,
        "rows_per_chunk": tiles.rows_per_chunk,
        "columns": tiles.columns,
        "decay_value": form.decay,
        "v_threshold_value": form.v_threshold,
        "v_reset": form.v_reset,
        "HAS_V_INIT": neurons.v_init is not None,
        "RESET": form.reset,
        "TERNARY": form.ternary,
        "CHUNK": shape.steps,
        "PREFETCH": shape.prefetch,
        "BLOCK": shape.block,
    }
    parameters = (channels, *neurons.parameters)
    arguments["WIDE"] = N >= WIDE and any(p.inner * p.size >= WIDE for p in parameters)
    for name, parameter in zip(
        ("norm", "amplitude", "decay", "v_threshold"), parameters, strict=True
    ):
        arguments[f"{name}_inner"] = parameter.inner
        arguments[f"{name}_size"] = parameter.size
        arguments[name.upper()] = kind_of(parameter, tiles.row, shape.block)
    return arguments


def _launch_of(shape: Shape, arguments: dict[str, Any]) -> Launch:
    options = {"num_warps": shape.warps, "enable_fp_fusion": False}
    return Launch(shape.tiles.columns * shape.tiles.chunks, arguments, options)


def _key(neurons: Neurons, norm: Norm | None) -> tuple[object, ...]:
    """Return what a launch depends on, of the neurons and the norm, but for their tensors."""
    a, d, v = neurons.parameters
    sizes = (a.inner, a.size, d.inner, d.size, v.inner, v.size)
    if norm is None:
        return neurons.form, neurons.period, sizes
    return neurons.form, neurons.period, sizes, norm.residual_stride_t, *norm[6:]


def _norm_tensors(norm: Norm | None):
    return (None,) * 5 if norm is None else (norm.residual, *norm[:4])


def launch_fwd(
    currents: Currents, neurons: Neurons, y, v_last, saved, save: int, norm: Norm | None = None
) -> None:
    (amplitude, decay, v_threshold), stride_t = neurons.parameters, currents.stride_t
    shape = y.shape
    residual_stride_t = 0 if norm is None else norm.residual_stride_t

    def plan() -> Launch:
        T, N = shape[0], shape[1:].numel()
        tiles = forward_shape(T, N, period_of(neurons, norm), save, y.element_size())
        return _launch_of(
            tiles,
            {
                **_arguments(neurons, norm, T, N, tiles),
                "x_stride_t": stride_t,
                "residual_stride_t": residual_stride_t,
                "width": neurons.form.surrogate_scale,
                "KEEP_STATE": v_last is not None,
                "SAVE": save,
            },
        )

    _FORWARD.launch(
        lif_fwd_kernel,
        y.get_device(),
        (
            currents.x, *_norm_tensors(norm), amplitude.values, decay.values, v_threshold.values,
            neurons.v_init, y, v_last, saved,
        ),
        (shape, stride_t, save, *_key(neurons, norm)),
        plan,
    )  # fmt: skip


class Backward(NamedTuple):
    """The shape of a backward pass, and those of the partial sums that it writes."""

    shape: Shape
    partials: tuple[tuple[int, ...], ...]  # of amplitude, decay, v_threshold
    norm: tuple[int, ...]  # of a norm, [pieces, C, runs]


@functools.lru_cache(maxsize=MOST_PLANS)
def _backward(T, N, sizes, period, channels, save, element_size, wanted) -> Backward:
    """Return what `backward_of` does, of what it depends on."""
    parameters = [PerNeuron(None, 0.0, *size) for size in sizes]
    whole_period, norm = period, NO_NORM
    if channels is not None:
        norm = PerNeuron(None, 0.0, *channels)
        whole_period = max(period, math.prod(channels) if norm.size > 1 else 1)
    summed = [p for p, want in zip(parameters, wanted, strict=True) if want]
    is_per_column = any(p.inner == 1 and p.size == period > 1 for p in summed)
    sums = channels is not None or bool(summed)
    shape = backward_shape(T, N, whole_period, save, element_size, sums, is_per_column)
    tiles, block = shape.tiles, shape.block
    partials = tuple(partial_shape_of(p, period, tiles, block) for p in parameters)
    return Backward(shape, partials, partial_shape_of(norm, 0, tiles, block))


def backward_of(T, N, neurons: Neurons, wanted, save, element_size, norm: Norm | None) -> Backward:
    """Return how a backward pass is split, where the gradients of `wanted` parameters are asked."""
    sizes = tuple((p.inner, p.size) for p in neurons.parameters)
    channels = None if norm is None else channels_of(norm)[2:]
    wanted = tuple(wanted[:3])
    return _backward(T, N, sizes, neurons.period, channels, save, element_size, wanted)


def partial_shapes(T, N, neurons: Neurons, wanted, save, element_size, norm: Norm | None = None):
    return backward_of(T, N, neurons, wanted, save, element_size, norm).partials


def launch_bwd(
    currents: Currents, neurons: Neurons, saved, save: int, grads: Gradients,
    norm: Norm | None = None, sums=(None, None),
) -> None:  # fmt: skip
    """Launch the backward pass; `sums` are the partial sums of a norm."""
    (amplitude, decay, v_threshold), stride_t = neurons.parameters, currents.stride_t
    grad_x = grads.x
    shape, partials = grad_x.shape, grads.partials
    residual, *norm_tensors = _norm_tensors(norm)
    # Bits say all that is asked about the current.
    residual = None if save == SAVE_BITS else residual
    residual_stride_t = 0 if norm is None else norm.residual_stride_t

    def plan() -> Launch:
        T, N = shape[0], shape[1:].numel()
        wanted = [partial is not None for partial in partials]
        element_size, form = grad_x.element_size(), neurons.form
        tiles = backward_of(T, N, neurons, wanted, save, element_size, norm).shape
        arguments = {
            **_arguments(neurons, norm, T, N, tiles),
            "x_stride_t": stride_t,
            "residual_stride_t": residual_stride_t,
            "scale_of_surrogate": form.surrogate_scale,
            "inverse_scale": inverse(form.surrogate_scale),
            "HAS_GRAD_V_LAST": grads.v_last is not None,
            "WANT_V_INIT": grads.v_init is not None,
            "DETACH_RESET": form.detach_reset,
            "SURROGATE": form.surrogate,
            "SAVE": save,
        }
        summed = (*neurons.parameters, channels_of(norm))
        names = ("AMPLITUDE", "DECAY", "V_THRESHOLD", "NORM")
        for name, parameter, want in zip(names, summed, (*wanted, norm), strict=True):
            folding = Folding.of(parameter, tiles.block)
            arguments[f"{name}_RUN"] = folding.run if want else 0
            arguments[f"{name}_KEEP"] = folding.keep if want else 0
        return _launch_of(tiles, arguments)

    _BACKWARD.launch(
        lif_bwd_kernel,
        grad_x.get_device(),
        (
            grads.y, grads.v_last, currents.x, residual, *norm_tensors,
            amplitude.values, decay.values, v_threshold.values, neurons.v_init, saved,
            grad_x, *partials, grads.v_init, *sums,
        ),
        (shape, stride_t, save, *_key(neurons, norm)),
        plan,
    )  # fmt: skip


def packed_options(pixels: int, words: int, channels_last: bool) -> dict:
    """Return the options of a launch on `pixels` of `words`; they were the quickest on an H100.

    A tile is PIXELS by 32 channels. Where pixels are neighbours, one warp that holds a whole tile
    adds up its bits without a barrier, as long as there are enough programs to hide its waiting.
    """
    if channels_last:
        PIXELS, warps = (32 if pixels * words >= 32 * FEW_PROGRAMS else 8), NUM_WARPS
    else:
        PIXELS, warps = 16, (1 if pixels * words >= 16 * 4 * FEW_PROGRAMS else NUM_WARPS)
    return {"PIXELS": PIXELS, "num_warps": warps, "enable_fp_fusion": False}


def launch_packed(currents: Currents, neurons: Neurons, packed, v_last, channels_last) -> None:
    x, form, stride_t = currents.x, neurons.form, currents.stride_t
    _, decay, v_threshold = neurons.parameters
    assert x is not None
    shape = x.shape

    def plan() -> Launch:
        T, B, C = shape[:3]
        P, words = shape[3:].numel(), packed.shape[-1]
        options = packed_options(B * P, words, channels_last)
        pixels = options.pop("PIXELS")
        stride_c, stride_p = (1, C) if channels_last else (P, 1)
        arguments = {
            "T": T,
            "N": B * C * P,
            "x_stride_t": stride_t,
            "C": C,
            "P": P,
            "words": words,
            "stride_c": stride_c,
            "stride_p": stride_p,
            "decay_inner": decay.inner,
            "decay_size": decay.size,
            "v_threshold_inner": v_threshold.inner,
            "v_threshold_size": v_threshold.size,
            "decay_value": form.decay,
            "v_threshold_value": form.v_threshold,
            "v_reset": form.v_reset,
            "WIDE": C * P >= WIDE,
            "HAS_DECAY": decay.values is not None,
            "HAS_V_THRESHOLD": v_threshold.values is not None,
            "HAS_V_INIT": neurons.v_init is not None,
            "KEEP_STATE": v_last is not None,
            "RESET": form.reset,
            "TERNARY": form.ternary,
            "PIXELS": pixels,
        }
        return Launch(B * -(-P // pixels) * words, arguments, options)

    _PACKED.launch(
        lif_packed_fwd_kernel,
        x.get_device(),
        (x, decay.values, v_threshold.values, neurons.v_init, packed, v_last),
        (shape, stride_t, channels_last, *_key(neurons, None)),
        plan,
    )
