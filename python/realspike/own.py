"""Networks and data of the user's own, named ``package.module:name``. Imports no torch.

Importing a module runs it. So only what the user asks for is imported: what a configuration that
is trained names, and of what a checkpoint names, only what the user allows.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from realspike.errors import UserError
from realspike.names import shown

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class OwnError(UserError, ValueError):
    """What ``package.module:name`` stands for cannot be used; the message names it and why."""


def is_own(name: object) -> bool:
    """Whether a text has the form ``package.module:name``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def check_allowed(what: str, name: str, allow: Collection[str]) -> None:
    """Refuse what a file names and the user did not.

    Raises:
        OwnError: unless ``name`` is realspike's own or in ``allow``.
    """
    if is_own(name) and name not in allow:
        raise OwnError(
            f"its {what} is {name}, which is no part of realspike and would run as code: "
            f"--allow {name} imports it"
        )


def find(key: str, name: str):
    """Import and return what a name stands for, also from a file in the working folder.

    Raises:
        OwnError: if the module cannot be imported or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # behind what is installed, which it cannot replace
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does
        text = " ".join(str(error).split()) or type(error).__name__
        raise OwnError(f"{key}={name}: cannot import {module_name} ({text:.200})") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise OwnError(f"{key}={name}: {module_name} has no {attribute}") from error


def call(
    key: str,
    name: str,
    function,
    given: Mapping,
    defaults: "Mapping | None" = None,
    base=object,
    has: Callable[[Any, str, Any], bool] = lambda result, argument, value: False,
):
    """Call a function with those of the given arguments that it takes, by keyword.

    Args:
        key: Of the configuration, for messages.
        name: As the user wrote it.
        function: What it stands for.
        given: The documented arguments.
        defaults: An argument of another value than here must be taken.
        base: A class whose ``__init__`` takes nothing, whatever it declares.
        has: Whether what it returns has the value of an argument by itself, without taking it.

    Raises:
        OwnError: if it needs an argument that is not among the given ones, one that was changed
            from its default is not taken, or it raises what is no `UserError`.
    """
    try:
        bare = getattr(function, "__init__", None) is base.__init__
        parameters = () if bare else inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise OwnError(f"{key}={name}: its arguments are unknown ({error})") from error
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    taken = set(given) if takes_all else {p.name for p in by_name}
    documented = ", ".join(given)
    for p in parameters:
        needed = p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        if needed and (p.kind is p.POSITIONAL_ONLY or p.name not in given):
            raise OwnError(
                f"{key}={name} needs the argument {p.name!r}; it is called with those that it "
                f"takes of {documented}"
            )
    try:
        result = function(**{k: v for k, v in given.items() if k in taken})
    except UserError:
        raise
    except Exception as error:  # whatever it does
        all_given = f"; as it takes any keyword, it is called with all of {documented}"
        why = all_given * (takes_all and isinstance(error, TypeError))
        raise OwnError(f"{key}={name} raised {said(error)}{why}") from error
    for argument, default in (defaults or {}).items():
        value = given[argument]
        if not (argument in taken or value == default or has(result, argument, value)):
            raise OwnError(
                f"{key}={name} does not take {argument}, which is {shown(value)}: leave it at "
                f"{shown(default)}"
            )
    return result


def said(error: Exception) -> str:
    """Return what code of the user's own raised, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
