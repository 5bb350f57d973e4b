"""realspike::lif_packed: LIF inference whose spikes are bits from the start."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_cpu, lif_vmap
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import dense_over_time, empty_maps
from realspike_ops.ops.lif import on_cuda
from realspike_ops.ops.lif_contract import (
    NEURON_SCHEMA,
    Currents,
    Neuron,
    neurons_in_memory_order,
    or_empty,
)
from realspike_ops.ops.pack_spikes import words_of

LIBRARY.define(
    "lif_packed(Tensor x, Tensor? decay, Tensor? v_threshold, Tensor? v_init,"
    f" {NEURON_SCHEMA}, bool keep_state) -> (Tensor packed, Tensor v_last)"
)


def _allocate(x: Tensor, ternary: bool) -> Tensor:
    T, B, C, *pixels = x.shape
    planes = (2,) if ternary else ()
    return x.new_empty((*planes, T, B, *pixels, words_of(C)), dtype=torch.int32)


def _packed_with(launch):
    """Make the forward pass of a device out of `launch`; v_last is None where it is not wanted."""

    def fwd(x, decay, v_threshold, v_init, neuron, keep_state):
        x, channels_last, stride_t = dense_over_time(x)
        packed = _allocate(x, neuron.ternary)
        v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
        if x.numel() > 0:
            neurons = neurons_in_memory_order(
                None, decay, v_threshold, v_init, neuron, x.shape[2:], channels_last
            )
            launch(Currents(x, stride_t), neurons, packed, v_last, channels_last)
        return packed, v_last

    return fwd


def _registered(fwd):
    def call(x, decay, v_threshold, v_init, *form):
        *neuron, keep_state = form
        packed, v_last = fwd(x, decay, v_threshold, v_init, Neuron(*neuron), keep_state)
        return packed, *or_empty(x, v_last)

    return call


def _fake(x, decay, v_threshold, v_init, *form):
    *neuron, keep_state = form
    x, channels_last, _ = dense_over_time(x)
    v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
    return _allocate(x, Neuron(*neuron).ternary), *or_empty(x, v_last)


_FWD: dict[str, Callable[..., Any]] = {
    "cpu": _packed_with(lif_cpu.launch_packed),
    "cuda": _packed_with(on_cuda("launch_packed")),
}
for device in _FWD:
    LIBRARY.impl("lif_packed", _registered(_FWD[device]), device.upper())
torch.library.register_fake("realspike::lif_packed", _fake, lib=LIBRARY)
torch.library.register_vmap("realspike::lif_packed", lif_vmap.lif_packed, lib=LIBRARY)


def lif_packed(
    x: Tensor,
    decay: Tensor | None,
    v_threshold: Tensor | None,
    v_init: Tensor | None,
    neuron: Neuron,
    keep_state: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the words, with `keep_state` (words, v_last)."""
    tensors = (x, decay, v_threshold, v_init)
    if x.device.type in _FWD and is_plain_eager(*tensors):
        packed, v_last = _FWD[x.device.type](*tensors, neuron, keep_state)
    else:
        packed, v_last = torch.ops.realspike.lif_packed(*tensors, *neuron, keep_state)
    return (packed, v_last) if keep_state else packed
