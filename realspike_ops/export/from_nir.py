"""From a NIR graph to a network that can be trained, with amplitudes, and folded."""

import graphlib
import math
import operator
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, fx, nn

from realspike_ops import _checks as checks
from realspike_ops.export.names import Names
from realspike_ops.export.neurons import fires_above
from realspike_ops.export.nir_package import nir_package
from realspike_ops.nn import DirectEncoding, RealSpikeLIF, SumOverTime
from realspike_ops.nn.neurons.lif import GRANULARITIES

if TYPE_CHECKING:
    import nir

DT = 1e-4
ENCODINGS = ("repeat", "frames")
READOUTS = ("sum", "none")


@torch.inference_mode(False)  # whose tensors could not be trained on
@torch.no_grad()
def import_nir(
    path: "str | Path | nir.NIRGraph",
    timesteps: int | None = None,
    *,
    dt: float | None = None,
    granularity: str = "channel",
    encoding: str | None = None,
    readout: str | None = None,
) -> fx.GraphModule:
    r"""Build a network of stock layers and `RealSpikeLIF` from a NIR graph.

    ``nir.Conv2d``, ``Linear``, ``Affine``, ``Flatten``, ``AvgPool2d`` and ``SumPool2d`` become the
    layers of ``torch.nn``, ``Scale`` a product with a buffer, ``LIF`` and ``IF`` a `RealSpikeLIF`
    whose amplitudes start at 1, edges that meet a sum in the order of the edges. A ``nir.LIF`` is
    stepped as :math:`h = (1 - dt/\tau) v + (r\,dt/\tau) x`; where :math:`r\,dt/\tau` is not 1, the
    current is multiplied by it. NIR's neurons fire above their threshold, these at it: theirs is
    the next float32. A ``nir.IF`` counts its current once if its r is ``1 / dt``, as SpikingJelly
    writes it, or 1, as snnTorch and norse do.

    The result is an ordinary module: train it, `reparameterize` it. It is in training mode.

    Args:
        path: The path of the file, or a graph.
        timesteps: T; None: as `export_nir` noted in the graph.
        dt: Duration of a timestep in seconds; None: as noted in the graph, else 1e-4.
        granularity: Which neurons share an amplitude: "none", "layer", "channel" or "element". With
            "channel", every feature has its own.
        encoding: "repeat": the network reads [B, ...] and repeats it over time, "frames": [T*B,
            ...], timestep outermost; None: as noted in the graph, else "frames".
        readout: "sum" over the timesteps, [B, ...], or "none", [T*B, ...]; None: as noted in the
            graph, else "none".

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for a node, or a neuron, that these layers do not compute, named; for a cycle,
            or several inputs or outputs.
        ImportError: if ``nir`` is not installed.
        OSError: if the file cannot be read.

    Rounding: arrays are read as float32, in which readers of NIR compute.
    """
    package = nir_package()
    if isinstance(path, (str, Path)):
        graph = package.read(str(path))
    elif isinstance(path, package.NIRGraph):
        graph = path
    else:
        raise TypeError(f"path must be that of a file, or a NIRGraph; got {type(path).__name__}")
    noted = graph.metadata
    if timesteps is None and "timesteps" not in noted:
        raise ValueError("timesteps must be given: the graph's metadata has none")
    timesteps = int(noted["timesteps"]) if timesteps is None else timesteps
    checks.check_positive_int("timesteps", timesteps)
    dt = checks.check_number("dt", float(noted.get("dt", DT)) if dt is None else dt)
    if not 0 < dt < math.inf:
        raise ValueError(f"dt must be above 0, in seconds; got {dt:g}")
    checks.check_choice("granularity", granularity, GRANULARITIES)
    encoding = noted.get("encoding", "frames") if encoding is None else encoding
    readout = noted.get("readout", "none") if readout is None else readout
    checks.check_choice("encoding", encoding, ENCODINGS)
    checks.check_choice("readout", readout, READOUTS)
    reader = _Reader(package, graph, timesteps, dt, granularity)
    return reader.build(encoding == "repeat", readout == "sum")


