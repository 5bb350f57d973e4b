"""From a model as its user wrote it to a list of layers.

The model is traced with torch.fx, so modules and functional calls look alike. Today the graph must
be a chain; branches are refused by name.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from realspike_ops.nn import DirectEncoding, MeanOverTime, RealSpikeLIF


class ReparameterizationError(ValueError):
    """The network cannot be folded; the message names the layer, the operation and the reason."""


@dataclass(frozen=True)
class Layer:
    """One step of the chain and the shape that reaches it."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = isinstance(module, (RealSpikeLIF, DirectEncoding, MeanOverTime))
        return ours or super().is_leaf_module(module, qualified_name)


def _functional_module(node: fx.Node) -> nn.Module | None:
    """Return the module that a functional call or method stands for, if it is known."""
    if node.target in (torch.flatten, "flatten"):
        names = ("start_dim", "end_dim")
        given = dict(zip(names, node.args[1:], strict=False)) | {
            name: node.kwargs[name] for name in names if name in node.kwargs
        }
        return nn.Flatten(given.get("start_dim", 0), given.get("end_dim", -1))
    if node.target == "contiguous":
        return nn.Identity()
    if node.target is torch.nn.functional.dropout:
        # The function drops in eval mode too, unless it is told not to.
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        return None if training else nn.Identity()
    return None


def _describe(node: fx.Node) -> str:
    target = (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", node.target)
    )
    return f"{node.name!r} ({node.op} {target})"


def chain_of(model: nn.Module, example_input: Tensor) -> list[Layer]:
    """Trace `model`, which is in eval mode, to its chain of layers.

    Raises:
        ReparameterizationError: if the model cannot be traced, is not a chain, or calls something
            that has no module.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise ReparameterizationError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}; data-dependent control "
            "flow in forward() is the usual cause"
        ) from error
    layers = []
    x = example_input
    previous = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if previous is not None:
                raise ReparameterizationError(
                    f"a second input, {node.name!r}: only one is supported"
                )
            previous = node
            continue
        inputs = node.all_input_nodes
        if node.op != "output" and (inputs != [previous] or not node.users):
            raise ReparameterizationError(
                f"{_describe(node)} does not follow the layer before it alone: branches are not "
                "supported yet, only a chain of layers"
            )
        if len(previous.users) > 1:
            raise ReparameterizationError(
                f"{_describe(previous)} feeds {len(previous.users)} layers: branches are not "
                "supported yet, only a chain of layers"
            )
        if node.op == "output":
            if node.args[0] is not previous:
                raise ReparameterizationError("the model must return one tensor")
            break
        module = (
            model.get_submodule(node.target)
            if node.op == "call_module"
            else _functional_module(node)
        )
        if module is None:
            raise ReparameterizationError(
                f"{_describe(node)} is not an operation that can be folded"
            )
        name = node.target if node.op == "call_module" else node.name
        layers.append(Layer(str(name), module, tuple(x.shape)))
        x = module(x)
        previous = node
    return layers
