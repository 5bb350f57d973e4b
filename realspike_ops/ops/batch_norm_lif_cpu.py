"""Launches of the C++ kernels of batch norm and LIF neurons on dense CPU tensors.

csrc/cpu/batch_norm_lif/launch.cpp has them.
"""

import math

import torch
from torch import Tensor

from realspike_ops._native import DTYPES, extension, pointer
from realspike_ops.ops import lif_cpu
from realspike_ops.ops.batch_norm_lif_contract import Norm, NormGradients
from realspike_ops.ops.lif_contract import Currents, Gradients, Neurons
from realspike_ops.ops.lif_cpu import lif_params


def _batch_norm(norm: Norm):
    return extension().BatchNorm(
        norm.mean.data_ptr(), norm.inv_std.data_ptr(), pointer(norm.weight), pointer(norm.bias),
        pointer(norm.residual), norm.residual_stride_t, norm.C, norm.pixels, norm.channels_last,
    )  # fmt: skip


def launch_moments(x: Tensor, stride_t: int, channels_last: bool) -> Tensor:
    T, B, C = x.shape[:3]
    moments = x.new_empty(2 * C + 1, dtype=torch.float64)
    extension().batch_norm_moments_cpu(
        x.data_ptr(), DTYPES[x.dtype], T, B, C, x.shape[3:].numel(), channels_last, stride_t,
        moments.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return moments


def launch_norm(
    x: Tensor, stride_t: int, channels_last: bool, running_mean, running_var, momentum, eps
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `launch_statistics` makes of the moments of x, and their number of values."""
    T, B, C, *pixels = x.shape
    mean, inv_std = x.new_empty(C, dtype=torch.float32), x.new_empty(C, dtype=torch.float32)
    count = x.new_empty(1, dtype=torch.float64)
    extension().batch_norm_of_cpu(
        x.data_ptr(), DTYPES[x.dtype], T, B, C, math.prod(pixels), channels_last, stride_t,
        pointer(running_mean), pointer(running_var), mean.data_ptr(), inv_std.data_ptr(),
        count.data_ptr(), momentum, eps, torch.get_num_threads(),
    )  # fmt: skip
    return mean, inv_std, count


def launch_statistics(
    moments: Tensor, running_mean, running_var, momentum: float, eps: float
) -> tuple[Tensor, Tensor]:
    C = moments.shape[0] // 2
    mean, inv_std = (moments.new_empty(C, dtype=torch.float32) for _ in range(2))
    extension().batch_norm_statistics_cpu(
        moments.data_ptr(), pointer(running_mean), pointer(running_var), mean.data_ptr(),
        inv_std.data_ptr(), C, momentum, eps,
    )  # fmt: skip
    return mean, inv_std


def launch_fwd(currents: Currents, neurons: Neurons, y, v_last, saved, save, norm: Norm) -> None:
    extension().batch_norm_lif_fwd_cpu(
        lif_params(currents, neurons, saved, save, y), _batch_norm(norm), y.data_ptr(),
        pointer(v_last), torch.get_num_threads(),
    )  # fmt: skip


def partial_shapes(T, N, neurons: Neurons, *how) -> list[tuple[int, int]]:
    # A parameter of one value has its sum already.
    return [(1, 1)] * 3 if neurons.period == 1 else lif_cpu.partial_shapes(T, N, neurons, *how)


def launch_bwd(
    currents: Currents, neurons: Neurons, saved, save: int, grads: Gradients, norm: Norm,
    norm_grads: NormGradients,
) -> None:  # fmt: skip
    sums, weight, bias, grad_x, in_place, count = norm_grads
    written = (
        grads.y, grads.v_last, grads.x, grads.v_init, *grads.partials, sums, weight, bias,
        grads.x if in_place else grad_x, count,
    )  # fmt: skip
    extension().batch_norm_lif_bwd_cpu(
        lif_params(currents, neurons, saved, save, grads.x), _batch_norm(norm),
        *map(pointer, written), torch.get_num_threads(),
    )  # fmt: skip


def launch_norm_bwd(
    grad_current: Tensor, x: Tensor, stride_t: int, norm: Norm, sums: Tensor, count, grad_x: Tensor
) -> None:
    extension().batch_norm_bwd_cpu(
        _batch_norm(norm), DTYPES[x.dtype], x.shape[0], x.shape[1], grad_current.data_ptr(),
        x.data_ptr(), stride_t, sums.data_ptr(), pointer(count), grad_x.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
