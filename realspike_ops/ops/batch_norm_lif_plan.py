"""Calls of batch norm and LIF neurons on a CPU, planned once for all whose tensors lie alike.

A network of small layers is as quick as its host. Nothing but the memory of the tensors is left to
find out for a call that a plan serves; calls whose tensors have to be copied first have none.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import extension, pointer
from realspike_ops.ops.batch_norm_lif_contract import norm_in_memory_order
from realspike_ops.ops.batch_norm_lif_cpu import partial_shapes
from realspike_ops.ops.layout import dense_over_time, empty_like_over_time
from realspike_ops.ops.lif_contract import (
    Currents,
    Neuron,
    allocate_saved,
    neurons_in_memory_order,
)
from realspike_ops.ops.lif_cpu import lif_params
from realspike_ops.ops.ordered_sum import sum_to_parameter


class Plan(NamedTuple):
    """What a call of tensors that lie as the kernels read them comes to, but for their memory."""

    T: int | None  # timesteps of x [T*B, C, ...]; None: x is [T, B, C, ...]
    fwd: Any  # LifParams
    bwd: Any  # LifParams
    norm: tuple[int, int, int]  # residual_stride_t, C and pixels of Norm
    channels_last: bool
    saved: tuple[torch.Size, torch.dtype] | None
    partial: tuple[int, int]  # of the amplitude's gradient
    period: int
    sample: torch.Size  # [C, ...]
    strides: tuple[int, ...]  # of x
    residual_strides: tuple[int, ...] | None


@functools.lru_cache(maxsize=1024)
def plan_of(
    T: int | None, neuron: Neuron, save: int, save_as: int, shape, strides, dtype, residual,
    amplitude,
) -> Plan | None:  # fmt: skip
    """Plan calls with an x of these sizes; None where a tensor has to be copied first.

    Args:
        T: See `Plan`.
        save: What backward needs.
        save_as: What forward saves; see `save_with_spikes`.
        residual: Its strides, if there is one.
        amplitude: Its sizes and strides, if there is one.
    """

    def over_time(strides) -> Tensor:
        t = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
        return t if T is None else t.unflatten(0, (T, shape[0] // T))

    x, other = over_time(strides), None if residual is None else over_time(residual)
    factor = None if amplitude is None else torch.empty_strided(*amplitude, device="meta")
    if x.numel() == 0:
        return None
    dense, channels_last, stride_t = dense_over_time(x)
    sample = x.shape[2:]
    neurons = neurons_in_memory_order(factor, None, None, None, neuron, sample, channels_last)
    channels = torch.empty(sample[0], device="meta")
    norm = norm_in_memory_order(x, channels_last, channels, channels, None, None, other)
    found = (dense, norm.residual, neurons.parameters[0].values)
    if any(a is not b for a, b in zip(found, (x, other, factor), strict=True)):
        return None
    if empty_like_over_time(x, channels_last).stride() != x.stride():
        return None  # equal timesteps, which are the same memory
    saved = allocate_saved(x, neuron.ternary, save_as)
    fwd, bwd = (lif_params(Currents(x, stride_t), neurons, saved, s, x) for s in (save_as, save))
    return Plan(
        T,
        fwd,
        bwd,
        norm[5:-1],
        channels_last,
        None if saved is None else (saved.shape, saved.dtype),
        partial_shapes(x.shape[0], x.shape[1:].numel(), neurons)[0],
        neurons.period,
        sample,
        strides,
        residual,
    )


def _arguments(params: Any, plan: Plan, tensors: Sequence[Any], saved: Tensor | None):
    """Return what both passes take first; `tensors` are the first of batch_norm_lif_fwd."""
    x, residual, mean, inv_std, weight, bias, amplitude, *_ = tensors
    norm = extension().BatchNorm(
        mean.data_ptr(), inv_std.data_ptr(), pointer(weight), pointer(bias), pointer(residual),
        *plan.norm, plan.channels_last,
    )  # fmt: skip
    return params.at(x.data_ptr(), 0, pointer(saved), pointer(amplitude), 0, 0), norm


def planned_fwd(plan: Plan, tensors: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """Return y and what is saved, of the tensors of batch_norm_lif_fwd."""
    x = tensors[0]
    y = torch.empty_like(x)
    saved = None if plan.saved is None else x.new_empty(plan.saved[0], dtype=plan.saved[1])
    extension().batch_norm_lif_fwd_cpu(
        *_arguments(plan.fwd, plan, tensors, saved), y.data_ptr(), 0, torch.get_num_threads()
    )
    return y, saved


def _as_it_lay(t: Tensor, strides) -> Tensor:
    if t.stride() == strides:
        return t
    once = t[:1] if strides[0] == 0 else t  # equal timesteps are the same memory
    copy = torch.empty_strided(once.shape, strides, dtype=t.dtype, device=t.device).copy_(once)
    return copy.expand_as(t)


def planned_bwd(plan: Plan, grad_y: Tensor, tensors: Sequence[Any], saved: Tensor, count, needs):
    """Return the gradients of the tensors of batch_norm_lif_fwd."""
    x, residual, *kept = tensors
    # Hooks on saved tensors return copies that may lie otherwise.
    parameters: list[Any] = [None if t is None else t.contiguous() for t in kept]
    _, inv_std, _, _, amplitude, *_ = parameters
    x, grad_y = _as_it_lay(x, plan.strides), _as_it_lay(grad_y, plan.strides)
    residual = None if residual is None else _as_it_lay(residual, plan.residual_strides)
    tensors = (x, residual, *parameters)
    needs_x, needs_residual, _, _, needs_weight, needs_bias, needs_amplitude = needs[:7]
    grad_current = torch.empty_like(x)
    grad_x = torch.empty_like(x) if needs_x and needs_residual else grad_current
    weight, bias = (torch.empty_like(inv_std) if n else None for n in (needs_weight, needs_bias))
    partial = x.new_empty(plan.partial, dtype=torch.float32) if needs_amplitude else None
    extension().batch_norm_lif_bwd_cpu(
        *_arguments(plan.bwd, plan, tensors, saved), grad_y.data_ptr(), 0,
        grad_current.data_ptr(), 0, pointer(partial), 0, 0, 0, pointer(weight), pointer(bias),
        grad_x.data_ptr() if needs_x else 0, pointer(count), torch.get_num_threads(),
    )  # fmt: skip
    if partial is not None:
        partial = sum_to_parameter(partial, plan.period, amplitude, plan.sample, plan.channels_last)
    grad_residual = grad_current if needs_residual else None
    return (
        grad_x if needs_x else None, grad_residual, None, None, weight, bias, partial, None, None,
        None,
    )  # fmt: skip
