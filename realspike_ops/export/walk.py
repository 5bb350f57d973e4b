"""The walk over a folded network: which nodes it becomes, and how large they are."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from realspike_ops import nn as layers
from realspike_ops.export.encoding import folded_encoding, real_steps, repeated_steps
from realspike_ops.export.names import Names
from realspike_ops.export.neurons import neuron_numbers
from realspike_ops.export.synapse_map import SynapseMap, powers_of_two, synapse_map
from realspike_ops.reparam import FoldedNetwork
from realspike_ops.reparam.network import INPUT
from realspike_ops.reparam.units import bytes_text

OUTPUT = "output"
_CURRENTS = (
    layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.UnsharedSpikeConv1d, layers.SpikeLinear,
    layers.PiecewiseSpikeConv, layers.OneToOneSynapses, layers.Synapses, layers.SynapticCurrent,
)  # fmt: skip
_INSTEAD: dict[type, str] = {
    layers.SpikeMaxPool2d: "pool by averages (nn.AvgPool2d) where you train"
}


@dataclass(frozen=True)
class Signal:
    """A value that flows along edges: the sum of the outputs of some nodes."""

    nodes: tuple[str, ...]
    shape: tuple[int, ...]  # in the folded network: [C, H, W], [F], or [C, L] of a line
    is_flat: bool  # whether the nodes put out one dimension

    @property
    def node_shape(self) -> tuple[int, ...]:
        return (math.prod(self.shape),) if self.is_flat else self.shape


@dataclass(frozen=True)
class PlannedNode:
    """A node that is not allocated yet."""

    build: Callable  # () -> nir.NIRNode
    bytes: int = 0
    shared_bytes: int = 0  # its size if one kernel served all positions


@dataclass(frozen=True)
class Branch:
    """Synapses on their way to a sum."""

    name: str
    map: SynapseMap
    bias: Tensor  # [C, 1, 1] or [C, OH, OW]
    sources: list[Signal]
    is_features: bool  # whether its current is [F]
    is_line: bool  # whether it is [C, L]

    @property
    def is_conv(self) -> bool:
        return (
            all(len(source.node_shape) == 3 for source in self.sources)
            and tuple(self.bias.shape[1:]) == (1, 1)
            and self.map.square() is not None
        )

    @property
    def shape(self) -> tuple[int, ...]:
        C, H, W = self.map.out_shape
        return (C * H * W,) if self.is_features else (C, W) if self.is_line else (C, H, W)


class Walk:
    """Plans the nodes of a folded network.

    A map stays a map as long as convolutions make and read it. The output of a dense layer is flat,
    and so is all that reads it: NIR has no node that makes a map of features. What a line [C, L]
    reaches is flat, too.

    Attributes:
        nodes: The planned nodes, by name.
        edges: Pairs of names.
        metadata: The numbers that a reader needs beside them.
        rounded_by_r: The LIF layers whose weights ``r = 1`` rounds.
    """

    def __init__(self, nir, folded: FoldedNetwork, dt: float, fold_r: bool, dtype: np.dtype):
        if folded.input_shape is None:
            raise ValueError(
                "folded takes inputs of any shape, and a graph has one: fold with reparameterize"
            )
        if not isinstance(folded.output, str):
            names = ", ".join(map(repr, folded.outputs))
            raise ValueError(
                f"folded returns several outputs, {names}, and readers of NIR take one: fold a "
                "model that returns one tensor"
            )
        self.nir, self.folded, self.dt, self.fold_r, self.dtype = nir, folded, dt, fold_r, dtype
        self.nodes: dict[str, PlannedNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.rounded_by_r: list[str] = []
        self.names = Names(INPUT, OUTPUT)
        self.real = real_steps(folded)
        self.inputs_of = {step.name: step.inputs for step in folded.steps}
        self.spikes: dict[str, Signal] = {}
        self.currents: dict[tuple[str, bytes], Signal] = {}
        self.flattened: dict[tuple[str, ...], Signal] = {}
        lifs = (m for m in folded.modules() if isinstance(m, layers.RealSpikeLIF))
        self.timesteps = next(lifs).timesteps
        self.repeats = repeated_steps(folded, self.real, self.timesteps)
        self._run()

    def check_size(self, max_bytes: int) -> None:
        """Raise ValueError if the arrays of all nodes take more."""
        total = sum(node.bytes for node in self.nodes.values())
        if total <= max_bytes:
            return
        largest = sorted(self.nodes.items(), key=lambda item: -item[1].bytes)[:3]
        shown = ", ".join(f"{name!r} {bytes_text(node.bytes)}" for name, node in largest)
        shared = sum(node.shared_bytes or node.bytes for node in self.nodes.values())
        raise ValueError(
            f"the arrays of the graph would take {bytes_text(total)} ({total:,} bytes), more than "
            f"max_bytes ({bytes_text(max_bytes)}); the largest are {shown}. Kernels that differ "
            "from position to position are dense matrices in NIR. What takes less: amplitudes of "
            f"granularity 'channel' or 'layer', whose kernels are shared (about "
            f"{bytes_text(shared)}); or save_folded, which keeps kernels as they are. "
            "Or raise max_bytes"
        )

    # --- steps

    def _run(self) -> None:
        sizes = self.folded.input_shape
        assert sizes is not None
        self.spikes[INPUT] = Signal((INPUT,), sizes, len(sizes) == 1)
        self.nodes[INPUT] = PlannedNode(lambda: self.nir.Input({"input": np.array(sizes)}))
        for name, module in self.folded.named_modules():
            own = "forward hooks" if module._forward_hooks or module._forward_pre_hooks else ""
            own = own or ("a forward of its own" if "forward" in vars(module) else "")
            if own:
                raise ValueError(
                    f"{name or 'folded'!r} has {own}, which a graph has not: remove what was added"
                )
        output, readout = self.folded.output, "none"
        for step in self.folded.steps:
            module = self.folded.get_submodule(step.name)
            if type(module) is layers.FoldedLIF:
                self._fire(step.name, module)
            elif type(module) is layers.SumOverTime and step.name == self.folded.output:
                self._check_timesteps(step.name, module.timesteps)
                (output,), readout = step.inputs, "sum"
            elif step.name not in self.real and type(module) not in _CURRENTS:
                self._refuse(step.name, module)
        shape = self._finish(self._current(output))
        self.metadata = {
            "timesteps": self.timesteps,
            "dt": self.dt,
            "encoding": "repeat" if self.repeats else "frames",
            "readout": readout,
            "output_shape": np.array(shape),
        }

    @staticmethod
    def _refuse(name: str, module: nn.Module) -> None:
        instead = _INSTEAD.get(type(module))
        raise ValueError(
            f"{name!r} is a {type(module).__name__}, which NIR has no node for"
            + (f": {instead}" if instead else "")
        )

    def _check_timesteps(self, name: str, timesteps: int) -> None:
        if timesteps != self.timesteps:
            raise ValueError(
                f"{name!r} has {timesteps} timesteps and other layers {self.timesteps}: all layers "
                "of a graph take the same steps"
            )

    def _fire(self, name: str, neurons: layers.FoldedLIF) -> None:
        self._check_timesteps(name, neurons.timesteps)
        factor = scale = neurons.current_scale  # [C, 1, 1] or [F]
        if scale is not None:
            factor = scale = powers_of_two(name, scale)
        tau, v_threshold = neuron_numbers(name, neurons, scale, self.dt)
        r = 1.0 if self.fold_r else tau / self.dt
        if self.fold_r:
            gain = tau / self.dt
            factor = (torch.ones(1) if scale is None else scale).double() * gain
            if math.frexp(gain)[0] != 0.5:
                self.rounded_by_r.append(name)
        current = self._current(self.inputs_of[name][0], factor)
        shape = current.node_shape

        def build():
            return self.nir.LIF(
                tau=np.full(shape, tau),
                r=np.full(shape, r),
                v_leak=np.zeros(shape, np.float32),
                v_threshold=np.full(shape, v_threshold, np.float32),
                v_reset=np.zeros(shape, np.float32),
            )

        node = self._add(name, PlannedNode(build, math.prod(shape) * 28), current)
        self.spikes[name] = Signal((node,), current.shape, current.is_flat)

    def _finish(self, current: Signal) -> tuple[int, ...]:
        """Add the output, and return the shape that it has in the folded network."""
        if len(current.nodes) > 1:
            # nirtorch adds up the edges into every node but the output.
            current = self._relay("output_sum", current, None)
        shape = current.node_shape
        node = PlannedNode(lambda: self.nir.Output({"output": np.array(shape)}))
        self.nodes[OUTPUT] = node
        self.edges += [(name, OUTPUT) for name in current.nodes]
        return current.shape

    # --- currents

    def _current(self, name: str, factor: Tensor | None = None) -> Signal:
        """Return the current that a step computes, times the factor of every channel."""
        key = name, b"" if factor is None else factor.double().numpy().tobytes()
        if key not in self.currents:
            self.currents[key] = self._planned_current(name, factor)
        return self.currents[key]

    def _planned_current(self, name: str, factor: Tensor | None) -> Signal:
        if name in self.spikes:
            spikes = self.spikes[name]
            return spikes if factor is None else self._relay(f"{name}_times_r", spikes, factor)
        if name not in self.real:
            return self._sum(name, self.folded, name, self.spikes, factor)
        if name in self.repeats:
            return self._current(self.repeats[name], factor)
        encoding = folded_encoding(self.folded, self.real, self.repeats, name)
        image = encoding.steps[0].name
        if encoding.output == image:
            return self._current(INPUT, factor)
        for step in encoding.steps[1:-1]:
            self._refuse(f"{name}: {step.name}", encoding.get_submodule(step.name))
        return self._sum(name, encoding, encoding.output, {image: self.spikes[INPUT]}, factor)

    def _sum(
        self,
        name: str,
        network: FoldedNetwork,
        step: str,
        spikes: dict[str, Signal],
        factor: Tensor | None,
    ) -> Signal:
        """Plan what a step of a network adds up: synapses that read spikes, and currents."""
        module = network.get_submodule(step)
        if type(module) not in _CURRENTS:
            self._refuse(name, module)
        inputs = next(s.inputs for s in network.steps if s.name == step)
        is_sum = type(module) is layers.SynapticCurrent
        parts = module.synapses if is_sum else {"": module}
        branches, read = [], 0
        for part, layer in parts.items():
            count = getattr(layer, "maps", 1)
            label = f"{name}_{part}" if len(parts) > 1 else name
            sources = [spikes[source] for source in inputs[read : read + count]]
            branches.append(self._branch(label, layer, sources))
            read += count
        if is_sum and module.bias is not None:
            branches = _with_bias(name, branches, module.bias)
        branches = [_scaled(branch, factor) for branch in branches]
        currents = [self._current(extra, factor) for extra in inputs[read:]]
        shape = branches[0].shape if branches else currents[0].shape
        is_flat = (
            len(shape) < 3
            or not all(branch.is_conv for branch in branches)
            or any(current.is_flat for current in currents)
        )
        signals = [self._node_of(branch, is_flat) for branch in branches]
        signals += [self._flat(current) if is_flat else current for current in currents]
        nodes = tuple(node for signal in signals for node in signal.nodes)
        if len(set(nodes)) < len(nodes):
            raise ValueError(
                f"{name!r} adds a current to itself: NIR has one edge between two nodes"
            )
        return Signal(nodes, shape, is_flat)

    def _branch(self, name: str, layer: nn.Module, sources: list[Signal]) -> Branch:
        synapses = synapse_map(name, layer, sources[0].shape)
        inner = getattr(layer, "layer", layer)
        rank = len(sources[0].shape)
        is_features = (
            type(inner) is layers.SpikeLinear or getattr(layer, "flatten", False) or rank == 1
        )
        is_line = (
            type(inner) is layers.UnsharedSpikeConv1d
            or getattr(layer, "line", False)
            or (type(layer) is layers.OneToOneSynapses and rank == 2)
        )
        return Branch(name, synapses, synapses.full_bias(), sources, is_features, is_line)

    def _relay(self, name: str, signal: Signal, factor: Tensor | None) -> Signal:
        """Pass a signal on, times a factor, through one synapse for every neuron."""
        identity = layers.OneToOneSynapses(torch.ones(1))
        whole = Signal(signal.nodes, signal.node_shape, signal.is_flat)
        branch = _scaled(self._branch(name, identity, [whole]), factor)
        relayed = self._node_of(branch, signal.is_flat)
        return Signal(relayed.nodes, signal.shape, relayed.is_flat)

    # --- nodes

    def _add(self, name: str, node: PlannedNode, *signals: Signal) -> str:
        name = self.names(name)
        self.nodes[name] = node
        self.edges += [(source, name) for signal in signals for source in signal.nodes]
        return name

    def _node_of(self, branch: Branch, is_flat: bool) -> Signal:
        name, synapses = branch.name, branch.map
        weight = synapses.weight
        kernel = weight[0, 0].numel() * weight.shape[2] * self.dtype.itemsize
        bias, sources = branch.bias, branch.sources
        if len({source.nodes for source in sources}) < len(sources):
            raise ValueError(f"{name!r} reads spikes twice: NIR has one edge between two nodes")
        one_position = math.prod(synapses.out_shape[1:]) == 1
        if branch.is_conv and not (is_flat and one_position):
            square = synapses.square()
            assert square is not None
            K, _, padding = square
            size = synapses.channels * synapses.in_shape[0] * K * K

            def build():
                return self.nir.Conv2d(
                    input_shape=tuple(synapses.in_shape[1:]),
                    weight=self._array(name, synapses.conv_weight()),
                    stride=synapses.stride,
                    padding=padding,
                    dilation=synapses.dilation,
                    groups=1,
                    bias=self._array(name, bias.flatten()),
                )

            node = self._add(name, PlannedNode(build, size * self.dtype.itemsize, kernel), *sources)
            signal = Signal((node,), synapses.out_shape, False)
            return self._flat(signal) if is_flat else signal

        def build():
            full = bias.expand(synapses.out_shape).flatten()
            return self.nir.Affine(
                weight=self._array(name, synapses.matrix()), bias=self._array(name, full)
            )

        size = math.prod(synapses.out_shape) * math.prod(synapses.in_shape)
        planned = PlannedNode(build, size * self.dtype.itemsize, kernel)
        node = self._add(name, planned, *(self._flat(source) for source in sources))
        return Signal((node,), synapses.out_shape, True)

    def _flat(self, signal: Signal) -> Signal:
        if signal.is_flat:
            return signal
        if signal.nodes not in self.flattened:
            shape = np.array(signal.shape)
            # Counted from the end: readers that count a batch and those that do not agree.
            node = PlannedNode(lambda: self.nir.Flatten({"input": shape}, -len(shape), -1))
            name = self._add(f"{signal.nodes[0]}_flat", node, signal)
            self.flattened[signal.nodes] = Signal((name,), signal.shape, True)
        return self.flattened[signal.nodes]

    def _array(self, name: str, tensor: Tensor) -> np.ndarray:
        array = tensor.contiguous().numpy()
        stored = array.astype(self.dtype)
        if self.dtype != array.dtype and not np.array_equal(stored.astype(array.dtype), array):
            raise ValueError(
                f"weights={self.dtype.name!r} would round the weights of {name!r}: fold with "
                "weight_dtype=torch.float16, or use weights='float32'"
            )
        return stored


def _with_bias(name: str, branches: list[Branch], bias: Tensor) -> list[Branch]:
    """Give the bias of a sum to a branch, which adds it on the way."""
    if not branches:
        raise ValueError(f"{name!r} adds a bias to currents alone, which NIR has no node for")
    n = next((n for n, branch in enumerate(branches) if not branch.bias.any()), 0)
    out_shape = branches[n].map.out_shape
    bias = bias.detach().cpu().float()
    bias = bias.view(out_shape) if bias.dim() == 1 else bias.view(len(bias), -1, bias.shape[-1])
    bias = branches[n].bias + bias
    if bool((bias == bias[:, :1, :1]).all()):
        bias = bias[:, :1, :1]
    return [b if k != n else replace(b, bias=bias) for k, b in enumerate(branches)]


def _scaled(branch: Branch, factor: Tensor | None) -> Branch:
    if factor is None:
        return branch
    # Of flattened maps, all features of a channel have the factor of the channel.
    channels = branch.map.channels
    factor = factor.double().flatten()
    factor = factor.expand(channels) if factor.numel() == 1 else factor.view(channels, -1)[:, 0]
    bias = (branch.bias.double() * factor[:, None, None]).float()
    return replace(branch, map=branch.map.scaled(factor), bias=bias)
