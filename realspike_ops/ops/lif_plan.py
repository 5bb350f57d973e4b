"""Calls of LIF neurons on a CPU, planned once for all whose tensors lie alike.

A network of small layers is as quick as its host. Nothing but the memory of the tensors is left to
find out for a call that a plan serves; calls whose currents have to be copied first have none.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import extension, pointer
from realspike_ops.ops.layout import dense_over_time, empty_like_over_time
from realspike_ops.ops.lif_contract import (
    Currents,
    Neuron,
    allocate_saved,
    in_memory_order,
    neurons_in_memory_order,
)
from realspike_ops.ops.lif_cpu import lif_params, partial_shapes
from realspike_ops.ops.ordered_sum import sum_to_parameter


class Plan(NamedTuple):
    """What a call of tensors that lie as the kernels read them comes to, but for their memory."""

    T: int | None  # timesteps of x [T*B, ...]; None: x is [T, B, ...]
    fwd: Any  # LifParams
    bwd: Any  # LifParams
    channels_last: bool
    saved: tuple[torch.Size, torch.dtype] | None
    partial: tuple[int, int]  # of the amplitude's gradient
    period: int
    sample: torch.Size  # [...]
    strides: tuple[int, ...]  # of x
    copies_amplitude: bool  # to the order of the neurons


def on_meta(T: int | None, shape: Sequence[int], strides: Sequence[int], dtype) -> Tensor:
    """Return a tensor [T, B, ...] without memory that lies like one of these sizes."""
    t = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    return t if T is None else t.unflatten(0, (T, shape[0] // T))


@functools.lru_cache(maxsize=1024)
def plan_of(
    T: int | None, neuron: Neuron, save: int, save_as: int, shape, strides, dtype, amplitude
) -> Plan | None:
    """Plan calls with an x of these sizes; None where it has to be copied first.

    Args:
        T: See `Plan`.
        save: What backward needs.
        save_as: What forward saves; see `save_with_spikes`.
        amplitude: Its sizes and strides, if there is one.
    """
    x = on_meta(T, shape, strides, dtype)
    factor = None if amplitude is None else torch.empty_strided(*amplitude, device="meta")
    if x.numel() == 0:
        return None
    dense, channels_last, stride_t = dense_over_time(x)
    sample = x.shape[2:]
    neurons = neurons_in_memory_order(factor, None, None, None, neuron, sample, channels_last)
    if dense is not x:
        return None
    if empty_like_over_time(x, channels_last).stride() != x.stride():
        return None  # equal timesteps, which are the same memory
    saved = allocate_saved(x, neuron.ternary, save_as)
    fwd, bwd = (lif_params(Currents(x, stride_t), neurons, saved, s, x) for s in (save_as, save))
    return Plan(
        T,
        fwd,
        bwd,
        channels_last,
        None if saved is None else (saved.shape, saved.dtype),
        partial_shapes(x.shape[0], x.shape[1:].numel(), neurons)[0],
        neurons.period,
        sample,
        strides,
        neurons.parameters[0].values is not factor,
    )


def allocate(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Allocate y and what is saved."""
    saved = None if plan.saved is None else x.new_empty(plan.saved[0], dtype=plan.saved[1])
    return torch.empty_like(x), saved


def planned_fwd(plan: Plan, x: Tensor, amplitude: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return y and what is saved."""
    y, saved = allocate(plan, x)
    amplitude = in_order(plan, amplitude)
    params = plan.fwd.at(x.data_ptr(), 0, pointer(saved), pointer(amplitude), 0, 0)
    extension().lif_fwd_cpu(params, y.data_ptr(), 0, torch.get_num_threads())
    return y, saved


def in_order(plan: Plan, amplitude: Tensor | None) -> Tensor | None:
    """Return the values of an amplitude side by side, in the order of the neurons."""
    if amplitude is None:
        return None
    if not plan.copies_amplitude:
        return amplitude.contiguous()
    return in_memory_order(amplitude, 1.0, plan.sample, plan.channels_last).values


def as_it_lay(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return a tensor of these strides, copied only if it lies otherwise."""
    if t.stride() == strides:
        return t
    once = t[:1] if strides[0] == 0 else t  # equal timesteps are the same memory
    copy = torch.empty_strided(once.shape, strides, dtype=t.dtype, device=t.device).copy_(once)
    return copy.expand_as(t)


def planned_bwd(
    plan: Plan,
    grad_y: Tensor,
    x: Tensor | None,  # None where bits were saved
    amplitude: Tensor | None,
    saved: Tensor,
    wants_amplitude: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of x and of the amplitude."""
    # Hooks on saved tensors return copies that may lie otherwise.
    x = None if x is None else as_it_lay(x, plan.strides)
    grad_y, values = as_it_lay(grad_y, plan.strides), in_order(plan, amplitude)
    grad_x = torch.empty_like(grad_y)
    partial = grad_y.new_empty(plan.partial, dtype=torch.float32) if wants_amplitude else None
    params = plan.bwd.at(pointer(x), 0, saved.data_ptr(), pointer(values), 0, 0)
    extension().lif_bwd_cpu(
        params, grad_y.data_ptr(), 0, grad_x.data_ptr(), 0, pointer(partial), 0, 0,
        torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, amplitude_gradient(plan, partial, amplitude)


def amplitude_gradient(
    plan: Plan, partial: Tensor | None, amplitude: Tensor | None
) -> Tensor | None:
    """Add up partial sums, if there are any."""
    if partial is None or amplitude is None:
        return None
    return sum_to_parameter(partial, plan.period, amplitude, plan.sample, plan.channels_last)