class _Reader:
    """Builds the layer of every node, and the graph that calls them."""

    def __init__(self, package, graph, timesteps: int, dt: float, granularity: str):
        self.nir, self.graph = package, graph
        self.timesteps, self.dt, self.granularity = timesteps, dt, granularity
        self.layers = {
            package.Conv2d: self._conv2d,
            package.Linear: self._linear,
            package.Affine: self._linear,
            package.Flatten: self._flatten,
            package.AvgPool2d: self._pool,
            package.SumPool2d: self._pool,
            package.LIF: self._lif,
            package.IF: self._if,
        }
        self.names = Names("x", "repeat", "readout", "maps")
        self.root = nn.Module()
        self.calls = fx.Graph()
        self.repeats: dict[fx.Node, fx.Node] = {}

    def build(self, repeats: bool, sums: bool) -> fx.GraphModule:
        nodes, inputs_of = self.graph.nodes, self._inputs_of()
        values: dict[str, fx.Node] = {}
        in_time: set[str] = set()  # the nodes whose values have timesteps
        for name in self._in_order(inputs_of):
            node, sources = nodes[name], inputs_of[name]
            if isinstance(node, self.nir.Input):
                values[name] = self.calls.placeholder("x")
                in_time |= set() if repeats else {name}
                continue
            fires = type(node) in (self.nir.LIF, self.nir.IF)
            is_output = isinstance(node, self.nir.Output)
            if fires or is_output or any(source in in_time for source in sources):
                in_time.add(name)
            read = [values[source] for source in sources]
            if name in in_time:
                pairs = zip(sources, read, strict=True)
                read = [value if s in in_time else self._repeated(value) for s, value in pairs]
            total = read[0]
            for value in read[1:]:
                total = self.calls.call_function(operator.add, (total, value))
            values[name] = total if is_output else self._call(name, node, total)
        (output,) = (values[n] for n, node in nodes.items() if isinstance(node, self.nir.Output))
        shape = tuple(int(n) for n in self.graph.metadata.get("output_shape", ()))
        if len(shape) > 1 and len(_shape(self._output())) == 1:
            output = self._call_module("maps", nn.Unflatten(1, shape), output)
        if sums:
            output = self._call_module("readout", SumOverTime(self.timesteps), output)
        self.calls.output(output)
        return fx.GraphModule(self.root, self.calls, "ImportedNIR")

    # --- the graph

    def _output(self):
        return next(n for n in self.graph.nodes.values() if isinstance(n, self.nir.Output))

    def _inputs_of(self) -> dict[str, list[str]]:
        """Return what every node reads, in the order of the edges; refuse what is no such graph."""
        nodes = self.graph.nodes
        kinds = Counter(type(node) for node in nodes.values())
        for kind in (self.nir.Input, self.nir.Output):
            if kinds[kind] != 1:
                raise ValueError(f"the graph must have one {kind.__name__} node; got {kinds[kind]}")
        known = {*self.layers, self.nir.Scale, self.nir.Input, self.nir.Output}
        for name, node in nodes.items():
            if type(node) not in known:
                names = ", ".join(sorted(kind.__name__ for kind in known))
                raise ValueError(
                    f"node {name!r} is a nir.{type(node).__name__}; these are read: {names}"
                )
        inputs_of: dict[str, list[str]] = {name: [] for name in nodes}
        for source, target in self.graph.edges:
            if source in inputs_of[target]:
                raise ValueError(f"two edges lead from {source!r} to {target!r}")
            inputs_of[target].append(source)
        for name, node in nodes.items():
            if not inputs_of[name] and not isinstance(node, self.nir.Input):
                raise ValueError(f"node {name!r} reads nothing")
        return inputs_of

    def _in_order(self, inputs_of: dict[str, list[str]]) -> list[str]:
        try:
            return list(graphlib.TopologicalSorter(inputs_of).static_order())
        except graphlib.CycleError as error:
            cycle = " -> ".join(map(repr, error.args[1]))
            raise ValueError(f"the graph is recurrent, which cannot be folded: {cycle}") from error

    def _repeated(self, value: fx.Node) -> fx.Node:
        if value not in self.repeats:
            name = "repeat" if not self.repeats else self.names("repeat")
            self.repeats[value] = self._call_module(name, DirectEncoding(self.timesteps), value)
        return self.repeats[value]

    def _call_module(self, name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        self.root.add_module(name, module)
        return self.calls.call_module(name, (value,))

    def _times(self, name: str, factor: Tensor, value: fx.Node) -> fx.Node:
        name = self.names(f"{name}_factor")
        self.root.register_buffer(name, factor)
        return self.calls.call_function(operator.mul, (value, self.calls.get_attr(name)))

    def _call(self, name: str, node, value: fx.Node) -> fx.Node:
        if type(node) is self.nir.Scale:
            return self._times(name, _tensor(node.scale), value)
        layer = self.layers[type(node)](name, node)
        if type(node) is self.nir.LIF:
            gain = np.asarray(node.r, np.float64) * self.dt / np.asarray(node.tau, np.float64)
            if not np.allclose(gain, 1, rtol=1e-6, atol=0):
                one = np.unique(gain)
                gain = one[0] if one.size == 1 else gain
                value = self._times(name, _tensor(gain), value)
        return self._call_module(self.names(name), layer, value)

    # --- layers

    def _conv2d(self, name: str, node) -> nn.Conv2d:
        weight = _tensor(node.weight)  # [Cout, Cin/G, KH, KW]
        Cout, Ci, KH, KW = weight.shape
        padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
        groups = int(node.groups)
        conv = nn.Conv2d(
            Ci * groups, Cout, (KH, KW), _pair(node.stride), padding, _pair(node.dilation), groups
        )
        assert conv.bias is not None
        conv.weight.copy_(weight)
        conv.bias.copy_(_tensor(node.bias))
        return conv

    def _linear(self, name: str, node) -> nn.Linear:
        weight = _tensor(node.weight)
        if weight.dim() != 2:
            raise ValueError(
                f"node {name!r}: a weight [out, in] is read; got {checks.shape_text(weight)}"
            )
        bias = getattr(node, "bias", None)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(_tensor(bias))
        return linear

    def _flatten(self, name: str, node) -> nn.Flatten:
        # NIR counts dimensions without the batch.
        first, last = (int(d) + (d >= 0) for d in (node.start_dim, node.end_dim))
        return nn.Flatten(first, last)

    def _pool(self, name: str, node) -> nn.AvgPool2d:
        divisor = 1 if type(node) is self.nir.SumPool2d else None
        size, stride, padding = (_pair(n) for n in (node.kernel_size, node.stride, node.padding))
        return nn.AvgPool2d(size, stride, padding, divisor_override=divisor)

    def _lif(self, name: str, node) -> RealSpikeLIF:
        _same(name, "v_leak", node.v_leak, 0.0)
        decay = 1 - self.dt / _one(name, "tau", node.tau)
        if not 0 <= decay <= 1:
            raise ValueError(
                f"node {name!r}: tau must be at least dt ({self.dt:g} s); "
                f"got {_one(name, 'tau', node.tau):g}"
            )
        return self._neurons(name, node, float(np.float32(decay)))

    def _if(self, name: str, node) -> RealSpikeLIF:
        r = _one(name, "r", node.r)
        if not any(math.isclose(r, unit, rel_tol=1e-6) for unit in (1.0, 1 / self.dt)):
            raise ValueError(
                f"node {name!r}: r of a nir.IF must be 1 / dt ({1 / self.dt:g}) or 1; got {r:g}"
            )
        return self._neurons(name, node, 1.0)

    def _neurons(self, name: str, node, decay: float) -> RealSpikeLIF:
        _same(name, "v_reset", node.v_reset, 0.0)
        shape = _shape(node)
        granularity = self.granularity
        if granularity == "channel" and len(shape) == 1:
            granularity = "element"
        v_threshold = fires_above(_one(name, "v_threshold", node.v_threshold))
        return RealSpikeLIF(self.timesteps, granularity, shape, decay, v_threshold)


def _shape(node) -> tuple[int, ...]:
    return tuple(int(n) for n in node.input_type["input"])


def _tensor(array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _pair(value) -> tuple[int, int]:
    values = np.broadcast_to(np.asarray(value), (2,))
    return int(values[0]), int(values[1])


def _one(name: str, field: str, array) -> float:
    values = np.unique(np.asarray(array))
    if values.size != 1:
        raise ValueError(
            f"node {name!r}: {field} must be one number for the whole layer; "
            f"got {values.size} different ones"
        )
    return float(values[0])


def _same(name: str, field: str, array, wanted: float) -> None:
    if array is not None and (np.asarray(array) != wanted).any():
        raise ValueError(f"node {name!r}: {field} must be {wanted:g} everywhere")
