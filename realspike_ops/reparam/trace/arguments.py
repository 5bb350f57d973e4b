"""The arguments of a call, written in one way whichever way the user wrote them."""

import inspect
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

from torch import nn

# The names of NumPy that PyTorch's builtins take for their own.
_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input"}
_NUMPY |= {"x2": "other"}


def by_torch_names(function, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by PyTorch's names; its builtins take some by NumPy's names, too."""
    if not isinstance(function, (BuiltinFunctionType, MethodDescriptorType)):
        return kwargs
    return {_NUMPY.get(name, name): value for name, value in kwargs.items()}


def by_position(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Return the arguments of a layer by position, without those that are as by default."""
    signature = inspect.signature(layer.forward)
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError:  # the layer itself says what is wrong
        return args, kwargs
    for name, parameter in signature.parameters.items():
        if name in given.arguments and given.arguments[name] is parameter.default:
            del given.arguments[name]
    return given.args, given.kwargs
