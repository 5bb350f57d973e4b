"""Arguments that leave: accepted for one release, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from realspike_ops import _checks as checks

_P = ParamSpec("_P")
_R = TypeVar("_R")


def without_algorithm(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function or constructor accept ``algorithm``, which decides nothing."""

    @functools.wraps(function)
    def accepting(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if "algorithm" in kwargs:
            given: Any = kwargs.pop("algorithm")
            checks.check_choice("algorithm", given, ("gather", "matmul", "auto"))
            warnings.warn(
                "algorithm is deprecated and decides nothing: spikes are always gathered",
                DeprecationWarning,
                stacklevel=2,
            )
        return function(*args, **kwargs)

    return accepting
