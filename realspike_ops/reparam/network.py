"""A folded network: named steps that read the input or earlier steps."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils import _pytree as pytree

from realspike_ops import _checks as checks
from realspike_ops import nn as layers
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.synapses.spike_conv import SpikeConv
from realspike_ops.nn.synapses.storage import Stored
from realspike_ops.ops.unshared_matmul import ALGORITHMS
from realspike_ops.reparam.network_text import as_text

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
_READ_BITS = (
    layers.SpikeConv2d,
    layers.UnsharedSpikeConv,
    layers.SpikeLinear,
    layers.PiecewiseSpikeConv,
    layers.OneToOneSynapses,
    layers.Synapses,
)


@dataclass(frozen=True)
class Step:
    """Run the submodule `name` on what `inputs` name: the input, or earlier steps."""

    name: str
    inputs: tuple[str, ...]


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
        outputs = self.outputs
        self._unused_after: list[list[str]] = []
        last = {name: n for n, step in enumerate(self.steps) for name in step.inputs}
        for n in range(len(self.steps)):
            self._unused_after.append([k for k, at in last.items() if at == n and k not in outputs])

    @property
    def outputs(self) -> tuple[str, ...]:
        """The steps whose outputs are the network's."""
        return tuple(leaf for leaf in pytree.tree_leaves(self.output) if isinstance(leaf, str))

    @property
    def algorithm(self) -> str:
        """How its convolutions run on a GPU; setting it is for all of them.

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
        values: dict[str, Any] = {INPUT: x}
        in_bits = self.steps_in_bits()
        neurons_of = self.fused_steps(in_bits)
        for step, unused in zip(self.steps, self._unused_after, strict=True):
            inputs = [values[name] for name in step.inputs]
            module: Any = self.get_submodule(step.name)
            neurons = neurons_of.get(step.name)
            if neurons is not None and _can_fire(module, inputs[0], self.get_submodule(neurons)):
                values[neurons] = module.fire(*inputs, self._modules[neurons])
                values[step.name] = None
            elif step.name in values:
                pass  # the neurons of the step before
            elif (
                step.name in in_bits
                and isinstance(module, layers.FoldedLIF)
                and module.can_pack(*inputs)
            ):
                values[step.name] = module(*inputs, packed=True)
            else:
                values[step.name] = module(*inputs)
            for name in unused:
                del values[name]
        if isinstance(self.output, str):
            return values[self.output]
        return pytree.tree_map_only(str, values.__getitem__, self.output)

    def steps_in_bits(self) -> frozenset[str]:
        """Return the LIF and pooling layers whose spikes travel as bits in inference.

        All readers of such a layer take bits. Spikes that a hook is to see, or a forward that
        replaces a layer's own, stay dense, as in training.
        """
        in_bits: set[str] = set()
        read_dense = set(self.outputs)
        for step in reversed(self.steps):
            module: Any = self._modules[step.name]
            emits = isinstance(module, (layers.FoldedLIF, layers.SpikeMaxPool2d))
            if emits and step.name not in read_dense and not _is_seen(module, before=False):
                in_bits.add(step.name)
            readers = _readers_of_bits(module, step.name in in_bits)
            taken = {n for n, reads_bits in enumerate(readers) if reads_bits}
            read_dense |= {name for n, name in enumerate(step.inputs) if n not in taken}
        for step in self.steps:
            if isinstance(self._modules[step.name], layers.SpikeMaxPool2d):
                in_bits -= set() if step.inputs[0] in in_bits else {step.name}  # as it reads
        return frozenset(in_bits)

    def fused_steps(self, in_bits: frozenset[str]) -> dict[str, str]:
        """Return the convolutions that run as one op with neurons, and the neurons behind them.

        Nothing else reads the current of such a convolution, and no hook is to see it.
        """
        read = Counter(name for step in self.steps for name in step.inputs)
        fused = {}
        for step in self.steps:
            module = self._modules[step.name]
            if step.name not in in_bits or not isinstance(module, layers.FoldedLIF):
                continue
            (current,) = step.inputs
            conv: Any = self._modules.get(current)
            fusible = type(conv) in (layers.SpikeConv2d, layers.UnsharedSpikeConv)
            if not fusible or read[current] != 1 or current in self.outputs:
                continue
            if not (_is_seen(module, after=False) or _is_seen(conv, before=False)):
                fused[current] = step.name
        return fused

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


def _can_fire(conv: nn.Module, spikes: Tensor | PackedSpikes, neurons: nn.Module) -> bool:
    """Whether a convolution and its neurons can run as one op, in inference."""
    if _is_seen(conv, after=False):
        return False
    tensors = [*conv.parameters(), *neurons.buffers()]
    tensors += [spikes] if isinstance(spikes, Tensor) else []
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def _readers_of_bits(module: nn.Module, emits_bits: bool) -> list[bool]:
    """Return for the inputs of a step whether they may be `PackedSpikes`; none beyond the list."""
    if isinstance(module, layers.SpikeMaxPool2d):
        reads = [emits_bits]
    elif isinstance(module, layers.SynapticCurrent):
        reads = [isinstance(reader, _READ_BITS) for reader in module.readers]
    else:
        reads = [isinstance(module, _READ_BITS)]
    seen = any(reads) and any(map(_is_seen, module.modules()))
    return [] if seen else reads


def _is_seen(module: nn.Module, *, before: bool = True, after: bool = True) -> bool:
    """Whether a hook before or after a layer, or a forward that replaces its own, sees tensors."""
    hooks = before and (module._forward_pre_hooks or torch_module._global_forward_pre_hooks)
    hooks = hooks or (after and (module._forward_hooks or torch_module._global_forward_hooks))
    return bool(hooks) or "forward" in vars(module)
