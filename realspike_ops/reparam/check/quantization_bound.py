"""How far int8 weights can move the currents of a folded network: half a step for every spike.

Scales that are powers of two round everything else too, to multiples of a power of two: half of
that for every weight that a spike meets, and for the bias.
"""

import copy

import torch
from torch import Tensor, nn

from realspike_ops.nn import RealSpikeLIF, SumOverTime, Synapses, SynapticCurrent
from realspike_ops.reparam.network import FoldedNetwork


def quantization_bounds(folded: FoldedNetwork, x: Tensor) -> list[Tensor | None]:
    """Return the largest current errors of every LIF layer, then of every output, for the spikes of
    ``folded(x)``, in the units of the trained network; None where nothing was rounded."""
    in_steps = [m for m in folded.modules() if getattr(m, "current_scale", None) is not None]
    all_rounded = bool(in_steps) and all(m.counts_in_powers_of_two for m in in_steps)
    half_steps: dict[str, Tensor] = {}
    handles = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        is_rounded = all_rounded and folded.kind_of(step.name) == "synapses"
        if is_rounded or any(_is_int8(m) for m in module.modules()):

            def keep(module, maps, name=step.name):
                readers = len(module.readers) if isinstance(module, SynapticCurrent) else 1
                halves = _of_half_steps(module, all_rounded)
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
        elif isinstance(module, SumOverTime) and step.inputs[0] in half_steps:
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


def _of_half_steps(module: nn.Module, all_rounded: bool) -> nn.Module:
    """Return the same synapses with half a step for every int8 weight, and 0 for everything else,
    or half of what that was rounded to.

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
        parameter.data.fill_(finest(parameter) / 2 if all_rounded else 0)
    for inner in copied.modules():
        if isinstance(inner, Synapses):
            inner.signed = False
    return copied
