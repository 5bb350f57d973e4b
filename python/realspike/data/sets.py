"""The data sets that every reader returns."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike.data.transfer import sent
from realspike.errors import DataError

__all__ = ["DataError", "InMemory", "Splits"]


class Part(Protocol):
    """A part of a data set: a `Dataset` that has a length."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class InMemory(Dataset):
    """Samples that are held in memory; a batch is one indexing operation.

    Args:
        samples: [N, C, H, W] images or [N, T, C, H, W] frames; uint8 in 0 to 255 or float32.
        labels: [N] int64.
    """

    def __init__(self, samples: Tensor, labels: Tensor):
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = sent(torch.as_tensor(indices), self.samples.device)
        return self.samples[chosen], self.labels[chosen]


class Files(Dataset):
    """Samples that are read when they are asked for, from ``files``: (path, label) of each."""

    files: list[tuple[Path, int]]

    def __len__(self) -> int:
        return len(self.files)


class Chosen(Dataset):
    """Some samples of another data set."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self.dataset, self.indices, self.epoch = dataset, indices, 0
        self.classes = getattr(dataset, "classes", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        self.dataset.epoch = self.epoch
        return self.dataset[self.indices[index]]


def _by_class(dataset: Part, seed: int) -> list[torch.Tensor]:
    """Return the indices of the samples of every class, in an order that is drawn; all samples are
    one class where the labels are not known without reading them."""
    labels = torch.zeros(len(dataset), dtype=torch.int64)
    if isinstance(dataset, InMemory):
        labels = dataset.labels
    elif isinstance(dataset, Files):
        labels = torch.tensor([label for _, label in dataset.files])
    generator = torch.Generator().manual_seed(seed)
    found = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        found.append(members[torch.randperm(len(members), generator=generator)])
    return found


def _part(dataset: Part, like: Part, indices: Tensor) -> Part:
    """Return some samples of a data set, files read as ``like`` reads its own."""
    chosen = indices.sort().values.tolist()
    if isinstance(dataset, InMemory):
        return InMemory(*dataset.__getitems__(chosen))
    if not isinstance(dataset, Files):
        return Chosen(dataset, chosen)
    part: Any = copy.copy(like)
    part.files = [dataset.files[index] for index in chosen]
    return part


@dataclass(frozen=True)
class Splits:
    """A data set in two parts. A pixel p in [0, 1] becomes ``(p - mean) / std``, per channel."""

    train: Part
    test: Part
    mean: Sequence[float]  # [C]
    std: Sequence[float]  # [C]
    read_in_workers: bool = False  # from files, which takes longer than an indexing operation
    classes: Sequence[str] = ()  # their names in the order of the labels, where folders give them

    def share(self, fraction: float, seed: int) -> "Splits":
        """Return the splits with a share of the training samples, and all of the test's.

        Of every class the same, at least one sample, where labels are known without reading the
        samples. A larger share holds a smaller one of the same seed.
        """
        if fraction == 1:
            return self
        members = _by_class(self.train, seed)
        chosen = [order[: max(1, round(fraction * len(order)))] for order in members]
        return replace(self, train=_part(self.train, self.train, torch.cat(chosen)))

    def hold_out(self, count: int) -> "Splits":
        """Return the splits with ``count`` training samples as the test part, and the others.

        The same samples whatever the seed of a run, of every class in proportion where labels are
        known as in `share`; images are read as the test's.

        Raises:
            DataError: if no sample would be left to train on.
        """
        if count == 0:
            return self
        train = self.train
        if count >= len(train):
            raise DataError(f"data.held_out must be below {len(train)}, all there is; got {count}")
        members = _by_class(train, seed=0)
        # The share of its class that is held out before a sample is.
        turns = torch.cat([torch.arange(0.5, len(order)) / len(order) for order in members])
        order = torch.cat(members)[turns.argsort(stable=True)]
        return replace(
            self,
            train=_part(train, train, order[count:]),
            test=_part(train, self.test, order[:count]),
        )

    def digest(self) -> str:
        """Return what tells these data from others: a hash of the samples, or of their files' names
        and labels."""
        seen = hashlib.sha256()
        for part in (self.train, self.test):
            seen.update(f"{len(part)} samples\0".encode())
            if isinstance(part, InMemory):
                for tensor in (part.samples, part.labels):
                    seen.update(tensor.contiguous().numpy().data)
            for path, label in part.files if isinstance(part, Files) else ():
                name = f"{label} {path.parent.name}/{path.name}\0"
                seen.update(name.encode("utf-8", "surrogateescape"))
        return seen.hexdigest()
