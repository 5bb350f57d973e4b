"""Launches of the Triton LIF kernels on dense CUDA tensors.

A network of small layers is as quick as the host launches them. So the options that follow from
sizes and forms are looked up.
"""

import functools
import struct
from typing import NamedTuple

import torch
import triton

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.kernels.lif_packed import lif_packed_fwd_kernel
from realspike_ops.ops.lif_contract import (
    BITS_INTERVAL,
    POTENTIAL_INTERVAL,
    SAVE_BITS,
    SAVE_POTENTIALS,
    Currents,
    Gradients,
    Neurons,
)

NUM_WARPS = 4
THREADS = 32 * NUM_WARPS
# Enough programs to fill the largest card once; more neurons than that are walked row by row.
PROGRAMS = 2048
# With fewer programs, some multiprocessors of a large card have little or nothing to do.
FEW_PROGRAMS = 256
# From here on, the neurons of a sample and those of a tile are not counted in 32 bits.
WIDE = 2**31 - 2**16

looked_up = functools.lru_cache(maxsize=1024)


def check_rounds_separately(capability: tuple[int, int], version: str) -> None:
    """Refuse the one Triton whose machine code for newer cards fuses products and sums.

    Its ptxas (12.9) makes FFMA2 of mul.rn.f32x2 and add.rn.f32x2, whatever it is told about fusion;
    a spike would depend on the card. From ptxas 13.1 on, which Triton 3.7 brings, it does not.
    """
    if capability >= (10, 0) and tuple(map(int, version.split(".")[:2])) < (3, 7):
        raise RuntimeError(
            f"realspike_ops: Triton {version} rounds a product and a sum together on compute "
            f"capability {capability[0]}.{capability[1]}, so that spikes would differ from those "
            "of other devices; PyTorch 2.12 and newer bring a Triton that does not"
        )


# When the first CUDA tensor arrives, not at every launch.
for _index in range(torch.cuda.device_count()):
    check_rounds_separately(torch.cuda.get_device_capability(_index), triton.__version__)


class Tiling(NamedTuple):
    """How the neurons are split; LifTiling in csrc/core/lif.h says what a row is."""

    row: int
    columns: int  # tiles side by side
    rows_per_chunk: int
    chunks: int


