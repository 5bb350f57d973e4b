"""One step of a folded network, with the neurons behind it where both are one op."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from realspike_ops import nn as layers
from realspike_ops.nn.packed_spikes import PackedSpikes


@dataclass(frozen=True)
class Call:
    """Run a step; with neurons, that step and the neurons behind it as one op where they can be."""

    name: str
    module: nn.Module
    inputs: tuple[str, ...]
    unused: tuple[str, ...]  # values that nothing reads any more
    packs: bool  # neurons, or those behind: all who read their spikes take bits
    neurons: tuple[str, layers.FoldedLIF] | None = None
    repeats: bool = False  # a current over time, for neurons alone that emit bits

    @property
    def output(self) -> str:
        return self.name if self.neurons is None else self.neurons[0]

    def run(self, values: dict[str, Any]) -> None:
        module: Any = self.module
        inputs = [values[name] for name in self.inputs]
        if self.neurons is not None:
            values[self.output] = self._with_neurons(inputs, self.neurons[1])
        elif self.packs and isinstance(module, layers.FoldedLIF) and module.can_pack(*inputs):
            values[self.name] = module(*inputs, packed=True)
        else:
            values[self.name] = module(*inputs)
        for name in self.unused:
            del values[name]

    def _with_neurons(self, inputs: list[Any], neurons: layers.FoldedLIF) -> Any:
        module: Any = self.module
        if not learns(module, neurons, *inputs):
            if isinstance(module, layers.SynapticCurrent):
                fired = module.fire(*inputs, neurons=neurons)
            else:
                fired = module.fire(*inputs, neurons)
            if fired is not None:
                return fired
        current = module(*inputs)
        if neurons.can_pack(current):
            return neurons(current, packed=True)
        return neurons(current)


def learns(*read: nn.Module | Tensor | PackedSpikes) -> bool:
    """Whether anything requires a gradient, where gradients are computed at all."""
    if not torch.is_grad_enabled():
        return False
    for each in read:
        if isinstance(each, nn.Module):
            if any(t.requires_grad for t in chain(each.parameters(), each.buffers())):
                return True
        elif isinstance(each, Tensor) and each.requires_grad:
            return True
    return False
