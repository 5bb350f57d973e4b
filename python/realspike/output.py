"""Printing: on terminals of any alphabet, and into pipes that nobody reads to the end."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

from realspike.optional import require

_SPELLINGS = {"±": "+/-", "·": "*", "…": "...", "\u00d7": "x", "\u2013": "-", "\u2014": "-"}


def _spell(error: UnicodeError):
    """Spell what an encoding does not have; an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELLINGS.get(character, "?") for character in missing), error.end


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Let stdout and stderr take every character; write out what is left at the end.

    Raises:
        OSError: if stdout cannot be written to.
    """
    codecs.register_error("realspike.spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="realspike.spell")
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            drop()
            raise


def drop() -> None:
    """Write what stdout holds, and all that follows, to nowhere: Python tries again at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def console():
    """Return rich's console; where nobody reads it any more, the work goes on without it.

    Raises:
        MissingPackageError: without rich.
    """

    class Console(require("rich.console").Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            drop()

    return Console(highlight=False, markup=False)
