"""The node that is folded, as a rule sees it: its name, its arguments, a run on other tensors."""

import math
import re
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from realspike_ops.nn import RealSpikeLIF
from realspike_ops.reparam.algebra.value import Value
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.names import describe, function_name
from realspike_ops.reparam.trace.sizes import is_of_batch, of_batch, size_of


class AtNode:
    """The node of a traced graph that is folded at the moment."""

    def __init__(self, graph: fx.GraphModule):
        self.graph = graph
        self.values: dict[fx.Node, Value] = {}
        self.node: fx.Node

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None

    @property
    def layer_name(self) -> str:
        return str(self.node.target if self.node.op == "call_module" else self.node.name)

    @property
    def operation(self) -> str:
        """The name of the function, operator or method that the node calls; "" for a layer."""
        return "" if self.node.op == "call_module" else function_name(self.node)

    def refuse(self, reason: str) -> NoReturn:
        # The trace has a batch that nobody has: its sizes are shown as those of the example.
        reason = re.sub(r"\b\d{8,}\b", lambda size: str(size_of(int(size[0]), 1, 1)), reason)
        raise ReparameterizationError(
            f"{describe(self.node)} reads the spikes of a LIF layer and cannot be folded: {reason}"
        )

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """The shape of the argument that is `value`, with its leading dimensions."""
        node = next(n for n in self.node.all_input_nodes if self.values.get(n) is value)
        return tuple(node.meta["val"].shape)

    def dtype_of(self, value: Value) -> torch.dtype:
        node = next(n for n in self.node.all_input_nodes if self.values.get(n) is value)
        result = node.meta["val"]
        return (result if isinstance(result, Tensor) else result[0]).dtype

    @property
    def small_batch(self) -> int:
        """How many samples the stand-ins of this node's values have."""
        read = (self.values.get(n) for n in self.node.all_input_nodes)
        value = next(v for v in read if v is not None and v.terms)
        rows = self.standin_shape(value)[0] if value.layout is None else value.layout.rows
        return rows // value.timesteps if value.time == "steps" else rows

    def standin_shape(self, value: Value) -> tuple[int, ...]:
        """The shape of the argument in a small batch: a tensor for `rerun` has it."""
        return tuple(self._of_standin(size) for size in self.shape_of(value))

    def rerun(self, standins: dict[Value, Tensor]):
        """Run the node on other tensors in the place of values."""

        def given(n: fx.Node) -> Any:
            value = self.values.get(n)
            tensor = next((t for v, t in standins.items() if v is value), None)
            if tensor is not None:
                return tensor
            return self._of_standin(n.meta["val"])

        node = self.node
        args, kwargs = map_arg((node.args, node.kwargs), given)
        if node.op == "call_method":
            return getattr(Tensor, str(node.target))(*args, **kwargs)
        called: Any = self._module(node) or node.target
        return called(*args, **kwargs)

    def _of_standin(self, number) -> Any:
        """Return what a number of the trace is in the batch of the stand-ins."""
        return size_of(number, self.standin_batch, self.example_batch)

    @cached_property
    def example_batch(self) -> int:
        node = next(n for n in self.graph.graph.nodes if n.op == "placeholder")
        rows = node.meta["val"].shape[0]
        return of_batch(rows, 1)[0] if is_of_batch(rows) else rows  # it takes no other batch

    @cached_property
    def standin_batch(self) -> int:
        """Two samples, whether the network reads images [B, ...] or frames [T*B, ...]."""
        samples = self.example_batch
        for node in self.graph.graph.nodes:
            shape = getattr(node.meta.get("val"), "shape", ())
            for size in shape:
                if is_of_batch(size):
                    module = self._module(node)
                    rows = of_batch(size, 1)[0]
                    timesteps = getattr(module, "timesteps", 1)
                    samples = math.gcd(samples, rows)
                    if rows % timesteps == 0 and isinstance(module, RealSpikeLIF):
                        samples = math.gcd(samples, rows // timesteps)
        return 2 * self.example_batch // max(1, samples)
