"""How far int8 weights can move the currents of a folded network: half a step for every spike."""

import copy

import torch
from torch import Tensor, nn

from realspike_ops.nn import RealSpikeLIF, Synapses, SynapticCurrent
from realspike_ops.reparam.network import FoldedNetwork


def quantization_bounds(folded: FoldedNetwork, x: Tensor) -> "list[Tensor | None]":
    """Return the largest current errors of every LIF layer for the spikes of ``folded(x)``, in the
    units of the trained network; None for layers that no int8 weight reaches."""
    half_steps: dict[str, Tensor] = {}
    handles = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        if any(_is_int8(m) for m in module.modules()):

            def keep(module, maps, name=step.name):
                readers = len(module.readers) if isinstance(module, SynapticCurrent) else 1
                halves = _of_half_steps(module)
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
            bounds.append(None if counted is None else counted.double() * scale.double())
    return bounds


def _is_int8(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dtype == torch.uint8


def _of_half_steps(module: nn.Module) -> nn.Module:
    """Return the same synapses with half a step for every int8 weight, and 0 for everything else.

    The int8 weights themselves are not copied: one value stands for all of them.
    """
    weights = [m.weight for m in module.modules() if _is_int8(m)]
    halves = {
        id(w): torch.full((1, 1, *w.shape[2:]), 0.5, dtype=torch.float32, device=w.device).expand(
            w.shape
        )
        for w in weights
    }
    copied = copy.deepcopy(module, halves)
    for parameter in copied.parameters():
        parameter.data.zero_()
    for inner in copied.modules():
        if isinstance(inner, Synapses):
            inner.signed = False
    return copied
