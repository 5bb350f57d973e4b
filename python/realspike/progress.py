"""The bar of long work, in one style: how far it is, what is done, how much time is left."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from realspike.optional import require

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Counted(Protocol[T_co]):
    """What can be gone through and has a length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


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


def track(items: "_Counted[T]", what: str) -> Iterator[T]:
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


@contextmanager
def transfer(what: str, done: int, total: "int | None") -> Iterator[Callable[[int], None]]:
    """Yield what is told of the bytes that came, with a bar on stderr if that is a terminal.

    Args:
        what: Is transferred.
        done: Bytes that were there before.
        total: Bytes; None: unknown.
    """
    with bar(require("rich.console").Console(stderr=True)) as progress:
        whole = "" if total is None else f" of {total / 2**20:,.1f}"
        task = progress.add_task("", total=total, completed=done)

        def advance(count: int) -> None:
            progress.advance(task, count)
            came = progress.tasks[0].completed / 2**20
            progress.update(task, description=f"{what} {came:,.1f}{whole} MiB")

        yield advance
