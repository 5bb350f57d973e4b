"""The proof that sums of spikes are exact: float32 holds every integer up to 2^24.

If all numbers that can meet in a sum are multiples of one power of two, and the sum of their
magnitudes is below 2^24 of it, every partial sum is a multiple below 2^24 too: nothing is rounded,
in whatever order. The sum of magnitudes is what the layer itself makes of the absolute values of
its weights when all neurons fire. Where that is below 2^24 of the multiples, it was exact, as the
first sum that reached 2^24 could only have been rounded to 2^24 or more.
"""

import copy

import torch
from torch import Tensor, nn

from realspike_ops.nn import RealSpikeLIF, SumOverTime, Synapses, SynapticCurrent
from realspike_ops.reparam.build.steps import EXACT_SUMS
from realspike_ops.reparam.check.quantization_bound import finest
from realspike_ops.reparam.network import FoldedNetwork


@torch.no_grad()
def assert_exact_sums(folded: FoldedNetwork, x: Tensor) -> dict[str, float]:
    """Prove that no sum of synapses can be rounded, whatever fires, in whatever order.

    ``reparameterize(..., weight_dtype=torch.int8, scales="power_of_two")`` makes such networks; so
    may weights of any type that are few multiples of a power of two. The encoding may add a real
    value to a current, and nothing is proved of that value.

    Args:
        folded: The network that `reparameterize` returned.
        x: An input of the shape that the network takes; its values do not matter.

    Returns:
        For every step that adds, the largest sum that its weights and bias can reach, as a part of
        2^24 times the largest power of two that divides them all.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`.
        ValueError: if a step may round, by name, with what it can reach.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(f"folded must be a FoldedNetwork; got {type(folded).__name__}")
    own: dict[str, tuple[float, float]] = {}  # step -> what it adds up, and in what
    handles = []
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        if folded.kind_of(step.name) == "synapses" and _readers(module):

            def sum_all(module, maps, name=step.name):
                spikes = [torch.ones_like(read[:1]) for read in maps[: _readers(module)]]
                total = _with_magnitudes(module).forward(*spikes).max().item()
                own[name] = total, min((finest(p) for p in module.parameters()), default=1.0)

            # With a hook the spikes come dense.
            handles.append(module.register_forward_pre_hook(sum_all))
    try:
        folded(x)
    finally:
        for handle in handles:
            handle.remove()
    reached: dict[str, tuple[float, float]] = {}
    for step in folded.steps:
        module = folded.get_submodule(step.name)
        parts = [own[step.name]] if step.name in own else []
        parts += [reached[name] for name in step.inputs if name in reached]
        if parts and not isinstance(module, RealSpikeLIF):
            times = module.timesteps if isinstance(module, SumOverTime) else 1
            reached[step.name] = times * sum(t for t, _ in parts), min(unit for _, unit in parts)
    found = {name: total / unit / EXACT_SUMS for name, (total, unit) in reached.items()}
    for name, part in found.items():
        if not part < 1:
            raise ValueError(
                f"{name!r} can add up {part:.3g} times 2^24 multiples of the power of two that "
                "divides its weights, and float32 holds 2^24: its sums may be rounded; fold with "
                "weight_dtype=torch.int8, scales='power_of_two'"
            )
    return found


def _readers(module: nn.Module) -> int:
    """Return how many of its inputs are spikes: the others are currents."""
    return len(module.readers) if isinstance(module, SynapticCurrent) else 1


def _with_magnitudes(module: nn.Module) -> nn.Module:
    """Return the same synapses with the absolute values of their weights, and binary spikes."""
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.data.abs_()
    for inner in copied.modules():
        if isinstance(inner, Synapses):
            inner.signed = False
        weight = getattr(inner, "weight", None)
        if isinstance(weight, Tensor) and weight.dtype == torch.uint8:
            inner.weight = (128 + (weight.int() - 128).abs()).to(torch.uint8)
    return copied
