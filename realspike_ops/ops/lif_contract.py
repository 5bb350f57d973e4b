"""What the ops of LIF neurons agree on: the form of the neuron, its schema, what backward keeps."""

from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.ops.lif_parameters import PerNeuron, in_memory_order

# csrc/core/lif.h
SAVE_NOTHING, SAVE_BITS, SAVE_POTENTIALS = 0, 1, 2
BITS_INTERVAL, POTENTIAL_INTERVAL = 4, 8

NEURON_SCHEMA = (
    "float decay_value, float v_threshold_value, float v_reset, str reset, bool detach_reset, "
    "bool ternary, str surrogate, float surrogate_scale"
)


class Neuron(NamedTuple):
    """The form of the neuron, as the kernels take it."""

    decay: float
    v_threshold: float
    v_reset: float
    reset: str  # hard, soft, none or soft_delayed
    detach_reset: bool
    ternary: bool
    surrogate: str
    surrogate_scale: float


def what_to_save(neuron: Neuron, *learnable: Tensor | None) -> int:
    """Return what backward needs, where decay and threshold are `learnable`."""
    learns = any(parameter is not None and parameter.requires_grad for parameter in learnable)
    # With a detached reset and a window for a surrogate, whether it fired and whether it was in the
    # window is all there is to know.
    if neuron.detach_reset and neuron.surrogate == "rectangular" and not learns:
        return SAVE_BITS
    return SAVE_POTENTIALS


def neuron_parameters(
    amplitude: Tensor | None,
    decay: Tensor | None,
    v_threshold: Tensor | None,
    neuron: Neuron,
    shape: tuple[int, ...],  # of one sample: [...]
    channels_last: bool,
) -> tuple[PerNeuron, PerNeuron, PerNeuron]:
    """View all parameters of the neurons as the neurons lie."""
    return (
        in_memory_order(amplitude, 1.0, shape, channels_last),
        in_memory_order(decay, neuron.decay, shape, channels_last),
        in_memory_order(v_threshold, neuron.v_threshold, shape, channels_last),
    )


def or_empty(like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """An op's schema has a tensor for every output: an empty one stands for what is not wanted."""
    return tuple(
        torch.empty((0,), dtype=torch.float32, device=like.device) if tensor is None else tensor
        for tensor in tensors
    )
