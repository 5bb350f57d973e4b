"""Arguments that leave: accepted for one release, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def matmul_is_auto(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function or constructor accept ``algorithm="matmul"``, as "auto"."""

    @functools.wraps(function)
    def accepting(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if kwargs.get("algorithm") == "matmul":
            warnings.warn(
                'algorithm="matmul" is deprecated and taken as "auto", which multiplies where that '
                "should be faster",
                DeprecationWarning,
                stacklevel=2,
            )
            given: Any = kwargs
            given["algorithm"] = "auto"
        return function(*args, **kwargs)

    return accepting
