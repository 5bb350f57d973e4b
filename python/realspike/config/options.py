"""Options of a configuration: a value, what it means, and which others are accepted.

Imports no torch.
"""

import dataclasses
import math
from types import NoneType, UnionType
from typing import Any, get_args

from realspike.names import check_choice, shown
from realspike.own import is_own

WANTED = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def option(
    default,
    text: str,
    low=None,
    high=None,
    *,
    above=None,
    own_high=None,
    choices=None,
    own: str = "",
) -> Any:
    """Return the field of an option, which a checker of types takes for its value.

    Args:
        default: Its value where none is given.
        text: What it means, for --help.
        low, high, above: The smallest, the largest value, and what it must be above.
        own_high: The largest for a network of the user's own; None: ``high``.
        choices: The texts that are accepted.
        own: What ``package.module:name`` may be instead of one of the choices.
    """
    own_high = high if own_high is None else own_high
    metadata = {"help": text, "low": low, "high": high, "above": above, "own_high": own_high}
    return dataclasses.field(default=default, metadata=metadata | {"choices": choices, "own": own})


def same(config: type, name: str, default: Any = dataclasses.MISSING, text: str = "") -> Any:
    """Return the field of an option that another configuration has too: one rule for both."""
    (field,) = (f for f in dataclasses.fields(config) if f.name == name)
    changes = {"help": text} if text else {}
    default = field.default if default is dataclasses.MISSING else default
    return dataclasses.field(default=default, metadata=field.metadata | changes)


def kind_of(field: dataclasses.Field) -> tuple[type, bool]:
    """Return the type of an option's values, and whether None is one."""
    kinds: Any = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
    return kinds[0], NoneType in kinds


def check(values, prefix: str = "") -> None:
    """Check every option of a configuration.

    Raises:
        ValueError: naming the option, its value and what is accepted.
    """
    high = "own_high" if is_own(getattr(values, "architecture", None)) else "high"
    for field in dataclasses.fields(values):
        rule = field.metadata
        _check(f"{prefix}{field.name}", getattr(values, field.name), field, rule[high])


def _check(key: str, value, field: dataclasses.Field, high) -> None:
    kind, is_optional = kind_of(field)
    rule = field.metadata
    if value is None and is_optional:
        return
    if rule["choices"]:
        if not (rule["own"] and is_own(value)):
            check_choice(key, value, rule["choices"], rule["own"])
        return
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"{key} must be {WANTED[kind]}; got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be finite; got {shown(value)}")
    low, above = rule["low"], rule["above"]
    limits = [f"at least {low}"] * (low is not None) + [f"above {above}"] * (above is not None)
    limits += [f"at most {high}"] * (high is not None)
    fits = (low is None or value >= low) and (above is None or value > above)
    if not fits or (high is not None and value > high):
        raise ValueError(f"{key} must be {' and '.join(limits)}; got {shown(value)}")
