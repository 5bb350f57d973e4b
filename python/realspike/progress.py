"""The bar of long work, in one style: how far it is, what is done, how much time is left."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from realspike.optional import require

T = TypeVar("T")


def bar(console, says_time_left: bool = True):
    """Return rich's progress, not started; it shows nothing where the console is no terminal.

    Args:
        says_time_left: False where the description of a task says it.
    """
    rich = require("rich.progress")
    left = (rich.TimeRemainingColumn(), rich.TextColumn("left")) if says_time_left else ()
    return rich.Progress(
        rich.BarColumn(20),
        rich.TextColumn("{task.description}"),
        *left,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield ``items``, which must have a length, with a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    console = require("rich.console").Console(stderr=True)
    total = len(items)
    with bar(console) as progress:
        task = progress.add_task("", total=total)
        for number, item in enumerate(items, 1):
            progress.update(task, description=f"{what} {number}/{total}")
            yield item
            progress.advance(task)
