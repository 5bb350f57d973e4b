"""The names of nodes of a graph: layers by their class, functions by their name."""

import torch
from torch import fx, nn

from realspike_ops.nn import NormLIF

# The packages whose functions are known by their names.
_KNOWN = frozenset({"torch", "realspike_ops", "_operator", "builtins"})
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, NormLIF)


def layer_class(kind: type) -> type | None:
    """Return the layer of PyTorch or of this library that a class is, or comes from."""
    for base in kind.__mro__:
        if base.__module__.startswith(("torch.nn.modules.", "realspike_ops.")):
            return None if base in _CONTAINERS else base
    return None


def called_name(func) -> str:
    """Return the name of a torch function or attribute, with its home if others made it."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = func.__self__
        return getattr(owner, "__name__", None) or owner.fget.__name__
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        space, _, rest = str(func).partition(".")
        return rest.split(".")[0] if space == "aten" else f"{space}::{rest}"
    home = (getattr(func, "__module__", None) or "torch").split(".")[0]
    return name if home in _KNOWN else f"{home}.{name}"


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
    return node.target if isinstance(node.target, str) else called_name(node.target)
