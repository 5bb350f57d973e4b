"""Paths as users write them, and writing a file so that its name never stands for half of it."""

import os
from pathlib import Path


def path_of(text: str) -> Path:
    """Return the path that a user means: ``~`` is the home folder, also where no shell saw it."""
    return Path(os.path.expanduser(text))


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader sees the old file or the new one, whole.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_writable_folder(path: Path) -> None:
    """Create the folder if need be, and prove that a file can be written into it.

    Raises:
        OSError: if it cannot.
    """
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".writable.{os.getpid()}.tmp"
    probe.touch()
    probe.unlink()
