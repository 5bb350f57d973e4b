"""The passes of batch norm and LIF neurons: statistics, neurons, and their two backward passes.

realspike::batch_norm_moments and batch_norm_statistics, batch_norm_lif_fwd, batch_norm_lif_bwd and
batch_norm_bwd. Whoever wants statistics over several processes combines moments and sums between
them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from realspike_ops.ops import LIBRARY
from realspike_ops.ops.batch_norm_lif_contract import NormGradients, norm_in_memory_order
from realspike_ops.ops.layout import (
    as_dense_over_time,
    dense_over_time,
    empty_like_over_time,
    empty_over_time,
)
from realspike_ops.ops.lif import backward_with, bwd_fake, forward_with, fwd_fake
from realspike_ops.ops.lif_contract import (
    NEURON_SCHEMA,
    Neuron,
    or_empty,
)

_NORM_SCHEMA = "Tensor mean, Tensor inv_std, Tensor? weight, Tensor? bias"
_NEURONS_SCHEMA = "Tensor? amplitude, Tensor? decay, Tensor? v_threshold, Tensor? v_init"

# Float64 [2 * C + 1]: means and biased variances over all dimensions but C, and how many values
# those are of.
LIBRARY.define("batch_norm_moments(Tensor x) -> Tensor")
# Running statistics, float32, move by `momentum` towards the moments, the variance unbiased.
LIBRARY.define(
    "batch_norm_statistics(Tensor moments, Tensor(a!)? running_mean, Tensor(b!)? running_var,"
    " float momentum, float eps) -> (Tensor mean, Tensor inv_std)"
)
# mean and inv_std are what x is normalised by. `count`, the last of its moments, says that they are
# those of x, so that its gradient goes through them. Neurons and outputs are those of lif_fwd.
LIBRARY.define(
    f"batch_norm_lif_fwd(Tensor x, Tensor? residual, {_NORM_SCHEMA}, {_NEURONS_SCHEMA},"
    f" {NEURON_SCHEMA}, int save, bool keep_state, Tensor? count)"
    " -> (Tensor y, Tensor v_last, Tensor saved)"
)
# grad_current is the residual's gradient too. sums, float64 [2, C]: of grad_current, and of
# grad_current * (x - mean). `wanted`: amplitude, decay, v_threshold, v_init.
LIBRARY.define(
    "batch_norm_lif_bwd(Tensor grad_y, Tensor? grad_v_last, Tensor x, Tensor? residual,"
    f" {_NORM_SCHEMA}, {_NEURONS_SCHEMA}, Tensor saved, bool[4] wanted, {NEURON_SCHEMA}, int save)"
    " -> (Tensor grad_current, Tensor sums, Tensor grad_amplitude, Tensor grad_decay,"
    " Tensor grad_v_threshold, Tensor grad_v_init)"
)
# grad_x = scale * (grad_current - sums[0] / count - (x - mean) * inv_std^2 * sums[1] / count) with
# scale = weight * inv_std; without a count, of constant statistics, scale * grad_current.
LIBRARY.define(
    "batch_norm_bwd(Tensor grad_current, Tensor x, Tensor mean, Tensor inv_std, Tensor? weight,"
    " Tensor sums, Tensor? count) -> Tensor"
)


class Passes(NamedTuple):
    """The passes on a device; an output that is not wanted is None.

    `norm` is moments and statistics, `gradients` both backward passes, for where no other process
    has a share in them.
    """

    moments: Callable[..., Any]
    statistics: Callable[..., Any]
    norm: Callable[..., Any]
    fwd: Callable[..., Any]
    bwd: Callable[..., Any]
    norm_bwd: Callable[..., Any]
    gradients: Callable[..., Any]


def passes_with(launches) -> Passes:
    """Make the passes of a device out of its launches, functions of dense tensors.

    `launches` returns the module that has them, when the first tensor of the device comes.
    """
    forward = forward_with(lambda *args: launches().launch_fwd(*args))
    backward = backward_with(
        lambda *args: launches().launch_bwd(*args), lambda *args: launches().partial_shapes(*args)
    )

    def moments(x):
        if x.numel() == 0:
            return torch.zeros(2 * x.shape[2] + 1, dtype=torch.float64, device=x.device)
        x, channels_last, stride_t = dense_over_time(x)
        return launches().launch_moments(x, stride_t, channels_last)

    def statistics(moments, running_mean, running_var, momentum, eps):
        return launches().launch_statistics(moments, running_mean, running_var, momentum, eps)

    def norm(x, *running):
        if x.numel() == 0:
            of_none = moments(x)
            return *statistics(of_none, *running), of_none[-1:]
        x, channels_last, stride_t = dense_over_time(x)
        return launches().launch_norm(x, stride_t, channels_last, *running)

    def fwd(x, residual, mean, inv_std, weight, bias, *neurons):
        x, channels_last, _ = dense_over_time(x)
        norm = norm_in_memory_order(x, channels_last, mean, inv_std, weight, bias, residual)
        return forward(x, *neurons, norm)

    def bwd(
        grad_y, grad_v_last, x, residual, mean, inv_std, weight, bias, amplitude, decay,
        v_threshold, v_init, saved, wanted, neuron, save,
    ):  # fmt: skip
        x, channels_last, _ = dense_over_time(x)
        norm = norm_in_memory_order(x, channels_last, mean, inv_std, weight, bias, residual)
        sums = torch.zeros((2, x.shape[2]), dtype=torch.float64, device=x.device)
        grad_current, *grads = backward(
            grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved, channels_last,
            wanted, neuron, save, norm, NormGradients(sums),
        )  # fmt: skip
        return grad_current, sums, *grads

    def norm_bwd(grad_current, x, mean, inv_std, weight, sums, count, in_place=False):
        x, channels_last, stride_t = dense_over_time(x)
        grad_current = as_dense_over_time(grad_current, channels_last)
        grad_x = grad_current if in_place else empty_like_over_time(grad_current, channels_last)
        if x.numel() > 0:
            norm = norm_in_memory_order(x, channels_last, mean, inv_std, weight, None, None)
            launches().launch_norm_bwd(grad_current, x, stride_t, norm, sums, count, grad_x)
        return grad_x

    def gradients(
        grad_y, grad_v_last, x, residual, mean, inv_std, weight, bias, amplitude, decay,
        v_threshold, v_init, saved, count, needs, neuron, save,
    ):  # fmt: skip
        x, channels_last, _ = dense_over_time(x)
        norm = norm_in_memory_order(x, channels_last, mean, inv_std, weight, bias, residual)
        needs_x, needs_residual, _, _, needs_weight, needs_bias, *wanted = needs
        norm_grads = NormGradients(
            None,
            torch.empty_like(inv_std) if needs_weight else None,
            torch.empty_like(inv_std) if needs_bias else None,
            empty_like_over_time(x, channels_last) if needs_x and needs_residual else None,
            needs_x and not needs_residual,
            count,
        )
        grad_current, *grads = backward(
            grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved, channels_last,
            wanted, neuron, save, norm, norm_grads,
        )  # fmt: skip
        grad_x = grad_current if norm_grads.in_place else norm_grads.x
        grad_residual = grad_current if needs_residual else None
        return grad_x, grad_residual, None, None, norm_grads.weight, norm_grads.bias, *grads

    return Passes(moments, statistics, norm, fwd, bwd, norm_bwd, gradients)


@functools.cache
def _on_cpu():
    from realspike_ops.ops import batch_norm_lif_cpu

    return batch_norm_lif_cpu


@functools.cache
def _on_cuda():
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    from realspike_ops.ops import batch_norm_lif_cuda

    return batch_norm_lif_cuda


PASSES = {"cpu": passes_with(_on_cpu), "cuda": passes_with(_on_cuda)}


def _moments_fake(x):
    return torch.empty(2 * x.shape[2] + 1, dtype=torch.float64, device=x.device)


def _statistics_fake(moments, running_mean, running_var, momentum, eps):
    shape = (moments.shape[0] // 2,)
    return tuple(torch.empty(shape, dtype=torch.float32, device=moments.device) for _ in range(2))


def _fwd_fake(x, residual, mean, inv_std, weight, bias, *neurons):
    return fwd_fake(x, *neurons[:-1])  # the count is for the derivative alone


def _bwd_fake(
    grad_y, grad_v_last, x, residual, mean, inv_std, weight, bias, amplitude, decay, v_threshold,
    v_init, saved, *rest,
):  # fmt: skip
    grad_current, *grads = bwd_fake(
        grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved,
        dense_over_time(x)[1], *rest,
    )  # fmt: skip
    sums = torch.empty((2, x.shape[2]), dtype=torch.float64, device=x.device)
    return grad_current, sums, *grads


def _norm_bwd_fake(grad_current, x, mean, inv_std, weight, sums, count):
    x, channels_last, _ = dense_over_time(x)
    return empty_over_time(x.shape, channels_last, x.dtype, x.device)


def _registered_fwd(fwd):
    def call(*args):
        *tensors, _ = args  # the count is for the derivative alone
        fixed, (*neuron, save, keep_state) = tensors[:10], tensors[10:]
        y, v_last, saved = fwd(*fixed, Neuron(*neuron), save, keep_state)
        return y, *or_empty(y, v_last, saved)

    return call


def _registered_bwd(bwd):
    def call(*args):
        fixed, (*neuron, save) = args[:14], args[14:]
        grad_current, sums, *grads = bwd(*fixed, Neuron(*neuron), save)
        return grad_current, sums, *or_empty(grad_current, *grads)

    return call


for device, passes in PASSES.items():
    LIBRARY.impl("batch_norm_moments", passes.moments, device.upper())
    LIBRARY.impl("batch_norm_statistics", passes.statistics, device.upper())
    LIBRARY.impl("batch_norm_lif_fwd", _registered_fwd(passes.fwd), device.upper())
    LIBRARY.impl("batch_norm_lif_bwd", _registered_bwd(passes.bwd), device.upper())
    LIBRARY.impl("batch_norm_bwd", passes.norm_bwd, device.upper())
for name, fake in (
    ("batch_norm_moments", _moments_fake),
    ("batch_norm_statistics", _statistics_fake),
    ("batch_norm_lif_fwd", _fwd_fake),
    ("batch_norm_lif_bwd", _bwd_fake),
    ("batch_norm_bwd", _norm_bwd_fake),
):
    torch.library.register_fake(f"realspike::{name}", fake, lib=LIBRARY)
