"""A folded network: named steps that read the input or earlier steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from realspike_ops import _checks as checks
from realspike_ops import nn as layers
from realspike_ops.nn.synapses.spike_conv import SpikeConv
from realspike_ops.nn.synapses.storage import Stored
from realspike_ops.ops.unshared_matmul import ALGORITHMS
from realspike_ops.reparam import plan
from realspike_ops.reparam.network_text import as_text
from realspike_ops.reparam.plan import Plan

INPUT = "input"
# Attributes of a FoldedNetwork, which no step may hide.
RESERVED = frozenset(
    {"steps", "output", "training", "input_shape", "batch", "neurons", "algorithm"}
)
_SYNAPSES = (
    layers.SpikeConv2d,
    layers.UnsharedSpikeConv,
    layers.SpikeLinear,
    layers.PiecewiseSpikeConv,
    layers.OneToOneSynapses,
    layers.SynapticCurrent,
)


@dataclass(frozen=True)
class Step:
    """Run the submodule `name` on what `inputs` name: the input, or earlier steps."""

    name: str
    inputs: tuple[str, ...]


class _LastPlan:
    """The plan of the last call. A copy of the network, or a pickled one, begins without."""

    plan: Plan | None = None

    def of(self, network: "FoldedNetwork") -> Plan:
        if torch.compiler.is_compiling():
            return Plan(network)
        found = self.plan
        if found is None or not found.holds(network):
            found = self.plan = Plan(network)
        return found

    def __reduce__(self):
        return _LastPlan, ()


class FoldedNetwork(Stored):
    """A network that emits only 0 and 1 (or -1, 0 and 1) and whose weight layers only add.

    `reparameterize` returns it. An ordinary module: ``state_dict``, ``.to()``, ``.half()``,
    training. ``print`` shows its steps: what each reads, its synapses and their size.

    Args:
        steps: In the order in which they run.
        modules: The submodule of every step.
        output: The step whose output is the network's; or tuples, lists and dicts of steps, as the
            model returns them.
        input_shape: The shape of the input without its batch, for which it was folded; None: any.
        batch: The only batch size that the model takes: its code has it as a number. None: any.
        neurons: For steps that are LIF layers, the layer of the model and which of its calls it is.
    """

    def __init__(
        self,
        steps: list[Step],
        modules: dict[str, nn.Module],
        output,
        input_shape: tuple[int, ...] | None = None,
        batch: int | None = None,
        neurons: dict[str, tuple[str, int]] | None = None,
    ):
        super().__init__()
        self.batch = batch
        self.neurons = {name: (layer, n) for name, (layer, n) in (neurons or {}).items()}
        self.input_shape = None if input_shape is None else tuple(input_shape)
        self.steps = tuple(steps)
        self.output = output
        for step in self.steps:
            self.add_module(step.name, modules[step.name])
        self._plans = _LastPlan()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The steps whose outputs are the network's."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.output) if isinstance(leaf, str))

    @property
    def algorithm(self) -> str:
        """How its convolutions run; setting it is for all of them.

        "gather": they only add. "auto": they may multiply on matrix units where that should be
        faster (`realspike_ops.unshared_spike_conv`). Files do not keep it: they are for any device.
        """
        return "auto" if any(c.algorithm == "auto" for c in self._convolutions()) else "gather"

    @algorithm.setter
    def algorithm(self, algorithm: str) -> None:
        checks.check_choice("algorithm", algorithm, ALGORITHMS)
        for convolution in self._convolutions():
            convolution.algorithm = algorithm

    def _convolutions(self) -> list[Any]:
        kinds = (SpikeConv, layers.PiecewiseSpikeConv)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def forward(self, x: Tensor):
        values = self.values_of(x)
        self._plans.of(self).run(self, values, x)
        return self.result_of(values)

    def values_of(self, x: Tensor) -> dict[str, Any]:
        """Check an input; return what is known before the first step."""
        self.check_input(x)
        return {INPUT: x}

    def check_input(self, x: Tensor) -> None:
        checks.check_tensor("x", x)
        # Averages and borders are part of the weights: another size would be another network.
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            sizes = ", ".join(map(str, self.input_shape))
            raise ValueError(
                f"x must have shape [N, {sizes}], as example_input had when this network was "
                f"folded; got {checks.shape_text(x)}"
            )
        if self.batch is not None and x.shape[0] != self.batch:
            raise ValueError(
                f"x must have {self.batch} rows: the model that was folded takes no other batch "
                f"(its forward has that size as a number); got {checks.shape_text(x)}"
            )

    def result_of(self, values: dict[str, Any]) -> Any:
        """Arrange the outputs as the model does."""
        if isinstance(self.output, str):
            return values[self.output]
        return pytree.tree_map_only(str, values.__getitem__, self.output)

    def steps_in_bits(self) -> frozenset[str]:
        """Return the LIF and pooling layers whose spikes travel as bits in inference.

        All readers of such a layer take bits. Spikes that a hook is to see, or a forward that
        replaces a layer's own, stay dense, as in training.
        """
        return plan.steps_in_bits(self)

    def fused_steps(self, in_bits: frozenset[str]) -> dict[str, str]:
        """Return the synapses that run as one op with neurons, and the neurons behind them.

        Convolutions, linear layers and sums in which there is one; nothing else reads their
        current, and no hook is to see it.
        """
        return plan.fused_steps(self, in_bits)

    def kind_of(self, name: str) -> str:
        """Return what a step is: "encoding", "neurons", "synapses" or "" (moves and sums)."""
        module = self.get_submodule(name)
        if isinstance(module, layers.RealSpikeLIF):
            return "neurons"
        if isinstance(module, _SYNAPSES):
            return "synapses"
        return "encoding" if name in self.encoding else ""

    @property
    def encoding(self) -> tuple[str, ...]:
        """The steps before the first LIF layer: they read real values and are as in training."""
        names = []
        for step in self.steps:
            if isinstance(self.get_submodule(step.name), layers.RealSpikeLIF):
                break
            names.append(step.name)
        return tuple(names)

    def __repr__(self) -> str:
        return as_text(self)
