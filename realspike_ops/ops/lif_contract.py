"""The contract of the ops of LIF neurons: form, parameters, schema, and what backward keeps.

The kernels see N neurons side by side in memory order (csrc/core/lif.h).
"""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from realspike_ops.ops.layout import as_step

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


def requires_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd follows a call with these tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop takes less time than any() of a generator
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def refuse_gradient(op: str) -> RuntimeError:
    """Return the error of a gradient through a call that saves nothing."""
    return RuntimeError(
        f"realspike::{op}: save must not be 0 where a gradient is required. What was recorded "
        "without gradients (torch.export, torch.jit.trace) is run, and compiled, under "
        "torch.no_grad(); to train it, record it with an input that requires one. torch.func.vmap "
        "hides that: put the vmapped dimension into the batch"
    )


def what_to_save(neuron: Neuron, *learnable: Tensor | None) -> int:
    """Return what backward needs, where decay and threshold are `learnable`."""
    for parameter in learnable:
        if parameter is not None and parameter.requires_grad:
            return SAVE_POTENTIALS
    # With a detached reset and the rectangular surrogate, backward needs two bits of a neuron:
    # whether it fired, and whether its potential was in the window.
    is_simple = neuron.detach_reset and neuron.surrogate == "rectangular"
    return SAVE_BITS if is_simple else SAVE_POTENTIALS


def allocate_saved(x: Tensor, ternary: bool, save: int) -> Tensor | None:
    """Allocate what backward needs of neurons on x [T, B, ...]."""
    T, N = x.shape[0], math.prod(x.shape[1:])
    if save == SAVE_BITS:
        word = torch.int16 if ternary else torch.uint8
        return torch.empty((-(-T // BITS_INTERVAL), N), dtype=word, device=x.device)
    if save == SAVE_POTENTIALS:
        shape = (-(-T // POTENTIAL_INTERVAL) - 1, N)
        return torch.empty(shape, dtype=torch.float32, device=x.device)
    return None


class PerNeuron(NamedTuple):
    """One parameter as the kernels take it: neuron n has values[(n / inner) % size]."""

    values: Tensor | None  # [size], float32
    all: float  # the value of all neurons where values is None
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


def period_of(parameters: tuple[PerNeuron, ...], shape: tuple[int, ...]) -> int:
    """Return the number of neurons after which all parameters repeat; a sample has `shape`."""
    for parameter in parameters:
        if parameter.size > 1:
            return math.prod(shape)
    return 1


class Neurons(NamedTuple):
    """The neurons of a launch."""

    form: Neuron
    parameters: tuple[PerNeuron, PerNeuron, PerNeuron]  # amplitude, decay, v_threshold
    period: int  # neurons after which all parameters repeat
    v_init: Tensor | None  # [B, ...], in memory order


@functools.lru_cache(maxsize=1024)
def _alike(form: Neuron) -> Neurons:
    """Return neurons that start at rest and have no parameters of their own."""
    values = (1.0, form.decay, form.v_threshold)
    amplitude, decay, v_threshold = map(_for_all, values)
    return Neurons(form, (amplitude, decay, v_threshold), 1, None)


def neurons_in_memory_order(
    amplitude: Tensor | None,
    decay: Tensor | None,
    v_threshold: Tensor | None,
    v_init: Tensor | None,  # [B, ...]
    form: Neuron,
    shape: tuple[int, ...],  # of one sample: [...]
    channels_last: bool,
) -> Neurons:
    """View all that neurons of a sample of `shape` have as the neurons lie."""
    if amplitude is decay is v_threshold is v_init is None:
        return _alike(form)
    parameters = (
        in_memory_order(amplitude, 1.0, shape, channels_last),
        in_memory_order(decay, form.decay, shape, channels_last),
        in_memory_order(v_threshold, form.v_threshold, shape, channels_last),
    )
    v_init = None if v_init is None else as_step(v_init, channels_last)
    return Neurons(form, parameters, period_of(parameters, shape), v_init)


class Currents(NamedTuple):
    """The input of a launch."""

    x: Tensor | None  # [T, B, ...], each timestep dense; None where bits were kept instead
    stride_t: int  # 0 where all timesteps are the same memory


class Gradients(NamedTuple):
    """The tensors that a backward pass reads and writes."""

    y: Tensor  # [T, B, ...]; read
    v_last: Tensor | None  # [B, ...]; read
    x: Tensor  # [T, B, ...]
    partials: list[Tensor | None]  # of amplitude, decay and v_threshold (sum_to_parameter)
    v_init: Tensor | None  # [B, ...]


def or_empty(like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Put an empty tensor in the place of None: an op's schema has a tensor for every output."""
    return tuple(
        torch.empty((0,), dtype=torch.float32, device=like.device) if tensor is None else tensor
        for tensor in tensors
    )
