"""How far int8 weights can move the currents of a folded network: half a step for every spike.

Scales that are powers of two round everything else too, to multiples of a power of two: half of
that for every weight that a spike meets, and for the bias.
"""

import copy
import math

import torch
from torch import Tensor, nn

from realspike_ops.nn import RealSpikeLIF, Rearrange, SumOverTime, Synapses, SynapticCurrent
from realspike_ops.reparam.build.steps import EXACT_SUMS
from realspike_ops.reparam.network import FoldedNetwork


def quantization_bounds(folded: FoldedNetwork, x: Tensor) -> list[Tensor | None]:
    """Return the largest current errors of every LIF layer, then of every output, for the spikes of
    ``folded(x)``, in the units of the trained network; None where nothing was rounded."""
    in_steps = [m for m in folded.modules() if getattr(m, "current_scale", None) is not None]
    all_rounded = bool(in_steps) and all(m.counts_in_powers_of_two for m in in_steps)
    timesteps = max(m.timesteps for m in folded.modules() if isinstance(m, RealSpikeLIF))
    half_steps: dict[str, Tensor] = {}
    handles = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        is_synapses = folded.kind_of(step.name) == "synapses"
        # Without int8 weights, no scale tells that class scores were rounded: the numbers do.
        largest = math.inf if in_steps or not is_synapses else _largest_unit(module, timesteps)
        is_rounded = is_synapses and (all_rounded or (not in_steps and largest > 0))
        if is_rounded or any(_is_int8(m) for m in module.modules()):

            def keep(module, maps, name=step.name, unit=largest if is_rounded else 0.0):
                readers = len(module.readers) if isinstance(module, SynapticCurrent) else 1
                halves = _of_half_steps(module, unit)
                # Its own forward: the copy has this hook too.
                counted = halves.forward(*(spikes.abs() for spikes in maps[:readers]))
                half_steps[name] = counted

            # With a hook the spikes come dense.
            handles.append(module.register_forward_pre_hook(keep))
    try:
        folded(x)
    finally:
        for handle in handles:
            handle.remove()
    bounds = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        if isinstance(module, RealSpikeLIF):
            counted = half_steps.get(step.inputs[0])
            scale = getattr(module, "current_scale", None)
            scale = torch.ones(()) if scale is None else scale
            bounds.append(
                None if counted is None else counted.double() * scale.to(counted).double()
            )
        elif isinstance(module, (Rearrange, SumOverTime)) and step.inputs[0] in half_steps:
            half_steps[step.name] = module.forward(half_steps[step.inputs[0]])
    outputs = (half_steps.get(name) for name in folded.outputs)
    return bounds + [None if counted is None else counted.double() for counted in outputs]


def finest(numbers: Tensor) -> float:
    """Return the largest power of two that all numbers are multiples of, 1 at most."""
    numbers = numbers.detach().double().flatten()
    numbers = numbers[numbers != 0]
    mantissa, exponent = torch.frexp(numbers)
    digits = torch.ldexp(mantissa, torch.full_like(exponent, 53)).long()  # integers
    lowest = torch.log2((digits & -digits).double()) + exponent - 53
    return 2.0 ** min([0.0, *lowest.tolist()]) if len(numbers) else 1.0


def _is_int8(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dtype == torch.uint8


def _largest_unit(module: nn.Module, timesteps: int) -> float:
    """Return the largest power of two, or more, that numbers were rounded to so that sums of them
    are exact; 0 where they were not: they are multiples of less, or of far more."""
    numbers = [p.detach().flatten() for p in module.parameters()]
    largest = max((p.abs().max().item() for p in numbers), default=0.0)
    own = min((finest(p[:4096]) for p in numbers), default=0.0)
    # Rounded up to a power of two, and once more where the sum was near it.
    unit = 4 * largest * (1 + weights_of_one_neuron(module)) * timesteps / EXACT_SUMS
    return unit if largest / EXACT_SUMS < own < 1024 * unit else 0.0


def weights_of_one_neuron(layer: nn.Module) -> int:
    """Return how many weights, at most, spikes add up to one current."""
    if isinstance(layer, SynapticCurrent):
        return sum(weights_of_one_neuron(inner) for inner in layer.synapses.values())
    if isinstance(layer, Synapses):
        return weights_of_one_neuron(layer.layer) * layer.maps * max(1, layer.sums)
    weight = getattr(layer, "weight", None)
    return 0 if weight is None else math.prod(weight.shape[-4:-1]) if weight.dim() == 7 else 1


def _of_half_steps(module: nn.Module, unit: float) -> nn.Module:
    """Return the same synapses with half a step for every int8 weight, and for everything else half
    of what that was rounded to, a power of two that is at most `unit`.

    The int8 weights themselves are not copied: one value stands for all of them.
    """
    weights = [m.get_buffer("weight") for m in module.modules() if _is_int8(m)]
    halves = {
        id(w): torch.full((1, 1, *w.shape[2:]), 0.5, dtype=torch.float32, device=w.device).expand(
            w.shape
        )
        for w in weights
    }
    copied = copy.deepcopy(module, halves)
    for parameter in copied.parameters():
        parameter.data.fill_(min(finest(parameter), unit) / 2)
    for inner in copied.modules():
        if isinstance(inner, Synapses):
            inner.signed = False
    return copied
