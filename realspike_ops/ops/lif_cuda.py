"""Launches of the Triton LIF kernels on dense CUDA tensors."""

from typing import NamedTuple

import torch

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.kernels.lif_packed import lif_packed_fwd_kernel
from realspike_ops.ops.lif import BITS_INTERVAL, POTENTIAL_INTERVAL, SAVE_POTENTIALS

NUM_WARPS = 4
ACCESS_BYTES = 16
# Enough programs to fill the largest card once; more neurons than that are walked row by row.
PROGRAMS = 2048
PARAMETERS = ("AMPLITUDE", "DECAY", "V_THRESHOLD")


class Tiling(NamedTuple):
    """How the neurons are split; LifTiling in csrc/core/lif.h says what a row is."""

    row: int
    columns: int  # tiles side by side
    rows_per_chunk: int
    chunks: int


def tiling(N: int, period: int, block: int) -> Tiling:
    row = period * min(max(1, block // period), -(-N // period))
    columns = -(-row // block)
    rows = -(-N // row)
    rows_per_chunk = max(1, rows * columns // PROGRAMS)
    return Tiling(row, columns, rows_per_chunk, -(-rows // rows_per_chunk))


def options(save, element_size):
    """Return the constants and options of a launch that do not depend on its sizes."""
    recompute = save == SAVE_POTENTIALS
    # A thread moves 16 bytes of x per timestep; in half precision that is 8 neurons, whose
    # recomputed potentials would not fit in registers.
    neurons = ACCESS_BYTES // (4 if recompute else element_size)
    return {
        "SAVE": save,
        "CHUNK": POTENTIAL_INTERVAL if recompute else BITS_INTERVAL,
        "BLOCK": 32 * NUM_WARPS * neurons,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
    }


def _launch(kernel, pointers, y, N, x_stride_t, tiles, parameters, neuron, constants):
    kernel[(tiles.columns * tiles.chunks,)](
        *pointers,
        *(y.shape[0], N, x_stride_t, tiles.row, tiles.rows_per_chunk, tiles.columns),
        *(size for parameter in parameters for size in (parameter.inner, parameter.size)),
        *(neuron.decay, neuron.v_threshold, neuron.v_reset, neuron.surrogate_scale),
        RESET=neuron.reset,
        TERNARY=neuron.ternary,
        **{
            f"HAS_{name}": parameter.values is not None
            for name, parameter in zip(PARAMETERS, parameters, strict=True)
        },
        **constants,
    )


def launch_fwd(x, parameters, period, v_init, y, v_last, saved, neuron, save, x_stride_t):
    N = y.shape[1:].numel()
    constants = options(save, y.element_size())
    with torch.cuda.device_of(x):
        _launch(
            lif_fwd_kernel,
            (x, *(parameter.values for parameter in parameters), v_init, y, v_last, saved),
            *(y, N, x_stride_t, tiling(N, period, constants["BLOCK"]), parameters, neuron),
            {
                "HAS_V_INIT": v_init is not None,
                "KEEP_STATE": v_last is not None,
                **constants,
            },
        )


# Pixels of a program that packs: with 32 channels, 8 neurons a thread.
PACKED_PIXELS = 32


def launch_packed(x, parameters, period, v_init, packed, v_last, neuron, x_stride_t, channels_last):
    _, B, C = x.shape[:3]
    P, words = x.shape[3:].numel(), packed.shape[-1]
    stride_c, stride_p = (1, C) if channels_last else (P, 1)
    _, decay, v_threshold = parameters
    with torch.cuda.device_of(x):
        lif_packed_fwd_kernel[(B * -(-P // PACKED_PIXELS) * words,)](
            *(x, decay.values, v_threshold.values, v_init, packed, v_last),
            *(x.shape[0], B * C * P, x_stride_t, C, P, words, stride_c, stride_p),
            *(decay.inner, decay.size, v_threshold.inner, v_threshold.size),
            *(neuron.decay, neuron.v_threshold, neuron.v_reset),
            HAS_DECAY=decay.values is not None,
            HAS_V_THRESHOLD=v_threshold.values is not None,
            HAS_V_INIT=v_init is not None,
            KEEP_STATE=v_last is not None,
            RESET=neuron.reset,
            TERNARY=neuron.ternary,
            PIXELS=PACKED_PIXELS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )


def partial_shape(T, N, period, save, element_size) -> tuple[int, int]:
    tiles = tiling(N, period, options(save, element_size)["BLOCK"])
    return tiles.chunks, tiles.row


def launch_bwd(
    grad_y,
    grad_v_last,
    x,
    parameters,
    period,
    v_init,
    saved,
    grad_x,
    partials,
    grad_v_init,
    neuron,
    save,
    x_stride_t,
):
    N = grad_x.shape[1:].numel()
    constants = options(save, grad_x.element_size())
    with torch.cuda.device_of(grad_y):
        _launch(
            lif_bwd_kernel,
            (
                *(grad_y, grad_v_last, x, *(parameter.values for parameter in parameters)),
                *(v_init, saved, grad_x, *partials, grad_v_init),
            ),
            *(grad_x, N, x_stride_t, tiling(N, period, constants["BLOCK"]), parameters, neuron),
            {
                "HAS_V_INIT": v_init is not None,
                "HAS_GRAD_V_LAST": grad_v_last is not None,
                "WANT_V_INIT": grad_v_init is not None,
                "DETACH_RESET": neuron.detach_reset,
                "SURROGATE": neuron.surrogate,
                **{
                    f"WANT_{name}": partial is not None
                    for name, partial in zip(PARAMETERS, partials, strict=True)
                },
                **constants,
            },
        )
