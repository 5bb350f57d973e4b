"""Whether a module computes what the class that it comes from computes, and nothing else."""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

_Method = TypeVar("_Method", bound=Callable[..., Any])
_SAME = "_computes_the_same"
# The methods that run between the call of a module and its forward.
_CALLS = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattribute__")


def computes_the_same(method: _Method) -> _Method:
    """Mark a method that computes what it overrides."""
    setattr(method, _SAME, True)
    return method


def why_not_plain(module: nn.Module, bases: type | tuple[type, ...]) -> str | None:
    """Return why ``module(x)`` may be anything but what its base's ``forward`` computes, or None.

    A subclass is plain if ``forward`` and every method and property that it calls are inherited.
    The attributes that these read (weights, also parametrized ones, strides) are the module's own.

    Args:
        module: Any module.
        bases: The classes whose computation is known. The module's class is compared with the
            nearest of them that it comes from.
    """
    bases = bases if isinstance(bases, tuple) else (bases,)
    kind = type(module)
    base = next((cls for cls in kind.__mro__ if cls in bases), None)
    if base is None:
        return f"it is a {kind.__name__}, not {' or '.join(cls.__name__ for cls in bases)}"
    if waits_for_weights(module):
        return f"it is a {kind.__name__} without weights yet: run it once"
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if hooks:
        names = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        return (
            f"it has forward hooks ({names}), which may change what it computes: remove them "
            "(torch.nn.utils.prune.remove, remove_weight_norm, remove_spectral_norm, "
            "handle.remove())"
        )
    if torch_module._global_forward_pre_hooks or torch_module._global_forward_hooks:
        return "global forward hooks run around every module: remove them"
    methods = dict(_methods(base))
    for name in (*_CALLS, *methods):
        if name in vars(module):
            return f"its {name} is replaced on the instance"
        found = inspect.getattr_static(kind, name)
        is_known = getattr(found, _SAME, False)
        if not is_known and found is not inspect.getattr_static(base, name):
            return f"{kind.__name__} has a {name} of its own, in place of {base.__name__}'s"
    for name, original in methods.items():
        if not original:
            return f"{base.__name__}.{name} is replaced by another function"
    return None


def check_plain(name: str, module: nn.Module, bases: type | tuple[type, ...]) -> None:
    """Refuse a module that does what another form of it, of its attributes alone, would not."""
    if (reason := why_not_plain(module, bases)) is not None:
        raise ValueError(f"{name!r} must compute what its class does: {reason}")


def waits_for_weights(module: nn.Module) -> bool:
    """Whether a lazy module has parameters or buffers without a shape."""
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(is_lazy(tensor) for tensor in own)


def _methods(base: type) -> Iterator[tuple[str, bool]]:
    """Yield the methods that forward runs, by name, and whether each is as its file has it."""
    classes = [cls for cls in base.__mro__ if cls not in (nn.Module, object)]
    names = ["forward"]
    seen: set[str] = set()
    while names:
        name = names.pop()
        found = [(cls, vars(cls)[name]) for cls in classes if name in vars(cls)]
        functions = [(cls, getattr(f, "fget", f)) for cls, f in found]
        functions = [(cls, f) for cls, f in functions if isinstance(f, FunctionType)]
        if name in seen or not functions:
            continue
        seen.add(name)
        yield name, all(f.__globals__ is vars(sys.modules[cls.__module__]) for cls, f in functions)
        names += [called for _, f in functions for called in _names(f.__code__)]


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that a function, and the functions inside it, read."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