@looked_up
def tiling(N: int, period: int, block: int, programs: int) -> Tiling:
    row = period * min(max(1, block // period), -(-N // period))
    columns = -(-row // block)
    rows = -(-N // row)
    rows_per_chunk = max(1, rows * columns // programs)
    return Tiling(row, columns, rows_per_chunk, -(-rows // rows_per_chunk))


def neurons_per_thread(T, N, save, element_size, backward=False, sums=False) -> int:
    """Return the neurons of a row that a thread owns; the numbers were the quickest on an H100.

    A thread moves 16 bytes of x per timestep, and fewer where that takes too many registers. That
    is so where it recomputes potentials. In half precision (8 neurons) it is also so where the
    thread writes words of bits, or adds up the `sums` that are gradients of parameters. Where few
    programs would run, a thread owns less. Each answer is compiled for itself, so that there are at
    most two as N alone varies.
    """
    recompute = save == SAVE_POTENTIALS
    neurons = 16 // element_size
    if recompute or sums or (save == SAVE_BITS and not backward):
        neurons = 4
    if recompute and sums and element_size == 4 and T > BITS_INTERVAL:
        neurons = 2
    programs = N // (THREADS * neurons)
    return 2 if programs < FEW_PROGRAMS else neurons


@looked_up
def options(T, N, save, element_size, backward=False, sums=False) -> dict:
    """Return the constants and options of a launch that follow from its sizes."""
    # The steps from one saved word (or potential) to the next are unrolled. Up to 4 steps save no
    # potential.
    steps = POTENTIAL_INTERVAL if save == SAVE_POTENTIALS and T > BITS_INTERVAL else BITS_INTERVAL
    return {
        "SAVE": save,
        "CHUNK": steps,
        "BLOCK": THREADS * neurons_per_thread(T, N, save, element_size, backward, sums),
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
    }


@looked_up
def inverse(scale: float) -> float:
    """1 / scale, rounded once as float32 does it: a division in double rounds the same."""
    return 1.0 / struct.unpack("f", struct.pack("f", scale))[0]


@looked_up
def _form(neuron, wide, amplitude, decay, v_threshold, v_init) -> dict:
    """Return the constants of both passes: the kind of the neuron, and which tensors it has."""
    return {
        "WIDE": wide,
        "HAS_AMPLITUDE": amplitude,
        "HAS_DECAY": decay,
        "HAS_V_THRESHOLD": v_threshold,
        "HAS_V_INIT": v_init,
        "RESET": neuron.reset,
        "TERNARY": neuron.ternary,
    }


def _form_constants(N: int, neurons: Neurons) -> dict:
    a, d, v = neurons.parameters
    wide = N >= WIDE and any(p.inner * p.size >= WIDE for p in neurons.parameters)
    tensors = (a.values, d.values, v.values, neurons.v_init)
    return _form(neurons.form, wide, *(tensor is not None for tensor in tensors))


def launch_fwd(currents: Currents, neurons: Neurons, y, v_last, saved, save: int) -> None:
    (amplitude, decay, v_threshold), form = neurons.parameters, neurons.form
    T, N = y.shape[0], y.shape[1:].numel()
    constants = options(T, N, save, y.element_size())
    tiles = tiling(N, neurons.period, constants["BLOCK"], PROGRAMS)
    with torch.cuda.device_of(y):
        lif_fwd_kernel[(tiles.columns * tiles.chunks,)](
            currents.x, amplitude.values, decay.values, v_threshold.values, neurons.v_init,
            y, v_last, saved,
            T, N, currents.stride_t, tiles.row, tiles.rows_per_chunk, tiles.columns,
            amplitude.inner, amplitude.size, decay.inner, decay.size,
            v_threshold.inner, v_threshold.size,
            form.decay, form.v_threshold, form.v_reset, form.surrogate_scale,
            KEEP_STATE=v_last is not None, **_form_constants(N, neurons), **constants,
        )  # fmt: skip


def partial_shape(T, N, period, save, element_size) -> tuple[int, int]:
    block = options(T, N, save, element_size, True, True)["BLOCK"]
    tiles = tiling(N, period, block, PROGRAMS)
    return tiles.chunks, tiles.row


def launch_bwd(currents: Currents, neurons: Neurons, saved, save: int, grads: Gradients) -> None:
    (amplitude, decay, v_threshold), form = neurons.parameters, neurons.form
    T, N = grads.x.shape[0], grads.x.shape[1:].numel()
    wanted = [partial is not None for partial in grads.partials]
    constants = options(T, N, save, grads.x.element_size(), True, any(wanted))
    tiles = tiling(N, neurons.period, constants["BLOCK"], PROGRAMS)
    scale = form.surrogate_scale
    with torch.cuda.device_of(grads.y):
        lif_bwd_kernel[(tiles.columns * tiles.chunks,)](
            grads.y, grads.v_last, currents.x,
            amplitude.values, decay.values, v_threshold.values, neurons.v_init, saved,
            grads.x, *grads.partials, grads.v_init,
            T, N, currents.stride_t, tiles.row, tiles.rows_per_chunk, tiles.columns,
            amplitude.inner, amplitude.size, decay.inner, decay.size,
            v_threshold.inner, v_threshold.size,
            form.decay, form.v_threshold, form.v_reset, scale, inverse(scale),
            HAS_GRAD_V_LAST=grads.v_last is not None,
            WANT_AMPLITUDE=wanted[0], WANT_DECAY=wanted[1], WANT_V_THRESHOLD=wanted[2],
            WANT_V_INIT=grads.v_init is not None,
            DETACH_RESET=form.detach_reset, SURROGATE=form.surrogate,
            **_form_constants(N, neurons), **constants,
        )  # fmt: skip


@looked_up
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
    x, form = currents.x, neurons.form
    T, B, C = x.shape[:3]
    P, words = x.shape[3:].numel(), packed.shape[-1]
    stride_c, stride_p = (1, C) if channels_last else (P, 1)
    _, decay, v_threshold = neurons.parameters
    constants = packed_options(B * P, words, channels_last)
    with torch.cuda.device_of(x):
        lif_packed_fwd_kernel[(B * -(-P // constants["PIXELS"]) * words,)](
            x, decay.values, v_threshold.values, neurons.v_init, packed, v_last,
            T, B * C * P, currents.stride_t, C, P, words, stride_c, stride_p,
            decay.inner, decay.size, v_threshold.inner, v_threshold.size,
            form.decay, form.v_threshold, form.v_reset,
            HAS_DECAY=decay.values is not None,
            HAS_V_THRESHOLD=v_threshold.values is not None,
            HAS_V_INIT=neurons.v_init is not None,
            KEEP_STATE=v_last is not None,
            RESET=form.reset, TERNARY=form.ternary,
            **constants,
        )  # fmt: skip
