"""Sums to the gradient of a parameter, in an order that depends on sizes alone."""

import torch
from torch import Tensor

from realspike_ops.ops.eager import is_plain_eager

# From this many numbers on, torch shares a sum out among threads, on the CPU.
_SUM_OF_ONE_THREAD = 32768


def sum_in_one_order(x: Tensor, dims: list[int]) -> Tensor:
    """Sum in an order that depends on sizes alone, also where torch's depends on its threads.

    Halves are added to each other until the rest is a sum of one thread.
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
    partial: Tensor,  # [chunks, row], a row a multiple of `period` columns; or [pieces, size, runs]
    period: int,
    parameter: Tensor,
    shape: tuple[int, ...],  # of one sample: [...]
    channels_last: bool,
) -> Tensor:
    """Add up a kernel's partial sums to a parameter's gradient: one sum, in a fixed order.

    A kernel that knows which columns share a value of the parameter has added them up to runs, in
    the order of its `size` values. Else it leaves one sum for each column.
    """
    if partial.numel() == parameter.numel() and not channels_last:
        return partial.view(parameter.shape)  # nothing to add up
    if partial.dim() == 3:
        return sum_in_one_order(partial, [0, 2]).reshape(parameter.shape)
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
    if dims == [0] and partial.shape[0] == 1:
        return partial.reshape(parameter.shape)
    return sum_in_one_order(partial, dims).reshape(parameter.shape)
