"""From a model as its user wrote it to a graph of modules and functional calls."""

import operator

from torch import fx, nn

from realspike_ops.reparam.errors import ReparameterizationError

# What returns its argument, or a view of it; here also dropout, which eval mode turns off.
_VIEWS = frozenset(
    "flatten view reshape contiguous detach squeeze unsqueeze unflatten expand permute transpose "
    "getitem chunk split unbind narrow dropout".split()
)
_VIEW_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)
_IN_PLACE_OPERATORS = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        ours = type(module).__module__.split(".")[0] == "realspike_ops"
        return ours or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Trace `model`, which is in eval mode.

    Raises:
        ReparameterizationError: if it has hooks, cannot be traced, has a second input, leaves a
            layer unused, or uses a tensor that was changed in place.
    """
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ReparameterizationError(
                f"{name!r} ({type(module).__name__}) has forward hooks, which may change what it "
                "computes: remove them (torch.nn.utils.prune.remove, remove_weight_norm, ...)"
            )
    try:
        tracer = _Tracer()
        graph = tracer.trace(model)
    except Exception as error:
        raise ReparameterizationError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}; data-dependent control "
            "flow in forward() is the usual cause"
        ) from error
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        names = ", ".join(repr(node.name) for node in inputs[1:]) or "none"
        raise ReparameterizationError(f"a second input, {names}: exactly one is supported")
    for node in graph.nodes:
        if node.op == "call_module" and not node.users:
            raise ReparameterizationError(f"{describe(node)}: nothing uses its output")
    _check_in_place(tracer.root, graph)
    return fx.GraphModule(tracer.root, graph)


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
    if node.target in _IN_PLACE_OPERATORS:
        return name.removeprefix("i")
    # torch.nn.functional wraps some functions to choose between two of them.
    name = {"boolean_dispatch": "", "fn": ""}.get(name, name) or _dispatched(node.target)
    return name if name.startswith("__") else name.rstrip("_")


def _dispatched(function) -> str:
    names = ("max_pool2d", "adaptive_max_pool2d")
    return next((n for n in names if function is getattr(nn.functional, n)), "fn")


def _changes_in_place(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    return node.op == "call_function" and (
        node.target in _IN_PLACE_OPERATORS
        or node.kwargs.get("inplace") is True
        or getattr(node.target, "__name__", "").endswith("_")
        or node.kwargs.get("out") is not None
    )


def _is_view(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(node.target), _VIEW_MODULES)
    return node.op in ("call_function", "call_method") and function_name(node) in _VIEWS


def _check_in_place(root: nn.Module, graph: fx.Graph) -> None:
    """Refuse graphs in which a tensor is read after it was changed in place.

    The graph says what a name held when it was made; what it holds later is another value.
    """
    position = {node: n for n, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        read = node.all_input_nodes[0] if node.all_input_nodes else None
        changes = node.op != "output" and read is not None and _changes_in_place(root, node)
        if changes and not _is_view(root, node):
            for other, where in memory.items():
                late = [user for user in other.users if position[user] > position[node]]
                if where is memory[read] and late:
                    raise ReparameterizationError(
                        f"{describe(node)} changes {describe(other)} in place, and "
                        f"{describe(late[0])} reads it afterwards: write it without changing it "
                        "(x = x + y)"
                    )
        is_alias = read is not None and (changes or _is_view(root, node))
        memory[node] = memory[read] if is_alias else node
