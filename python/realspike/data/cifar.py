"""CIFAR-10 and CIFAR-100 from the official python archives, packed or unpacked.

The archives hold pickles, which are read but not unpickled (`realspike.data.array_pickle`).
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from realspike.config import datasets
from realspike.data import array_pickle
from realspike.data.sets import DataError, InMemory, Splits


@dataclass(frozen=True)
class _Archive:
    file: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def advice(self, root: Path) -> str:
        return datasets.advice(f"cifar{self.classes}", root)


ARCHIVES = {
    "cifar10": _Archive(
        file=datasets.DOWNLOADS["cifar10"].file,
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        labels=b"labels",
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": _Archive(
        file=datasets.DOWNLOADS["cifar100"].file,
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels=b"fine_labels",
        classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
}

# Of an unpacked file; the largest, the training part of CIFAR-100, has 148 MiB. Python 3 writes it
# with up to twice as many: pickles of protocol 2 hold bytes as text.
LARGEST_FILE = 320 * 2**20
# Of an unpacked archive; both have 178 MiB.
LARGEST_ARCHIVE = 256 * 2**20
# A header of the pax format says when a file was changed, and the like. One that names the next
# file, or gives its size, would be read by others than us.
_LARGEST_HEADER = 2**16
_RENAMES = re.compile(rb"(?:^|\n)\d{1,9} (?:path|size|GNU\.sparse)")


def _read_file(path: Path) -> bytes:
    """Return what a regular file of no absurd size holds."""
    if not path.is_file():
        raise ValueError("there is no such file" if not path.exists() else "it is no regular file")
    _check_size(path.stat().st_size, LARGEST_FILE)
    return path.read_bytes()


def _check_size(size: int, largest: int) -> None:
    if not 0 <= size <= largest:
        raise ValueError(f"it claims {size} bytes, more than the {largest} that one may have")


def _read_archive(path: Path, wanted: Sequence[str]) -> list[bytes]:
    """Return the wanted members of a tar file, gzipped or not.

    Its headers are read one after the other, and the size of every member is checked before
    anything of it is read. Nothing is ever written.

    Raises:
        ValueError: if a wanted member is missing or there twice, for sizes that are absurd, and for
            links, devices, sparse files and whatever else is neither a folder nor a plain file.
    """
    found: dict[str, bytes] = {}
    unpacked = 0
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        while (header := stream.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            is_header = member.type in (tarfile.XHDTYPE, tarfile.XGLTYPE)
            _check_size(member.size, _LARGEST_HEADER if is_header else LARGEST_FILE)
            unpacked += tarfile.BLOCKSIZE + member.size
            _check_size(unpacked, LARGEST_ARCHIVE)
            blocks = -(-member.size // tarfile.BLOCKSIZE)
            content = stream.read(blocks * tarfile.BLOCKSIZE)
            if len(content) != blocks * tarfile.BLOCKSIZE:
                raise ValueError(f"it ends inside {member.name!r:.80}")
            renames = is_header and _RENAMES.search(content)
            is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)  # and not sparse
            if renames or not (is_header or is_plain or member.isdir()):
                raise ValueError(f"{member.name!r:.80} in it is neither a folder nor a plain file")
            if is_plain and member.name in wanted:
                if member.name in found:
                    raise ValueError(f"it has {member.name!r:.80} twice")
                found[member.name] = content[: member.size]
        if not header:
            raise ValueError("it has no end")
        if stream.read(2**20) and stream.read(1):  # also checks the sum behind the last block
            raise ValueError("it goes on behind its end")
    for name in wanted:
        if name not in found:
            raise ValueError(f"it has no {name}")
    return [found[name] for name in wanted]


def _contents(root: Path, archive: _Archive) -> "dict[str, bytes]":
    names = archive.train + archive.test
    folder, path = root / archive.folder, root / archive.file
    if folder.is_dir():
        contents = {}
        for name in names:
            try:
                contents[str(folder / name)] = _read_file(folder / name)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cannot read {folder / name} ({getattr(error, 'strerror', None) or error}): "
                    f"{archive.advice(root)}"
                ) from error
        return contents
    if not path.is_file():
        raise DataError(f"there is neither {path} nor {folder}/: {archive.advice(root)}")
    try:
        read = _read_archive(path, [f"{archive.folder}/{name}" for name in names])
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is truncated, corrupt or another archive ({error}): {archive.advice(root)}"
        ) from error
    return {f"{path}:{name}": content for name, content in zip(names, read, strict=True)}


def _batch(content: bytes, archive: _Archive) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 3, 32, 32] uint8 and labels [N] int64."""
    batch = array_pickle.loads(content)
    images, labels = (batch.get(key) for key in (b"data", archive.labels))
    if not isinstance(images, np.ndarray):
        raise ValueError("it has no images")
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(f"its images are {images.dtype} {list(images.shape)}")
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list) or len(labels) != len(images) or not labels:
        count = len(labels) if isinstance(labels, list) else "no"
        raise ValueError(f"it has {len(images)} images and {count} labels")
    if any(type(label) is not int for label in labels):
        raise ValueError("its labels are no integers")
    if min(labels) < 0 or max(labels) >= archive.classes:
        raise ValueError(f"its labels reach from {min(labels)} to {max(labels)}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def load(name: str, root: Path) -> Splits:
    """Read ``cifar10`` or ``cifar100``.

    Raises:
        DataError: if a file is missing, truncated or corrupt.
    """
    archive = ARCHIVES[name]
    parts = []
    for path, content in _contents(root, archive).items():
        try:
            parts.append(_batch(content, archive))
        except ValueError as error:
            raise DataError(
                f"{path} is truncated or corrupt ({error}): {archive.advice(root)}"
            ) from error
    count = len(archive.train)

    def joined(chosen) -> InMemory:
        images, labels = (np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
        return InMemory(torch.from_numpy(images), torch.from_numpy(labels))

    return Splits(joined(parts[:count]), joined(parts[count:]), archive.mean, archive.std)
