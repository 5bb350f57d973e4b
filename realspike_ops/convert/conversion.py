"""Neurons, the encoding and the mean over time, put into the record of a network."""

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from realspike_ops.convert import record
from realspike_ops.convert.loops import Loops, Unaligned, times
from realspike_ops.convert.neurons import (
    Neuron,
    Recorded,
    RecordedLayer,
    of_timesteps,
    stand_in,
    torch_class,
)
from realspike_ops.convert.proof import MOST_TIMESTEPS, Functions, prove
from realspike_ops.convert.read_back import make_readable
from realspike_ops.nn import DirectEncoding, MeanOverTime, RealSpikeLIF, SumOverTime
from realspike_ops.nn.synapses.fold_into_weight import BATCH_NORMS
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.names import describe
from realspike_ops.reparam.trace.sizes import batch_size, is_of_batch
from realspike_ops.reparam.trace.trace import drop_unused


class _SplitTime(nn.Module):
    """A network of [T, B, ...] that reads [T*B, ...]."""

    def __init__(self, model: nn.Module, timesteps: int):
        super().__init__()
        self.model, self.timesteps = model, timesteps

    def forward(self, x):
        return self.model(torch.unflatten(x, 0, (self.timesteps, -1)))


class Conversion:
    """Puts neurons, the encoding and the mean into the record of a network.

    Args:
        root: A copy of the network, whose parameters the result gets.
        neuron: The neuron in the place of ReLU.
    """

    def __init__(self, root, timesteps: int, granularity: str, neuron: Neuron, norms: bool):
        self.root, self.timesteps, self.granularity = root, timesteps, granularity
        self.neuron, self.norms_at_threshold = neuron, norms
        # The layers that this adds, by their names.
        self.encoding: str | None = None
        self.average: str | None = None
        some = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(0))
        self.where: dict[str, Any] = {"device": some.device, "dtype": some.dtype}

    def of(self, example: Tensor, neurons: dict[str, Neuron | None], time: str) -> fx.GraphModule:
        """Return the network.

        Args:
            example: [B, ...], or [T*B, ...] if time is "split" or "frames".
            neurons: Neurons of other libraries, by name; None for a layer that reads [T, B, ...].
            time: "encode": repeat images over time and average; "frames": average alone; "inside":
                forward does both; "split": forward reads [T, B, ...].
        """
        unchanged = copy.deepcopy(self.root) if self.timesteps > MOST_TIMESTEPS else None
        model, prefix = self.root, ""
        if time == "split":
            model, prefix = _SplitTime(model, self.timesteps), "model."
        stand_ins = {
            prefix + name: stand_in(self.root.get_submodule(name), found)
            for name, found in neurons.items()
        }
        count = self.timesteps if time == "split" else 1
        self.graph, self.rows, as_written = record.record(model, example, stand_ins, count)
        drop_unused(self.graph)
        self._strip(prefix)
        if self._roll_loops():
            time = "inside"
        nodes = self.graph.graph.nodes
        sites = {node: found for node in nodes if (found := self._neuron_at(node)) is not None}
        if not sites:
            raise ReparameterizationError(
                "forward() calls no ReLU and no neuron of another library: nothing becomes a neuron"
            )
        self._check(sites)
        self._refuse_activations()
        if time in ("encode", "frames"):
            self._refuse_shared_draws()
        if time == "encode":
            self._encode([*sites])
        self.calls: Counter = Counter()
        self.starts: list[tuple[Tensor, float]] = []  # of norms, once all else is proven
        # What neurons take the place of, by their names; None: neurons of another library.
        self.replaced: dict[str, Callable[[Tensor], Tensor] | None] = {}
        for node, found in sites.items():
            self._fire(node, found)
        if time in ("inside", "split"):
            for node in [*nodes]:
                self._run_over_time(node)
        if time in ("encode", "frames"):
            self._average()
        result = self._result()
        if unchanged is not None and time in ("encode", "frames"):
            self._prove_with_fewer(unchanged, example, neurons, time)
        else:
            self._prove(as_written, result, example, time)
        for weight, start in self.starts:
            nn.init.constant_(weight, start)
        return result

    def _prove_with_fewer(self, root: nn.Module, example: Tensor, neurons, time: str) -> None:
        """Prove the network with fewer timesteps: the model's forward knows no number of them."""
        form = self.granularity, self.neuron, self.norms_at_threshold
        Conversion(root, MOST_TIMESTEPS, *form).of(example, neurons, time)

    def _prove(self, model: nn.Module, result: fx.GraphModule, example: Tensor, time: str) -> None:
        """Run both with what neurons stand for in their place; over time, with its timesteps."""
        runs_over_time = time in ("inside", "split")
        for module in model.modules():
            if isinstance(module, Recorded) and runs_over_time:
                module.timesteps = self.timesteps
        neurons: Functions = {}
        for name, function in self.replaced.items():
            neurons[name] = function or (
                lambda x: of_timesteps(x, self.timesteps if runs_over_time else 1)
            )
        frames = time in ("split", "frames")
        time_layers = self.encoding, self.average
        prove(model, result, example, self.timesteps, neurons, *time_layers, frames)

    def _roll_loops(self) -> bool:
        """Make one call of T calls of each neuron; return whether there are any."""
        calls = Counter(
            node.target
            for node in self.graph.graph.nodes
            if node.op == "call_module"
            and isinstance(self.graph.get_submodule(node.target), Recorded)
        )
        if max(calls.values(), default=0) < 2:
            return False

        def over_time(name: str, kind):
            return lambda x: self._call(self._free("", name), x, kind(self.timesteps))

        encode, total = (
            over_time("encoding", DirectEncoding),
            over_time("sum_over_time", SumOverTime),
        )
        Loops(self.graph, self.timesteps, encode, total).run()
        drop_unused(self.graph)
        return True

    def _strip(self, prefix: str) -> None:
        """Name layers as the network does."""
        if not prefix:
            return
        for node in self.graph.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = str(node.target).removeprefix(prefix)
            stack = node.meta.get("nn_module_stack", {})
            node.meta["nn_module_stack"] = {
                name.removeprefix(prefix): kind
                for name, kind in stack.items()
                if name != prefix.rstrip(".")
            }
        for name, child in self.graph.get_submodule("model").named_children():
            setattr(self.graph, name, child)

    def _neuron_at(self, node: fx.Node) -> Neuron | None:
        if record.is_relu(self.graph, node):
            return self.neuron
        if node.op == "call_module":
            layer = self.graph.get_submodule(str(node.target))
            return layer.neuron if isinstance(layer, Recorded) else None
        return None

    # --- what is refused

    def _check(self, sites: dict[fx.Node, Neuron]) -> None:
        for node, found in sites.items():
            calls = sum(other.target == node.target for other in sites)
            if found is not self.neuron and calls > 1:
                raise ReparameterizationError(
                    f"{describe(node)} is called {calls} times, and keeps its potential from call "
                    f"to call. A loop over time is converted if its body does the same at each of "
                    f"the {self.timesteps} timesteps, and what they make is stacked (dim 0) or "
                    "added up behind it; else convert the module that runs one timestep, [B, ...]"
                )
            if found.returns_state:
                for user in node.users:
                    if user.target is not operator.getitem or user.args[1] != 0:
                        raise ReparameterizationError(
                            f"{describe(node)}: its potential is read ({user.name!r}), which no "
                            "layer here returns: return and read its spikes alone"
                        )

    def _refuse_activations(self) -> None:
        behind = {n for output, end in self._ends().items() for n in _chain(output, end)}
        for node in self.graph.graph.nodes:
            if record.is_other_activation(self.graph, node) and node not in behind:
                raise ReparameterizationError(
                    f"{describe(node)}: {record.activation_name(self.graph, node)} is no ReLU, and "
                    "no neuron takes its place: replace it by nn.ReLU, or remove it"
                )

    def _refuse_shared_draws(self) -> None:
        for node in self.graph.graph.nodes:
            shape = self._shape_of(node)
            if node.meta.get("draws") and not any(map(is_of_batch, shape[:1])):
                raise ReparameterizationError(
                    f"{describe(node)} draws random numbers without a batch, {shape}, which all "
                    "timesteps would share: draw them for every row, as torch.rand_like(x) does"
                )

    # --- time

    def _ends(self) -> dict[fx.Node, fx.Node]:
        """Return for every output the node that it is before a softmax."""
        ends = {}
        for output in self.graph.graph.output_node().all_input_nodes:
            end = output
            while record.activation_name(self.graph, end) in record.AT_THE_END:
                end = end.all_input_nodes[0]
            ends[output] = end
        return ends

    def _encode(self, sites: list[fx.Node]) -> None:
        """Repeat the last tensor before the first neuron that everything behind it depends on.

        What is drawn at random is drawn at every timestep, and stands behind it. Dropout of a
        network of ReLU, which has no timesteps, may stand before it.
        """
        graph, first = self.graph.graph, sites[0]
        has_neurons = any(self._neuron_at(site) is not self.neuron for site in sites)
        is_open: set[fx.Node] = set()
        place = None
        seen: list[fx.Node] = []
        flows = {n for n in graph.nodes if self._flows(n)}
        order = {node: i for i, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node is first or node.meta.get("draws"):
                break
            if has_neurons and record.draws(self.graph, node):
                break
            if node not in flows:
                continue
            seen.append(node)
            is_open = {
                n
                for n in seen
                if any(
                    order[u] > order[node] and u in flows | {graph.output_node()} for u in n.users
                )
            }
            if is_open == {node} and self._shape_of(node)[:1] == (self.rows,):
                place = node
        if place is None:
            raise ReparameterizationError(
                f"no single tensor [B, ...] leads to the first neurons, {describe(first)}: there "
                "is no place for the encoding"
            )
        readers = [*place.users]
        with graph.inserting_after(place):
            encoding = self._call(self._free("", "encoding"), place, DirectEncoding(self.timesteps))
        self.encoding = str(encoding.target)
        encoding.meta.update(val=place.meta["val"])
        for reader in readers:
            if reader.target is not batch_size:
                reader.replace_input_with(place, encoding)
        self._let_sizes_follow(encoding)

    def _flows(self, node: fx.Node) -> bool:
        """Whether it is a tensor, or several, that the input decides."""
        return node.op in ("placeholder", "call_function", "call_method", "call_module") and (
            node.target is not batch_size
        )

    def _let_sizes_follow(self, encoding: fx.Node) -> None:
        """Make the sizes that follow the batch T times as large behind the encoding."""
        passed, sizes = False, {}
        for node in [*self.graph.graph.nodes]:
            for size in [n for n in node.all_input_nodes if passed and n.target is batch_size]:
                try:
                    sizes[size] = sizes.get(size) or times(size, self.timesteps)
                except Unaligned:
                    raise ReparameterizationError(
                        f"{describe(node)} reads all rows of the batch but some, to which "
                        "timesteps are added"
                    ) from None
                node.replace_input_with(size, sizes[size])
            passed |= node is encoding

    def _average(self) -> None:
        graph, ends = self.graph.graph, self._ends()
        for end in dict.fromkeys(ends.values()):
            if self._shape_of(end)[:1] != (self.rows,):
                raise ReparameterizationError(
                    f"{describe(end)} is an output of shape {self._shape_of(end)[1:]} "
                    "behind its first dimension, which is not the batch: nothing can be averaged "
                    "over time"
                )
            if not end.meta["val"].is_floating_point():
                raise ReparameterizationError(
                    f"{describe(end)} is an output of {end.meta['val'].dtype}, which cannot be "
                    "averaged over time: return the scores, and choose among them outside of the "
                    "model"
                )
            readers = [*end.users]
            name = self.average = self.average or self._free("", "mean_over_time")
            with graph.inserting_after(end):
                averaged = self._call(name, end, MeanOverTime(self.timesteps))
            behind = {n for output, e in ends.items() if e is end for n in _chain(output, end)}
            for reader in readers:
                if reader.op == "output" or reader in behind:
                    reader.replace_input_with(end, averaged)

    # --- neurons

    def _shape_of(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(getattr(node.meta.get("val"), "shape", ()))

    def _fire(self, node: fx.Node, neuron: Neuron) -> None:
        """Put neurons in the place of a node."""
        graph = self.graph.graph
        current = node.all_input_nodes[0]
        shape = current.meta["val"].shape
        splits = shape[0] == self.timesteps
        sizes = shape[2:] if splits else shape[1:]
        if not any(map(is_of_batch, shape[splits : splits + 1])) or any(map(is_of_batch, sizes)):
            raise ReparameterizationError(
                f"{describe(node)} reads a tensor whose first dimension is not the batch: it must "
                "be [B, C, ...]"
            )
        if len(sizes) == 0 or (neuron is not self.neuron and neuron.splits_time != splits):
            raise ReparameterizationError(
                f"{describe(node)} reads {len(shape)} dimensions; it "
                + (f"must be [{self.timesteps}, B, C, ...]" if neuron.splits_time else "must be")
                + " [B, C, ...]"
            )
        spikes = [*node.users] if neuron.returns_state else [node]
        lif = self._layer(node, neuron, tuple(sizes), spikes)
        if self.norms_at_threshold:
            self._start_norms(current, lif.v_threshold)
        name = self._name(node)
        relu = F.relu6 if record.activation_name(self.graph, node) == "relu6" else F.relu
        self.replaced[name] = relu if neuron is self.neuron else None
        fired = self._replaced(node, name, lif, splits)
        fired.meta.update(val=current.meta["val"])
        for old in spikes:
            old.replace_all_uses_with(fired)
        for old in dict.fromkeys([*spikes, node]):
            graph.erase_node(old)

    def _replaced(self, node: fx.Node, name: str, module: nn.Module, splits: bool) -> fx.Node:
        """Call a module in the place of a node, on [T*B, ...] where the node reads [T, B, ...]."""
        graph, x = self.graph.graph, node.all_input_nodes[0]
        with graph.inserting_before(node):
            if splits:
                x = graph.call_method("flatten", (x, 0, 1))
            result = self._call(name, x, module)
            if splits:
                result = graph.call_method("unflatten", (result, 0, (self.timesteps, -1)))
        return result

    def _run_over_time(self, node: fx.Node) -> None:
        """Let a layer that reads [T, B, ...] be the one of torch that it comes from."""
        if node.op != "call_module":
            return
        layer, shape = self.graph.get_submodule(str(node.target)), self._shape_of(node)
        is_linear = isinstance(layer, nn.Linear) and len(shape) == 3 and shape[0] == self.timesteps
        if not is_linear and not isinstance(layer, RecordedLayer):
            return
        layer = self.root.get_submodule(str(node.target))
        layer.__class__ = torch_class(layer) or type(layer)
        result = self._replaced(node, str(node.target), layer, splits=True)
        result.meta.update(val=node.meta["val"])
        node.replace_all_uses_with(result)
        self.graph.graph.erase_node(node)

    def _layer(self, node, neuron: Neuron, shape: tuple, spikes) -> RealSpikeLIF:
        granularity = self.granularity
        if granularity == "element" and any(self._is_max_pooled(n) for n in spikes):
            granularity = "channel"
        form: dict[str, Any] = dict(neuron.form)
        for name, value in neuron.learned.items():
            kind = "layer" if value.numel() == 1 else "element"
            if kind == "element" and tuple(value.shape) != shape:
                raise ReparameterizationError(
                    f"{describe(node)}: {name} has shape {tuple(value.shape)}, its neurons {shape}"
                )
            if name == "amplitude":
                granularity = granularity if granularity != "none" else kind
                if kind == "element":
                    granularity = kind
            else:
                form[{"decay": "decay", "v_threshold": "threshold"}[name] + "_granularity"] = kind
        try:
            lif = RealSpikeLIF(self.timesteps, granularity, shape, **form, **self.where)
        except ValueError as error:
            raise ReparameterizationError(f"{describe(node)}: {error}") from None
        with torch.no_grad():
            for name, value in neuron.learned.items():
                logit = name == "decay"
                parameter: Any = lif.decay_logit if logit else getattr(lif, name)
                value = value.double().to(parameter.device)
                parameter.copy_(torch.logit(value) if logit else value)
        if neuron.fixed_amplitude and lif.amplitude is not None:
            lif.amplitude.requires_grad_(False)
        return lif.train(self.root.training)

    def _is_max_pooled(self, node: fx.Node) -> bool:
        for user in node.users:
            name = record.activation_name(self.graph, user)
            if "max" in name and "pool" in name:
                return True
            passes = name in ("identity", "dropout", "dropout2d", "flatten", "unflatten", "view")
            if passes and self._is_max_pooled(user):
                return True
        return False

    def _start_norms(self, current: fx.Node, threshold) -> None:
        def source(node: fx.Node) -> Any:
            encodes = record.activation_name(self.graph, node) == "directencoding"
            return node.args[0] if encodes else node

        current = source(current)
        is_sum = record.activation_name(self.graph, current) in ("add", "add_", "__add__", "iadd")
        norms = [
            self.root.get_submodule(str(n.target))
            for n in map(source, current.all_input_nodes if is_sum else [current])
            if n.op == "call_module"
            and not self._was_made(str(n.target))
            and isinstance(self.root.get_submodule(str(n.target)), BATCH_NORMS)
        ]
        start = float(torch.as_tensor(threshold).detach().mean()) / max(len(norms), 1) ** 0.5
        for norm in norms:
            if norm.weight is not None:
                self.starts.append((norm.weight, start))

    # --- names and modules

    def _call(self, name: str, x: fx.Node, module: nn.Module) -> fx.Node:
        parent, _, child = name.rpartition(".")
        setattr(self.root.get_submodule(parent), child, module)
        self.graph.add_submodule(name, module)
        return self.graph.graph.create_node("call_module", name, (x,), {})

    def _free(self, path: str, name: str) -> str:
        parent, count, taken = self.root.get_submodule(path), 1, name
        while hasattr(parent, taken):
            count += 1
            taken = f"{name}_{count}"
        return f"{path}.{taken}" if path else taken

    def _name(self, node: fx.Node) -> str:
        """Return the layer's name at its first call; else the first that is free."""
        if node.op == "call_module":
            target = str(node.target)
            self.calls[target] += 1
            if self.calls[target] == 1 and not self._was_made(target):
                return target
            path, _, name = target.rpartition(".")
            return self._free(path, "relu" if self._was_made(target) else name)
        path = [*node.meta["nn_module_stack"]][-1:] or [""]
        return self._free("" if self._was_made(path[0]) else path[0], "relu")

    def _was_made(self, name: str) -> bool:
        """Whether a layer was made inside forward: the network has no name for it."""
        try:
            self.root.get_submodule(name)
        except AttributeError:
            return True
        return False

    def _result(self) -> fx.GraphModule:
        graph = self.graph.graph
        for node in [*graph.nodes]:
            if (dropout := node.meta.get("dropout")) is not None:
                path = [*node.meta["nn_module_stack"]][-1:] or [""]
                with graph.inserting_after(node):
                    name = self._free(path[0], "dropout")
                    layer = self._call(name, node.args[0], dropout.train(self.root.training))
                node.replace_all_uses_with(layer)
                graph.erase_node(node)
        for node in graph.nodes:
            if node.op == "call_module" and self._was_made(node.target):
                made = self.graph.get_submodule(node.target)
                if [*made.parameters()]:
                    raise ReparameterizationError(
                        f"{describe(node)} is made anew, with new weights, at each call"
                    )
                self.root.add_module(node.target, made.train(self.root.training))
            if node.op == "get_attr" and record.is_made(node.target):
                value = getattr(self.graph, node.target).to(self.where["device"])
                self.root.register_buffer(node.target, value, persistent=False)
        for name, module in self.graph.named_modules():
            # The graph reads tensors that a layer would change in place.
            if getattr(module, "inplace", None) is False and not self._was_made(name):
                self.root.get_submodule(name).inplace = False
        for node in graph.nodes:  # [T*B, ...] -> [T, B, ...] -> [T*B, ...]
            if _is_call(node, "flatten") and node.args[1:] == (0, 1):
                split = node.args[0]
                if _is_call(split, "unflatten") and split.args[1:] == (0, (self.timesteps, -1)):
                    node.replace_all_uses_with(split.args[0])
        drop_unused(self.graph)
        for node in graph.nodes:
            node.meta.clear()
        make_readable(graph)
        try:
            result = fx.GraphModule(self.root, graph, type(self.root).__name__)
        except SyntaxError as error:
            raise ReparameterizationError(
                f"a layer has a name that Python does not read as one: {error}"
            ) from None
        result.train(self.root.training)
        return result


def _is_call(node: fx.Node, method: str) -> bool:
    return node.op == "call_method" and node.target == method


def _chain(output: fx.Node, end: fx.Node) -> list[fx.Node]:
    """Return the functions of one tensor between an output and `end`, which is not one of them."""
    nodes = []
    while output is not end:
        nodes.append(output)
        output = output.all_input_nodes[0]
    return nodes
