"""Changes in place as the values that they make: a traced graph without side effects."""

import inspect
import operator

import torch
from torch import fx, nn
from torch.nn import functional as F

from realspike_ops.reparam.errors import ReparameterizationError

# What returns its argument, or a view of it; here also dropout, which eval mode turns off.
_VIEWS = frozenset(
    "flatten view reshape contiguous detach squeeze unsqueeze unflatten expand permute transpose "
    "getitem chunk split unbind narrow dropout".split()
)
_VIEW_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)
_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class Proxy(fx.Proxy):
    """Keeps the operators that change a tensor in place, which torch.fx takes for x = x + y."""

    def __iadd__(self, other):
        return self._in_place(operator.iadd, other)

    def __isub__(self, other):
        return self._in_place(operator.isub, other)

    def __imul__(self, other):
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other):
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function, other):
        return self.tracer.create_proxy("call_function", function, (self, other), {})


def without_side_effects(root: nn.Module, graph: fx.Graph, describe, function_name) -> None:
    """Let whatever reads a tensor after it was changed in place read the result of the change, and
    compute that anew.

    Raises:
        ReparameterizationError: where a view of the tensor is read after the change, or a function
            writes to ``out``; by name.
    """
    position = {node: n for n, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, fx.Node] = {}
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_size(node, sizes):
            sizes.add(node)
            _make_functional(root, node)
            continue
        read = node.all_input_nodes[0] if node.all_input_nodes else None
        if node.op == "call_function" and node.kwargs.get("out") is not None:
            raise ReparameterizationError(
                f"{describe(node)} writes to out=...: use what it returns instead"
            )
        is_view = _is_view(root, node, function_name)
        changes = read is not None and _changes_in_place(root, node)
        if changes and not is_view:
            for other, where in memory.items():
                late = [user for user in other.users if position[user] > position[node]]
                if where is not memory[read] or not late:
                    continue
                if other is not read:
                    raise ReparameterizationError(
                        f"{describe(node)} changes {describe(other)} in place, and "
                        f"{describe(late[0])} reads it afterwards: write it without changing it "
                        "(x = x + y)"
                    )
                for user in late:
                    user.replace_input_with(other, node)
        is_alias = read is not None and (changes or is_view)
        memory[node] = memory.get(read, read) if is_alias else node
        if changes and not _make_functional(root, node):
            raise ReparameterizationError(
                f"{describe(node)} changes its argument in place, and has no form that does not"
            )


def _is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Whether a node is a shape, or a number that was computed from shapes."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel"):
        return True
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    read = node.all_input_nodes
    return node.op == "call_function" and bool(read) and all(n in sizes for n in read)


def _is_view(root: nn.Module, node: fx.Node, function_name) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(node.target), _VIEW_MODULES)
    return node.op in ("call_function", "call_method") and function_name(node) in _VIEWS


def _changes_in_place(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(node.target), "inplace", False))
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    ends = name.endswith("_") and not name.endswith("__")
    return node.target in _OPERATORS or ends or _is_told_to(node)


def _is_told_to(node: fx.Node) -> bool:
    """Whether a function is called with inplace=True, by name or by position."""
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # builtins have no signature
        return node.kwargs.get("inplace") is True
    return given.get("inplace") is True


def _make_functional(root: nn.Module, node: fx.Node) -> bool:
    """Let the node return its result, and leave its argument as it is."""
    if node.op == "call_module":
        root.get_submodule(node.target).inplace = False
        return True
    if node.op == "call_method":
        if not node.target.endswith("_"):
            return True
        node.target = node.target.removesuffix("_")
        return hasattr(torch.Tensor, node.target)
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    if _is_told_to(node):
        signature = inspect.signature(node.target)
        given = signature.bind(*node.args, **node.kwargs)
        given.arguments["inplace"] = False
        node.args, node.kwargs = given.args, given.kwargs
        return True
    name = getattr(node.target, "__name__", "").removesuffix("_")
    functional = getattr(torch, name, None) or getattr(F, name, None)
    if functional is None or name == node.target.__name__:
        return functional is not None
    node.target = functional
    return True
