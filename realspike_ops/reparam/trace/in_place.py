"""Changes in place as the values that they make."""

import inspect
import operator

import torch
from torch import Tensor
from torch.nn import functional as F


def without_change(op: str, target, args: tuple, kwargs: dict, changed: Tensor) -> tuple | None:
    """Return (op, target, args, kwargs) of a call that changes nothing; None: there is none.

    The call returns the tensor that the given one makes of `changed`.
    """
    if op == "call_function" and (told := _not_told_to(target, args, kwargs)) is not None:
        return op, target, *told
    if not args or args[0] is not changed:
        return None
    if op == "call_function":
        name = target.__name__.removesuffix("_")
        function = getattr(torch, name, None) or getattr(F, name, None)
        return None if function in (None, target) else (op, function, args, kwargs)
    dunder = target.startswith("__i") and getattr(operator, target[3:-2], None)
    if dunder:
        return "call_function", dunder, args, kwargs
    if target.endswith("_") and hasattr(Tensor, target.removesuffix("_")):
        return op, target.removesuffix("_"), args, kwargs
    return "call_function", changed_copy, (target, *args), kwargs


def changed_copy(method: str, x: Tensor, *args, **kwargs) -> Tensor:
    """Return a copy of x after ``x.method(*args, **kwargs)``, which changes x in place."""
    copy = x.clone()
    getattr(copy, method)(*args, **kwargs)
    return copy


def _not_told_to(function, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Return the arguments of a call with inplace=True, by name or by position, without that."""
    try:
        given = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # builtins have no signature
        return None
    if given.arguments.get("inplace") is not True:
        return None
    given.arguments["inplace"] = False
    return given.args, given.kwargs
