"""Launches of the Triton kernels of batch norm and LIF neurons on dense CUDA tensors."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.kernels.batch_norm_lif import (
    batch_norm_bwd_kernel,
    batch_norm_combine_kernel,
    batch_norm_moments_kernel,
    batch_norm_statistics_kernel,
)
from realspike_ops.ops import lif_cuda
from realspike_ops.ops.batch_norm_lif_contract import Norm, NormGradients
from realspike_ops.ops.launch_plan import MOST_PLANS, Launch, Plans
from realspike_ops.ops.lif_contract import Currents, Gradients, Neurons, PerNeuron
from realspike_ops.ops.lif_tiling import (
    PROGRAMS,
    THREADS,
    WIDE,
    Folding,
    Tiling,
    kind_of,
    runs_of,
    tiling,
)

# Programs that a channel is summed over: enough to fill a card with four each, and few enough that
# their partial sums are read in no time.
MOMENT_PROGRAMS = 1024
MOMENT_CHUNK, GRADIENT_CHUNK = 8, 4
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_MOMENTS, _COMBINE, _STATISTICS, _NORM_BWD = Plans(), Plans(), Plans(), Plans()


# A thread owns four neighbours of a row: of more, sums in float64 would not fit its registers.
BLOCK = THREADS * 4


def _tiles_of(size: int, channels: PerNeuron, programs: int) -> Tiling:
    period = 1 if channels.size == 1 else channels.inner * channels.size
    return tiling(size, period, BLOCK, programs)


class Moments(NamedTuple):
    """How the moments of the channels of `size` values are taken."""

    tiles: Tiling
    folding: Folding
    runs: int


@functools.lru_cache(maxsize=MOST_PLANS)
def _moments_of(size: int, inner: int, C: int, programs: int) -> Moments:
    channels = PerNeuron(None, 0.0, inner, C)
    tiles = _tiles_of(size, channels, programs)
    folding = Folding.of(channels, BLOCK)
    return Moments(tiles, folding, runs_of(channels, folding))


def launch_moments(x: Tensor, stride_t: int, channels_last: bool) -> Tensor:  # float64 [2 * C + 1]
    T, _, C = x.shape[:3]
    # Equal timesteps have the moments of one.
    copies = T if stride_t == 0 else 1
    size = x.numel() // copies
    inner = 1 if channels_last else x.shape[3:].numel()
    how = _moments_of(size, inner, C, MOMENT_PROGRAMS)
    tiles, folding = how.tiles, how.folding
    partial = x.new_empty((3, tiles.chunks * folding.width(tiles)), dtype=torch.float64)
    moments = x.new_empty(2 * C + 1, dtype=torch.float64)

    def walk() -> Launch:
        arguments = {
            "size": size,
            "row": tiles.row,
            "rows_per_chunk": tiles.rows_per_chunk,
            "columns": tiles.columns,
            "chunks": tiles.chunks,
            "CHUNK": MOMENT_CHUNK,
            "RUN": folding.run,
            "KEEP": folding.keep,
            "BLOCK": BLOCK,
        }
        return Launch(tiles.columns * tiles.chunks, arguments, OPTIONS)

    def combine() -> Launch:
        pieces = partial.shape[1] // (C * how.runs)
        arguments = {"C": C, "pieces": pieces, "runs": how.runs, "copies": copies, "BLOCK": 256}
        return Launch(C, arguments, OPTIONS)

    device, key = x.get_device(), (size, inner, C, copies, x.dtype)
    _MOMENTS.launch(batch_norm_moments_kernel, device, (x, partial), key, walk)
    _COMBINE.launch(batch_norm_combine_kernel, device, (partial, moments), key, combine)
    return moments


def launch_norm(
    x: Tensor, stride_t: int, channels_last: bool, *running
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `launch_statistics` makes of the moments of x, and their number of values."""
    moments = launch_moments(x, stride_t, channels_last)
    return *launch_statistics(moments, *running), moments[-1:]


def launch_statistics(
    moments: Tensor, running_mean, running_var, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    C = moments.shape[0] // 2
    mean = moments.new_empty(C, dtype=torch.float32)
    inv_std = moments.new_empty(C, dtype=torch.float32)

    def plan() -> Launch:
        return Launch(-(-C // 128), {"C": C, "BLOCK": 128}, OPTIONS)

    _STATISTICS.launch(
        batch_norm_statistics_kernel,
        moments.get_device(),
        (moments, mean, inv_std, running_mean, running_var),
        C,
        plan,
        # That of a cumulative average is another one at every step.
        (float(momentum), float(eps)),
    )
    return mean, inv_std


launch_fwd = lif_cuda.launch_fwd


def partial_shapes(T, N, neurons: Neurons, wanted, save, element_size, norm: Norm, _):
    return lif_cuda.partial_shapes(T, N, neurons, wanted, save, element_size, norm)


def launch_bwd(
    currents: Currents, neurons: Neurons, saved, save: int, grads: Gradients, norm: Norm,
    norm_grads: NormGradients,
) -> None:  # fmt: skip
    grad_x = grads.x
    T, N = grad_x.shape[0], grad_x.shape[1:].numel()
    wanted = [partial is not None for partial in grads.partials]
    how = lif_cuda.backward_of(T, N, neurons, wanted, save, grad_x.element_size(), norm)
    partial = torch.empty((2, *how.norm), dtype=torch.float32, device=grad_x.device)
    lif_cuda.launch_bwd(currents, neurons, saved, save, grads, norm, partial.unbind())
    sums, weight, bias, grad_input, in_place, count = norm_grads
    if sums is None:
        sums = torch.empty((2, norm.C), dtype=torch.float64, device=grad_x.device)
    torch.sum(partial, (1, 3), dtype=torch.float64, out=sums)
    if weight is not None:
        weight.copy_(sums[1] * norm.inv_std)
    if bias is not None:
        bias.copy_(sums[0])
    grad_input = grad_x if in_place else grad_input
    if grad_input is not None:
        x, stride_t = currents
        assert x is not None
        launch_norm_bwd(grad_x, x, stride_t, norm, sums, count, grad_input)


def launch_norm_bwd(
    grad_current: Tensor, x: Tensor, stride_t: int, norm: Norm, sums: Tensor, count, grad_x: Tensor
) -> None:
    channels = lif_cuda.channels_of(norm)
    if count is None:
        x, sums = None, None  # type: ignore[assignment]
    # Timesteps that are different memory are rows as all others.
    T = grad_x.shape[0] if stride_t == 0 else 1
    size = math.prod(grad_x.shape) // T
    if sums is not None:
        sums = sums.contiguous()

    def plan() -> Launch:
        tiles = _tiles_of(size, channels, PROGRAMS)
        arguments = {
            "T": T,
            "size": size,
            "row": tiles.row,
            "rows_per_chunk": tiles.rows_per_chunk,
            "columns": tiles.columns,
            "norm_inner": channels.inner,
            "norm_size": channels.size,
            "WIDE": channels.inner * channels.size >= WIDE,
            "NORM": kind_of(channels, tiles.row, BLOCK),
            "CHUNK": GRADIENT_CHUNK,
            "BLOCK": BLOCK,
        }
        return Launch(tiles.columns * tiles.chunks, arguments, OPTIONS)

    _NORM_BWD.launch(
        batch_norm_bwd_kernel,
        grad_x.get_device(),
        (grad_current, x, norm.mean, norm.inv_std, norm.weight, sums, count, grad_x),
        (T, size, channels.inner, channels.size),
        plan,
    )
