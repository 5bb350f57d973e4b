"""Artefacts that tests compile, kept in build/tests under a hash of their sources.

So the tests of several files and processes, and of the next run, share them.
"""

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "tests"


def sources_in(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file())


def version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def made(
    name: str, sources: Iterable[Path], how: Iterable[object], make: Callable[[Path], None]
) -> Path:
    """Return a folder that `make` has filled.

    Args:
        name: Of the artefact; one of other sources takes its place.
        sources: Every file that it is made from.
        how: Whatever else decides about it: flags, versions of compilers.
        make: Called with an empty folder, unless there is one of the same sources. One process
            makes it and others wait.
    """
    digest = hashlib.sha256(repr([str(part) for part in how]).encode())
    for path in sources:
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    KEPT.mkdir(parents=True, exist_ok=True)
    folder = KEPT / f"{name}-{digest.hexdigest()[:16]}"
    with open(KEPT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            for old in KEPT.glob(f"{name}-{'?' * 16}"):
                shutil.rmtree(old)
            part = Path(tempfile.mkdtemp(dir=KEPT))
            try:
                make(part)
            except BaseException:
                shutil.rmtree(part)
                raise
            part.rename(folder)
    return folder
