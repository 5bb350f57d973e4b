"""From a model as its user wrote it to a graph of modules and functional calls."""

from torch import fx, nn
from torch.nn.utils import parametrize

from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.in_place import Proxy, without_side_effects


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = type(module).__module__.split(".")[0] == "realspike_ops"
        return ours or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model`, a copy in eval mode that may be changed.

    Raises:
        ReparameterizationError: if it has hooks, cannot be traced, has a second input, leaves a
            layer unused, or reads a view of a tensor that was changed in place.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ReparameterizationError(
                f"{name!r} ({type(module).__name__}) has forward hooks, which may change what it "
                "computes: remove them (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )
    _fix_parametrizations(model)
    try:
        tracer = _Tracer()
        graph = tracer.trace(model)
    except Exception as error:
        raise ReparameterizationError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}; the usual causes are "
            "data-dependent control flow in forward(), and neurons that are called as a function "
            "(lif) and not as a layer (RealSpikeLIF)"
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        names = ", ".join(repr(node.name) for node in inputs[1:]) or "none"
        raise ReparameterizationError(f"a second input, {names}: exactly one is supported")
    without_side_effects(tracer.root, graph, describe, function_name)
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:
            raise ReparameterizationError(f"{describe(node)}: nothing uses its output")
    return fx.GraphModule(tracer.root, graph)


def _fix_parametrizations(model: nn.Module) -> None:
    """Give layers whose weights are computed (weight norm, spectral norm) what these are now."""
    for module in [m for m in model.modules() if parametrize.is_parametrized(m)]:
        values = {name: getattr(module, name).detach() for name in module.parametrizations}
        # Not remove_parametrizations: it changes the class, which the copied model shares.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value.clone()))


def describe(node: fx.Node) -> str:
    """Return the name of a node, what it calls and the module that calls it."""
    target = node.target if isinstance(node.target, str) else node.target.__name__
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if node.op == "call_module":
        kind = stack[-1][1].__name__ if stack else "module"
        return f"{target!r} ({kind})"
    path = stack[-1][0] if stack and stack[-1][0] else None
    return f"{node.name!r} ({node.op} {target})" + (f" in {path!r}" if path else "")


def function_name(node: fx.Node) -> str:
    """Return the name that a function, operator or method goes by ("add", "max_pool2d", ...)."""
    name = node.target if isinstance(node.target, str) else node.target.__name__
    # torch.nn.functional wraps some functions to choose between two of them.
    name = {"boolean_dispatch": "", "fn": ""}.get(name, name) or _dispatched(node.target)
    return name if name.startswith("__") else name.rstrip("_")


def _dispatched(function) -> str:
    names = ("max_pool2d", "adaptive_max_pool2d")
    return next((n for n in names if function is getattr(nn.functional, n)), "fn")
