"""Calls of batch norm and LIF neurons on a CPU, planned as those of the neurons alone are."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import extension, pointer
from realspike_ops.ops import lif_plan
from realspike_ops.ops.batch_norm_lif_contract import norm_in_memory_order
from realspike_ops.ops.lif_contract import Neuron
from realspike_ops.ops.lif_plan import as_it_lay, in_order


class NormPlan(NamedTuple):
    """A plan of the neurons, and what the norm adds to it."""

    lif: lif_plan.Plan
    norm: tuple[int, int, int]  # residual_stride_t, C and pixels of Norm
    residual_strides: tuple[int, ...]  # () without one


@functools.lru_cache(maxsize=1024)
def norm_plan_of(
    T: int | None, neuron: Neuron, save: int, save_as: int, shape, strides, dtype, amplitude,
    residual,
) -> NormPlan | None:  # fmt: skip
    """Plan calls with an x [T*B, C, ...] or [T, B, C, ...] of these sizes; see `lif_plan.plan_of`.

    Args:
        residual: Its strides, if there is one.
    """
    lif = lif_plan.plan_of(T, neuron, save, save_as, shape, strides, dtype, amplitude)
    if lif is None:
        return None
    if lif.period == 1:  # an amplitude of one value has the sum of its gradient already
        lif = lif._replace(partial=(1, 1))
    x = lif_plan.on_meta(T, shape, strides, dtype)
    other = None if residual is None else lif_plan.on_meta(T, shape, residual, dtype)
    channels = torch.empty(x.shape[2], device="meta")
    norm = norm_in_memory_order(x, lif.channels_last, channels, channels, None, None, other)
    return NormPlan(lif, norm[5:-1], residual or ()) if norm.residual is other else None


def _arguments(
    params: Any, plan: NormPlan, tensors: Sequence[Any], values: Tensor | None, saved: Tensor | None
) -> tuple[Any, Any]:
    """Return what both passes take first, which keeps no tensor alive.

    Args:
        tensors: The first of batch_norm_lif_fwd.
        values: Of the amplitude, in the order of the neurons.
    """
    x, residual, mean, inv_std, weight, bias, *_ = tensors
    norm = extension().BatchNorm(
        mean.data_ptr(), inv_std.data_ptr(), pointer(weight), pointer(bias), pointer(residual),
        *plan.norm, plan.lif.channels_last,
    )  # fmt: skip
    return params.at(x.data_ptr(), 0, pointer(saved), pointer(values), 0, 0), norm


def planned_fwd(plan: NormPlan, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Return y and what is saved, of the tensors of batch_norm_lif_fwd."""
    x, *_, amplitude = tensors[:7]
    y, saved = lif_plan.allocate(plan.lif, x)
    values = in_order(plan.lif, amplitude)
    extension().batch_norm_lif_fwd_cpu(
        *_arguments(plan.lif.fwd, plan, tensors, values, saved), y.data_ptr(), 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return y, saved


def planned_bwd(plan: NormPlan, grad_y: Tensor, tensors: Sequence[Any], saved, count, needs):
    """Return the gradients of the tensors of batch_norm_lif_fwd."""
    x, residual, *kept = tensors
    # Hooks on saved tensors return copies that may lie otherwise.
    parameters: list[Any] = [None if t is None else t.contiguous() for t in kept]
    _, inv_std, _, _, amplitude, *_ = parameters
    x, grad_y = as_it_lay(x, plan.lif.strides), as_it_lay(grad_y, plan.lif.strides)
    residual = None if residual is None else as_it_lay(residual, plan.residual_strides)
    tensors, values = (x, residual, *parameters), in_order(plan.lif, amplitude)
    needs_x, needs_residual, _, _, needs_weight, needs_bias, needs_amplitude = needs[:7]
    grad_current = torch.empty_like(x)
    grad_x = torch.empty_like(x) if needs_x and needs_residual else grad_current
    weight, bias = (torch.empty_like(inv_std) if n else None for n in (needs_weight, needs_bias))
    partial = x.new_empty(plan.lif.partial, dtype=torch.float32) if needs_amplitude else None
    extension().batch_norm_lif_bwd_cpu(
        *_arguments(plan.lif.bwd, plan, tensors, values, saved), grad_y.data_ptr(), 0,
        grad_current.data_ptr(), 0, pointer(partial), 0, 0, 0, pointer(weight), pointer(bias),
        grad_x.data_ptr() if needs_x else 0, pointer(count), torch.get_num_threads(),
    )  # fmt: skip
    grad_amplitude = lif_plan.amplitude_gradient(plan.lif, partial, amplitude)
    grad_residual = grad_current if needs_residual else None
    return (
        grad_x if needs_x else None, grad_residual, None, None, weight, bias, grad_amplitude, None,
        None, None,
    )  # fmt: skip
