"""The walk over a traced network: the value of every tensor, and the steps that compute it."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from realspike_ops import _checks as checks
from realspike_ops.nn import (
    AtTimestep,
    FoldedLIF,
    RealSpikeLIF,
    Rearrange,
    SumOverTime,
    SynapticCurrent,
)
from realspike_ops.reparam.algebra.layout import NoWindow, arranged, as_map, layout_of
from realspike_ops.reparam.algebra.value import Source, Term, Value, of_source
from realspike_ops.reparam.build.at_node import AtNode
from realspike_ops.reparam.build.synapses import (
    PlannedCurrent,
    PlannedNeurons,
    PlannedSynapses,
    plan,
)
from realspike_ops.reparam.encoding_call import Argument, EncodingCall
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.network import INPUT, RESERVED, FoldedNetwork, Step
from realspike_ops.reparam.rules import table
from realspike_ops.reparam.trace.in_place import changed_copy
from realspike_ops.reparam.trace.names import describe, layer_class
from realspike_ops.reparam.trace.sizes import batch_size
from realspike_ops.reparam.trace.trace import unused

_ALONE = "behind neurons, layers read their input alone"


class Folding(AtNode):
    """Walks a graph from `trace`, and finds the value of every tensor.

    Args:
        graph: Its nodes have their values as ``meta["val"]``, without contents where they depend on
            the input.
        batch: The only batch that the network takes; None: any.
        carries: Whether neurons may read the current of others with something added to it.
    """

    def __init__(self, graph: fx.GraphModule, batch: int | None = None, carries: bool = True):
        super().__init__(graph)
        self.batch, self.carries = batch, carries
        self.encoding: list[Step] = []
        self.steps: list[Step] = []
        self.modules: dict[str, nn.Module] = {}
        self.planned: dict[str, PlannedCurrent] = {}  # steps whose modules are not allocated yet
        self.currents: dict[int, str] = {}  # id of a value that neurons read -> its step
        self.sizes: dict[fx.Node, str] = {}  # steps of sizes
        self.neurons: dict[str, tuple[str, int]] = {}
        self.timesteps: dict[tuple[str, int], str] = {}  # (step, timestep) -> its step
        # id of a sum -> (itself, what was added)
        self.sums: dict[int, tuple[Value, Value, Value]] = {}
        self.names: set[str] = {INPUT}
        self.output = None  # the step of the output, or a structure of steps
        self.input_shape: tuple[int, ...] = ()

    # --- steps

    def spikes(self, name: str, module: nn.Module, *inputs: str) -> str:
        """Add a step that moves spikes."""
        name = self.unique_name(name)
        self.modules[name] = module
        self.steps.append(Step(name, inputs))
        return name

    def encode(self, target, inputs: tuple[str, ...], *rest) -> str:
        """Add a step to the encoding: target(*inputs, *rest)."""
        constants = {f"constant{n}": c for n, c in enumerate(rest) if isinstance(c, Tensor)}
        numbers = (
            Argument(f"constant{n}") if isinstance(c, Tensor) else c for n, c in enumerate(rest)
        )
        arguments = (*(Argument(n) for n in range(len(inputs))), *numbers)
        call = EncodingCall(target, arguments, {}, constants)
        return self._encoding_step(f"{self.layer_name}_real", call, inputs)

    def _encoding_step(self, name: str, module: nn.Module, inputs: tuple[str, ...]) -> str:
        name = self.unique_name(name)
        self.modules[name] = module
        self.encoding.append(Step(name, tuple(inputs)))
        return name

    def unique_name(self, name: str) -> str:
        """Name a step as in the model, "." replaced; one that is called again gets a number."""
        unique = name = name.replace(".", "_")
        # A submodule must not hide an attribute of the network.
        calls = 1
        while unique in self.names or unique in RESERVED or hasattr(FoldedNetwork, unique):
            calls += 1
            unique = f"{name}_call{calls}"
        self.names.add(unique)
        return unique

    # --- the walk

    def run(self) -> None:
        ignored = unused(self.graph)
        for node in self.graph.graph.nodes:
            self.node = node
            if node in ignored:
                continue
            if node.op == "placeholder":
                self.input_shape = tuple(node.meta["val"].shape[1:])
                self.values[node] = _real(INPUT)
            elif node.op == "output":
                self._finish(node)
            elif node.op != "get_attr" and node.target is not batch_size:
                value = self._value(node)
                if value is not None:  # a constant, whatever it was told from
                    self.values[node] = value

    def _value(self, node: fx.Node) -> Value | None:
        read = [self.values[n] for n in node.all_input_nodes if n in self.values]
        result = node.meta["val"]
        if isinstance(lif := self._module(node), RealSpikeLIF):
            return self._fire(node, lif, read[0], result)
        if all(value.is_real for value in read):
            return _real(self._encode_node(node))
        timesteps = sorted({value.timesteps for value in read if value.terms})
        if len(timesteps) > 1:
            self.refuse(f"it reads spikes of {' and of '.join(map(str, timesteps))} timesteps")
        return self._apply_rule(node)

    def _apply_rule(self, node: fx.Node) -> Value | None:
        def given(n: fx.Node) -> Any:
            return self.values.get(n, n.meta["val"])

        args, kwargs = map_arg((node.args, node.kwargs), given)

        module = self._module(node)
        try:
            if module is None:
                if node.target is changed_copy:
                    method = repr(node.args[0])
                    self.refuse(
                        f"{method} changes a tensor in place, and has no form that does not"
                    )
                rule = table.RULES.get(self.operation)
                if rule is None:
                    self.refuse("it is not linear, or not known")
                sized = any(n.target is batch_size for n in node.all_input_nodes)
                if sized and rule in table.ARITHMETIC:
                    self.refuse("the size of the batch is one of its operands")
                if not _takes(rule, self, *args, **kwargs):
                    self.refuse("it is called with arguments that are not known here")
                value = rule(self, *args, **kwargs)
            else:
                found = table.MODULES.get(layer_class(type(module)))
                if found is None:
                    self.refuse("it is not linear, or not known")
                if len(args) != 1 or kwargs:
                    others = [*inspect.signature(module.forward).parameters][1 : len(args)]
                    self.refuse(f"it is called with {', '.join([*others, *kwargs])}: {_ALONE}")
                rule, arguments = found
                value = rule(self, *args, *arguments(module))
        except ReparameterizationError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            self.refuse(str(error))
        except AttributeError:
            self.refuse("an argument depends on the input, or on chance, that must be a constant")
        if value is not None and value.real is not None and rule not in table.ARITHMETIC:
            # The layer is linear, so that the real part of a sum passes it by itself.
            value = replace(value, real=self._encode_node(node))
        return value

    def _encode_node(self, node: fx.Node) -> str:
        """Add a step to the encoding that runs the node on the real parts of its arguments."""
        inputs: list[Any] = []
        constants: dict[str, Tensor] = {}

        def argument(n: fx.Node) -> Any:
            if n in self.values:
                inputs.append(self.values[n].real)
                return Argument(len(inputs) - 1)
            if n.target is batch_size:
                inputs.append(self._size(n))
                return Argument(len(inputs) - 1)
            constants[f"constant{len(constants)}"] = n.meta["val"]
            return Argument(f"constant{len(constants) - 1}")

        args, kwargs = map_arg((node.args, node.kwargs), argument)
        module = self._module(node)
        if module is None or args != (Argument(0),) or kwargs:
            target = node.target if module is None else module
            module = EncodingCall(target, args, kwargs, constants)
        return self._encoding_step(self.layer_name, module, tuple(inputs))

    def _size(self, node: fx.Node) -> str:
        """Add the step that computes a size of the batch, once."""
        if node not in self.sizes:
            call = EncodingCall(batch_size, (Argument(0), *node.args[1:]), {}, {})
            self.sizes[node] = self._encoding_step("batch_size", call, (INPUT,))
        return self.sizes[node]

    # --- currents and neurons

    def _fire(self, node: fx.Node, lif: RealSpikeLIF, value: Value, result: Tensor) -> Value:
        if value.terms and value.time != "steps":
            self.refuse("the timesteps are no longer apart")
        if value.terms and value.timesteps != lif.timesteps:
            self.refuse(f"it has {lif.timesteps} timesteps, the spikes {value.timesteps}")
        if result.dim() not in (2, 3, 4):
            self.refuse(
                "maps must be [T*B, C, H, W], [T*B, C, L] or [T*B, F]; "
                f"got {checks.shape_text(result)}"
            )
        current = self.currents.get(id(value)) or self._current(value, self.layer_name)
        self.currents[id(value)] = current
        name = self.unique_name(self.layer_name)
        self.neurons[name] = (self.layer_name, node.meta["call"])
        if current in self.planned:
            self.planned[current].neurons.append(PlannedNeurons(name, describe(node)))
        form: dict[str, Any] = {**lif.fitted(result.dim() - 1)}
        amplitude = form.pop("amplitude")
        self.modules[name] = FoldedLIF(lif.timesteps, **form)
        self.steps.append(Step(name, (current,)))
        shape = _as_map(result.shape[1:])
        if amplitude is not None:
            amplitude = amplitude.detach().double()
            sizes = (1,) * (result.dim() - 1 - amplitude.dim()) + tuple(amplitude.shape)
            amplitude = amplitude.reshape(_as_map(sizes))
        signed = lif.emission == "ternary"
        return of_source(Source(name, shape, result.dim(), amplitude, signed, lif.timesteps))

    def _current(self, value: Value, reader: str) -> str:
        """Plan the steps that compute a value, written as its tensor is, and return its name."""
        if value.is_real:
            assert value.real is not None
            return value.real
        if 0 in self.node.meta["val"].shape:
            self.refuse("there are no elements")
        value = self._carried(value)
        real, written = value.real, value
        value, elements = self._readable(value)
        if real is not None and elements is None:
            value = replace(value, real=real)
        spikes = value.terms[0].source.step if value.is_spikes else None
        name = spikes or self._planned_step(value, reader)
        if elements is not None:
            shape = tuple(layout_of(self, written).tensor.shape[1:])
            name = self.spikes(f"{reader}_rearranged", Rearrange(elements, shape), name)
            if real is not None:
                name = self.spikes(f"{reader}_sum", SynapticCurrent({}), name, real)
        return name

    def _carried(self, value: Value) -> Value:
        """Return what is added to a current of other neurons, with that current as its real part.

        So the synapses of a shortcut through all blocks are there once.
        """
        _, *parts = self.sums.get(id(value), (value,))
        if not self.carries or len(parts) < 2 or value.time != "steps":
            return value
        for whole, added in (parts, parts[::-1]):
            current = self.currents.get(id(whole))
            plain = added.layout is None and added.real is None and added.terms
            if current in self.planned and plain and added.rank == value.rank:
                return replace(added, real=current)
        return value

    def _readable(self, value: Value) -> tuple[Value, Tensor | None]:
        """Return maps that synapses can compute, and which of their elements the tensor has."""
        if value.layout is None:
            return value, None
        layout = value.layout
        if not isinstance(layout.ids, Tensor):
            self.refuse("it reads several tensors at once: read them one by one")
        dims = layout.tensor.dim() - 1
        value, _, elements, _ = arranged(self, replace(value, real=None), dims, every_row=True)
        try:
            if dims in (1, 2, 3):
                shape = tuple(layout.tensor.shape[1:])
                return as_map(self, value, elements, shape, for_neurons=True), None
        except NoWindow:
            pass
        return replace(value, layout=None), elements

    def _planned_step(self, value: Value, reader: str) -> str:
        value = replace(value, terms=tuple(self._of_step(term) for term in value.terms))
        synapses = self._planned(value)
        bias = value.constant
        if bias is not None:
            bias = bias.expand(value.grid) if value.flat else bias
            # The sum over time adds the bias at every timestep.
            bias = bias / value.timesteps if value.time == "averaged" else bias
        name = value.layer if len(synapses) == 1 and value.layer else f"{reader}_current"
        name = self.unique_name(name)
        has_real_part = value.real is not None
        self.planned[name] = PlannedCurrent(
            synapses, bias, value.grid, value.rank, has_real_part, neurons=[]
        )
        sources = [source for planned in synapses for source in planned.sources]
        self.steps.append(Step(name, (*sources, *([value.real] if value.real else []))))
        return name

    def _of_step(self, term: Term) -> Term:
        """Take the spikes of one timestep by a step of their own."""
        source = term.source
        if source.at is None:
            return term
        key = (source.step, source.at)
        if key not in self.timesteps:
            module = AtTimestep(source.timesteps, source.at)
            name = f"{source.step}_at_{source.at}"
            self.timesteps[key] = self.spikes(name, module, source.step)
        return Term(replace(source, step=self.timesteps[key], at=None), term.window)

    @staticmethod
    def _planned(value: Value) -> list[PlannedSynapses]:
        """Plan the synapses of all terms, those with equal weights as one layer."""
        synapses: list[PlannedSynapses] = []
        for planned in (plan(term, value.rank) for term in value.terms):
            for n, other in enumerate(synapses):
                if (joined := other.joined(planned)) is not None:
                    synapses[n] = joined
                    break
            else:
                synapses.append(planned)
        return synapses

    def _finish(self, node: fx.Node) -> None:
        leaves = pytree.tree_leaves(node.args)
        # The graph has lists and dicts of its own.
        structure = pytree.tree_structure(node.meta["val"])
        for leaf in leaves:
            if not isinstance(leaf, (fx.Node, bool, int, float, type(None))):
                raise ReparameterizationError(
                    f"the model returns a {type(leaf).__name__}: tensors, and tuples, lists and "
                    "dicts of them, can be returned"
                )
        if not any(isinstance(module, FoldedLIF) for module in self.modules.values()):
            raise ReparameterizationError(
                "nothing emits spikes: the model has no RealSpikeLIF layer"
            )
        steps = [self._output(leaf) if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        self.output = pytree.tree_unflatten(steps, structure)
        if not any(isinstance(leaf, str) for leaf in pytree.tree_leaves(self.output)):
            raise ReparameterizationError("the model must return a tensor, or several")

    def _output(self, node: fx.Node) -> str:
        self.node, value = node, self.values.get(node)
        if value is None:
            raise ReparameterizationError(
                f"the model returns {describe(node)}, which does not depend on its input"
            )
        if value.time != "averaged":
            return self._current(value, "output")
        name = self._current(replace(value, real=None), "output")
        name = self.spikes(str(value.average), SumOverTime(value.timesteps), name)
        if value.real is not None:
            name = self.spikes("output_sum", SynapticCurrent({}), name, value.real)
        return name


def _takes(rule, *args, **kwargs) -> bool:
    try:
        inspect.signature(rule).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _real(step: str) -> Value:
    """Return a value that is real alone. It has no grid, which nobody asks of it."""
    return Value(None, real=step)  # pyright: ignore[reportArgumentType]  # for all others it is set


def _as_map(sizes: Sequence[int]) -> tuple[int, int, int]:  # [F], [C, L] or [C, H, W]
    """Return the shape of the map that features, a line or a map are."""
    C, *pixels = sizes
    H, W = (1, 1) if not pixels else (1, pixels[0]) if len(pixels) == 1 else pixels
    return C, H, W
