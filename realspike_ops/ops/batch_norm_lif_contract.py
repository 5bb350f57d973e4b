"""The contract of batch norm and LIF neurons in one op: what the launches of every device take."""

from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.ops.layout import as_dense_over_time, dense_over_time, is_channels_last


class Norm(NamedTuple):
    """What stands between x and the current of the neurons.

    ``current = (x - mean[c]) * (weight[c] * inv_std[c]) + bias[c]``, then ``+ residual``, each
    operation rounded by itself to float32. Without a weight the factor is inv_std; without a bias 0
    is added; without a residual nothing is.
    """

    mean: Tensor  # [C]
    inv_std: Tensor  # [C]
    weight: Tensor | None  # [C]
    bias: Tensor | None  # [C]
    residual: Tensor | None  # [T, B, C, ...], as x lies; each timestep dense
    residual_stride_t: int  # 0 where all timesteps are the same memory
    C: int
    pixels: int
    channels_last: bool


class NormGradients(NamedTuple):
    """What a backward pass writes beside the gradients of the current and the neurons.

    Sums that are all there are need not be kept: the pass goes on to the gradient of x.
    """

    sums: Tensor | None  # float64 [2, C]: of grad_current, and of grad_current * (x - mean)
    weight: Tensor | None = None  # [C]
    bias: Tensor | None = None  # [C]
    x: Tensor | None = None  # [T, B, C, ...]
    in_place: bool = False  # the gradient of x takes the place of grad_current
    count: Tensor | None = None  # float64 [1]; see batch_norm_bwd


def norm_in_memory_order(
    x: Tensor,  # [T, B, C, ...], dense over time
    channels_last: bool,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,  # [T, B, C, ...]
) -> Norm:
    """View the norm of x as the neurons lie; a residual that lies otherwise is copied."""
    stride_t = 0
    if residual is not None:
        # A shape with one pixel or channel lies in both formats: the format of x decides.
        if is_channels_last(residual) == channels_last:
            residual, _, stride_t = dense_over_time(residual)
        else:
            residual = as_dense_over_time(residual, channels_last)
            stride_t = residual.shape[1:].numel()
    mean, inv_std = mean.contiguous(), inv_std.contiguous()
    weight = None if weight is None else weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    C, pixels = x.shape[2], x.shape[3:].numel()
    return Norm(mean, inv_std, weight, bias, residual, stride_t, C, pixels, channels_last)


def inverse_deviation(var: Tensor, eps: float) -> Tensor:
    """Return 1 / sqrt(var + eps), rounded to float32 once."""
    return (var.double() + eps).sqrt().reciprocal().to(torch.float32)
