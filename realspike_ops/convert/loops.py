"""Loops over time inside forward: T calls of every layer become one, of all timesteps."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate

from realspike_ops.convert.neurons import Recorded
from realspike_ops.convert.record import draws
from realspike_ops.reparam.trace.names import function_name
from realspike_ops.reparam.trace.sizes import batch_size, is_of_batch

_ZEROS = ("zeros", "zeros_like", "new_zeros")
_SUMS = ("add", "add_", "__add__", "__iadd__", "iadd")


class Unaligned(Exception):
    """T calls that do not do the same at every timestep."""


class Loops:
    """Rolls up the nodes that forward runs once per timestep.

    Everything that is read after the loop joins T tensors, one of each timestep: a stack, a
    concatenation or a sum. From there backwards, T nodes that do the same with what they read are
    one node that reads [T*B, ...]. A value that is the same at all timesteps is repeated.

    Args:
        graph: The record, in which every neuron is called T times.
        encode: Adds a node that repeats a tensor over time.
        total: Adds a node that sums [T*B, ...] over time.
    """

    def __init__(self, graph: fx.GraphModule, timesteps: int, encode: Callable, total: Callable):
        self.record, self.graph, self.timesteps = graph, graph.graph, timesteps
        self.encode, self.total = encode, total
        self.rolled: dict[tuple, fx.Node] = {}
        self.repeated: dict[fx.Node, fx.Node] = {}
        self.timed: set[fx.Node] = set()  # those of [T*B, ...]

    def run(self) -> None:
        for node in [*self.graph.nodes]:
            if (terms := self._joined(node)) is None:
                continue
            with self.graph.inserting_before(node):
                try:
                    steps = self._steps(terms)
                except Unaligned:
                    continue
                name = function_name(node)
                if name in _SUMS:
                    result = self.total(steps)
                elif name == "cat":
                    result = steps
                else:
                    result = self.graph.call_method("unflatten", (steps, 0, (self.timesteps, -1)))
            result.meta.update(val=node.meta["val"])
            node.replace_all_uses_with(result)

    def _joined(self, node: fx.Node) -> tuple | None:
        """Return the tensors of T timesteps that a node joins."""
        if node.op not in ("call_function", "call_method"):
            return None
        name = function_name(node)
        if name in ("stack", "cat"):
            given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
            terms: Any = given.get("tensors", ())
            dim = given.get("dim", given.get("axis", 0))
            return tuple(terms) if dim == 0 and len(terms) == self.timesteps else None
        if name not in _SUMS or node.kwargs:
            return None
        if any(function_name(u) in _SUMS for u in node.users if u.op != "output"):
            return None  # a part of the sum
        terms = []
        while _is_node(node) and node.op != "get_attr" and function_name(node) in _SUMS:
            args: Any = node.args
            node, last = args
            terms.append(last)
        return tuple(t for t in (node, *reversed(terms)) if not self._is_zero(t))

    def _is_zero(self, value) -> bool:
        if not _is_node(value):
            return value is None or value == 0
        if value.op == "get_attr":
            return not bool(getattr(self.record, value.target).any())
        return value.op in ("call_function", "call_method") and function_name(value) in _ZEROS

    def _steps(self, nodes: tuple) -> fx.Node:
        """Return one node of [T*B, ...] for T nodes of [B, ...]."""
        return self._over_time(self._one(nodes))

    def _one(self, nodes: tuple) -> fx.Node:
        """Return the first of T nodes if they are equal, else one node of [T*B, ...] for them."""
        if len(nodes) != self.timesteps or not all(map(_is_node, nodes)):
            raise Unaligned
        first = nodes[0]
        if all(node is first for node in nodes):
            return first
        if nodes not in self.rolled:
            if any((n.op, n.target) != (first.op, first.target) for n in nodes):
                raise Unaligned
            self.rolled[nodes] = self._of_input(nodes) or self._roll(nodes)
        return self.rolled[nodes]

    def _of_input(self, nodes: tuple) -> fx.Node | None:
        """Return [T*B, ...] for x[t] of x [T, B, ...], or x[:, t] of [B, T, ...]."""
        if nodes[0].target is not operator.getitem:
            return None
        x, keys = nodes[0].args[0], [node.args[1] for node in nodes]
        if any(node.args[0] is not x for node in nodes) or not _is_node(x):
            return None
        times = [*range(self.timesteps)]
        whole = slice(None)
        if keys == times:
            shape = getattr(x.meta["val"], "shape", None)
            if shape is not None and shape[0] != self.timesteps:
                raise Unaligned
            if shape is None:  # the results of x.unbind(0)
                if function_name(x) != "unbind" or x.args[1:] not in ((), (0,)) or x.kwargs:
                    raise Unaligned
                x = x.args[0]
        elif all(isinstance(k, tuple) and k[:1] == (whole,) for k in keys) and [
            k[1:] for k in keys
        ] == [(t,) for t in times]:
            if x.meta["val"].shape[1] != self.timesteps:
                raise Unaligned
            x = self.graph.call_method("transpose", (x, 0, 1))
        else:
            return None
        steps = self.graph.call_method("flatten", (x, 0, 1))
        self.timed.add(steps)
        steps.meta.update(val=nodes[0].meta["val"])
        return steps

    def _roll(self, nodes: tuple) -> fx.Node:
        first = nodes[0]
        if self._is_neuron(first):
            self._check_states(nodes)
            args, kwargs = (self._steps(tuple(n.all_input_nodes[0] for n in nodes)),), {}
            return self._new(nodes, args, kwargs)
        if any(
            len(n.args) != len(first.args) or n.kwargs.keys() != first.kwargs.keys() for n in nodes
        ):
            raise Unaligned
        args = [self._argument(values) for values in zip(*(n.args for n in nodes), strict=True)]
        kwargs = {k: self._argument(tuple(n.kwargs[k] for n in nodes)) for k in first.kwargs}
        given = (*args, *kwargs.values())
        has_time = any(_is_node(a) and a in self.timed for a in _flat(given))
        if not has_time and not draws(self.record, first):
            return first  # the same at every timestep
        if first.meta.get("draws") and not any(map(is_of_batch, first.meta["val"].shape[:1])):
            raise Unaligned  # nor would more rows be drawn
        args, kwargs = (map_aggregate(a, self._over_time) for a in (tuple(args), kwargs))
        return self._new(nodes, args, kwargs)

    def _argument(self, values: tuple):
        if isinstance(values[0], (list, tuple)):
            if any(not isinstance(v, type(values[0])) or len(v) != len(values[0]) for v in values):
                raise Unaligned
            return [self._argument(items) for items in zip(*values, strict=True)]
        if _is_node(values[0]):
            return self._one(values)
        if any(type(v) is not type(values[0]) or v != values[0] for v in values):
            raise Unaligned
        return values[0]

    def _over_time(self, value):
        """Repeat a value that is the same at all timesteps, where it meets one that is not."""
        if not _is_node(value) or value in self.timed or value.op == "get_attr":
            return value
        if value not in self.repeated and value.target is batch_size:
            self.repeated[value] = times(value, self.timesteps)
        if value not in self.repeated:
            self.repeated[value] = self.encode(value)
            self.repeated[value].meta.update(val=value.meta["val"])
        return self.repeated[value]

    def _new(self, nodes: tuple, args, kwargs) -> fx.Node:
        first = nodes[0]
        node = self.graph.create_node(first.op, first.target, args, kwargs)
        node.meta = dict(first.meta)
        self.timed.add(node)
        return node

    # --- neurons

    def _is_neuron(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.record.get_submodule(str(node.target)), Recorded
        )

    def _check_states(self, nodes: tuple) -> None:
        """Raise unless each call reads the state of the one before, the first none or zeros."""
        if [n.meta["call"] for n in nodes] != [*range(1, self.timesteps + 1)]:
            raise Unaligned
        before = None
        for node in nodes:
            states = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("state", "mem"))]
            for state in states:
                if before is None:
                    if not self._is_zero(state):
                        raise Unaligned
                elif not (
                    _is_node(state)
                    and state.target is operator.getitem
                    and state.args == (before, 1)
                ):
                    raise Unaligned
            before = node


def times(size: fx.Node, timesteps: int) -> fx.Node:
    """Return the size that is `timesteps` times another one, which follows the batch.

    Raises:
        Unaligned: for all rows but a number of them.
    """
    args: Any = size.args
    x, numerator, denominator, offset = args
    if offset:
        raise Unaligned
    with size.graph.inserting_after(size):
        return size.graph.call_function(batch_size, (x, numerator * timesteps, denominator, 0))


def _is_node(value) -> bool:
    return isinstance(value, fx.Node)


def _flat(values) -> list:
    found: list = []
    map_aggregate(tuple(values), found.append)
    return found
