"""CIFAR-10 and CIFAR-100 from the official python archives, packed or unpacked.

The archives hold pickles. Theirs need only numpy arrays, so nothing else is ever unpickled.
"""

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
        return (
            f"download {self.file} from https://www.cs.toronto.edu/~kriz/cifar.html and put it "
            f"into {root}/ as it is, or unpack it there"
        )


ARCHIVES = {
    "cifar10": _Archive(
        file="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        labels=b"labels",
        classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": _Archive(
        file="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        labels=b"fine_labels",
        classes=100,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
}

_ARRAYS = {
    (package, name)
    for core in ("numpy.core", "numpy._core")
    for package, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is never loaded")


def _contents(root: Path, archive: _Archive) -> "dict[str, bytes]":
    names = archive.train + archive.test
    folder = root / archive.folder
    if folder.is_dir():
        contents = {}
        for name in names:
            path = folder / name
            try:
                contents[str(path)] = path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"cannot read {path} ({error.strerror}): {archive.advice(root)}"
                ) from error
        return contents
    path = root / archive.file
    if not path.is_file():
        raise DataError(f"there is neither {path} nor {folder}/: {archive.advice(root)}")
    try:
        with tarfile.open(path) as tar:
            return {
                f"{path}:{name}": tar.extractfile(f"{archive.folder}/{name}").read()
                for name in names
            }
    except (tarfile.TarError, EOFError, OSError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is truncated, corrupt or another archive ({error}): {archive.advice(root)}"
        ) from error


def _batch(content: bytes, archive: _Archive) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 3, 32, 32] uint8 and labels [N] int64."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    images, labels = np.asarray(batch[b"data"]), np.asarray(batch[archive.labels], np.int64)
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(f"its images are {images.dtype} {list(images.shape)}")
    if labels.shape != (len(images),) or len(labels) == 0:
        raise ValueError(f"it has {len(images)} images and {labels.size} labels")
    if labels.min() < 0 or labels.max() >= archive.classes:
        raise ValueError(f"its labels reach from {labels.min()} to {labels.max()}")
    return images.reshape(-1, 3, 32, 32), labels


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
        except Exception as error:  # unpickling what is no pickle raises nearly anything
            raise DataError(
                f"{path} is truncated or corrupt ({type(error).__name__}: {error}): "
                f"{archive.advice(root)}"
            ) from error
    count = len(archive.train)

    def joined(chosen) -> InMemory:
        images, labels = (np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
        return InMemory(torch.from_numpy(images), torch.from_numpy(labels))

    return Splits(joined(parts[:count]), joined(parts[count:]), archive.mean, archive.std)
