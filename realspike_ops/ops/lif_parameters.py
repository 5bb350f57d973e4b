"""The parameters of the neurons (amplitude, decay, threshold) in memory order, and their gradients.

csrc/core/lif.h: neuron n has values[(n / inner) % size], or one value for all.
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.ops.eager import is_plain_eager


class PerNeuron(NamedTuple):
    """One parameter as the kernels take it."""

    values: Tensor | None  # [size], float32
    all: float  # where values is None
    inner: int
    size: int


@functools.lru_cache(maxsize=1024)
def _for_all(value: float) -> PerNeuron:
    return PerNeuron(None, value, 1, 1)


def in_memory_order(
    parameter: Tensor | None, otherwise: float, shape: tuple[int, ...], channels_last: bool
) -> PerNeuron:
    """View a parameter that broadcasts against the features `shape` as the neurons lie."""
    if parameter is None:
        return _for_all(otherwise)
    size = parameter.numel()
    if size == 1:
        return PerNeuron(parameter, otherwise, 1, 1)
    if channels_last:
        C, H, W = shape
        if size == C and parameter.shape == (C, 1, 1):
            return PerNeuron(parameter.contiguous(), otherwise, 1, C)
        values = parameter.expand(C, H, W).permute(1, 2, 0).contiguous()
        return PerNeuron(values, otherwise, 1, C * H * W)
    # The functional layer has expanded a parameter whose varying dimensions are not neighbours.
    trailing_ones = 0
    while parameter.shape[-1 - trailing_ones] == 1:
        trailing_ones += 1
    inner = math.prod(shape[len(shape) - trailing_ones :])
    return PerNeuron(parameter.contiguous(), otherwise, inner, size)


def period_of(parameters: tuple[PerNeuron, ...], shape: torch.Size) -> int:
    """Neurons after which all parameters repeat; a sample has `shape`."""
    for parameter in parameters:
        if parameter.size > 1:
            return shape.numel()
    return 1


# A sum of so many numbers or more is shared out among threads by torch, on the CPU.
_SUM_OF_ONE_THREAD = 32768


def sum_in_one_order(x: Tensor, dims: list[int]) -> Tensor:
    """Sum in an order that depends on sizes alone, also where torch would go by its threads.

    Halves are added to each other until what is left is one thread's.
    """
    if x.device.type == "cpu" and is_plain_eager(x):
        for dim in dims:
            while x.shape[dim] > 1 and x.numel() >= _SUM_OF_ONE_THREAD:
                half = x.shape[dim] // 2
                odd = x.narrow(dim, 2 * half, x.shape[dim] % 2)
                x = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
                x = torch.cat((x, odd), dim) if odd.numel() else x
    return x.sum(dims)


def sum_to_parameter(
    partial: Tensor,  # [chunks, row]; a row holds the sums of a multiple of `period` columns
    period: int,
    parameter: Tensor,
    shape: tuple[int, ...],  # of one sample: [...]
    channels_last: bool,
) -> Tensor:
    """Add up a kernel's partial sums to a parameter's gradient: one sum, in a fixed order."""
    if period == 1:
        return sum_in_one_order(partial.flatten(), [0]).reshape(parameter.shape)
    features = len(shape)
    ones = features - parameter.dim()
    dims = [0] + [
        1 + d for d in range(features) if d < ones or parameter.shape[d - ones] != shape[d]
    ]
    if channels_last:
        C, H, W = shape
        partial = partial.view(-1, H, W, C).permute(0, 3, 1, 2)
    else:
        partial = partial.view(-1, *shape)
    return sum_in_one_order(partial, dims).reshape(parameter.shape)
