"""Fetching an official archive: its SHA-256 is checked, and what came before a break is kept."""

import hashlib
import os
from pathlib import Path

from realspike.config.datasets import DOWNLOADS
from realspike.errors import RunFailed
from realspike.files import make_writable_folder
from realspike.optional import require
from realspike.progress import transfer

_CHUNK = 2**16  # bytes
_TIMEOUT = 30  # seconds without an answer


class DownloadFailed(RunFailed):
    """A file did not come, or is another than was asked for."""


def fetch(name: str, root: Path, url: "str | None" = None) -> Path:
    """Download the archive of a data set into a folder, unless it is there.

    Args:
        name: One of `DOWNLOADS`.
        root: The folder.
        url: Of a mirror; None: the official one. The SHA-256 is the same.

    Returns:
        The file, whose SHA-256 is that of the official one.

    Raises:
        DownloadFailed: if it did not come whole, or is another file.
        OSError: if it cannot be written.
    """
    known = DOWNLOADS[name]
    url = url or known.url
    make_writable_folder(root)
    path, part = root / known.file, root / f"{known.file}.part"
    if path.exists() and _sha256(path) == known.sha256:
        return path
    _download(url, part)
    if _sha256(part) != known.sha256:
        part.unlink()
        raise DownloadFailed(
            f"{url} is not the official {known.file}: its SHA-256 must be {known.sha256}; nothing "
            "of it was kept"
        )
    os.replace(part, path)
    return path


def _sha256(path: Path) -> str:
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
    return seen.hexdigest()


def _download(url: str, part: Path) -> None:
    """Write what a URL holds into ``part``, which survives a break."""
    requests = require("requests")
    try:
        done = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code == 416:  # nothing is left, or it is another file
                return
            answer.raise_for_status()
            goes_on = answer.status_code == 206
            done = done if goes_on else 0
            left = answer.headers.get("Content-Length")
            total = None if left is None else done + int(left)
            with (
                open(part, "ab" if goes_on else "wb") as file,
                transfer(part.stem, done, total) as advance,
            ):
                for chunk in answer.iter_content(_CHUNK):
                    file.write(chunk)
                    advance(len(chunk))
    except requests.RequestException as error:
        # An answer that says no, and what is no address.
        if isinstance(error, (requests.HTTPError, ValueError)):
            advice = "--url names a mirror"
        else:
            advice = "the same command goes on where it stopped"
        if (there := part.with_suffix("")).exists():
            advice += f"; {there}, which is there, is not the official one"
        text = f"{' '.join(str(error).split()):.200}"
        raise DownloadFailed(f"cannot download {url} ({text}): {advice}") from error
    except OSError as error:
        error.filename = error.filename or str(part)  # a full disk names no file
        raise
    if total is not None and (came := part.stat().st_size) != total:
        raise DownloadFailed(
            f"{url} broke off after {came:,} of {total:,} bytes: the same command goes on there"
        )
