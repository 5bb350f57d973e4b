"""Paths as users write them, and writing a file so that its name never stands for half of it."""

import contextlib
import errno
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"
_TEMPORARY = ".tmp"


def path_of(text: str) -> Path:
    """Return the path that a user means: ``~`` is the home folder, also where no shell saw it."""
    return Path(os.path.expanduser(text))


def shipped(folder: str, suffix: str) -> dict[str, Path]:
    """Return the files of a kind that come with the package, by name without suffix."""
    package = Path(__file__).parent  # installed; in a checkout they lie beside python/
    folders = package / folder, package.parents[1] / folder
    return {path.stem: path for each in folders for path in sorted(each.glob(f"*{suffix}"))}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader sees the old file or the new one, whole.

    Raises:
        OSError: if it cannot be written, or is a folder, pipe or device; it names ``path``, which
            is then as it was.
    """
    _check_regular(path)
    # A name of its own: what a killed process left must not stand in the way.
    temporary = path.with_name(f".{secrets.token_hex(8)}{_TEMPORARY}")
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise
    _sync_folder(path.parent)


def _check_regular(path: Path) -> None:
    """Refuse to put a file in the place of a folder, pipe or device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _sync_folder(folder: Path) -> None:
    """Make a new name outlive a loss of power, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Delete what killed processes left; nobody may be writing into the folder."""
    for path in folder.glob(f".{'[0-9a-f]' * 16}{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def make_writable_folder(path: Path) -> None:
    """Create the folder if need be, and prove that a file can be written into it.

    Raises:
        OSError: if it cannot.
    """
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        pass


def make_writable(path: Path) -> None:
    """Create the folder of a file if need be, and prove that the file can be written.

    Raises:
        OSError: if it cannot.
    """
    _check_regular(path)
    make_writable_folder(path.parent)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that writes into a folder; whoever ends, in whatever way, lets go.

    Raises:
        BlockingIOError: if another process is.
    """
    # A record lock: it belongs to this process alone, and not to workers that outlive it.
    with open(folder / LOCK_FILE, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, "another process writes to it", folder) from None
            # Some network file systems have no locks.
        yield
