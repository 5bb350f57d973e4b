"""A bar for long work, where somebody looks."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from realspike.optional import require

T = TypeVar("T")


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield ``items``, which must have a length, with a bar of rate and remaining time on stderr;
    none if that is no terminal."""
    if not sys.stderr.isatty():
        return iter(items)
    console = require("rich.console").Console(stderr=True)
    return iter(require("rich.progress").track(items, what, console=console, transient=True))
