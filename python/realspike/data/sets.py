"""The data sets that every reader returns."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike.errors import DataError

__all__ = ["DataError", "InMemory", "Splits"]


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
        chosen = torch.as_tensor(indices)
        return self.samples[chosen], self.labels[chosen]


class Chosen(Dataset):
    """Some samples of another data set."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]):
        self.dataset, self.indices, self.epoch = dataset, indices, 0
        self.classes = getattr(dataset, "classes", None)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        self.dataset.epoch = self.epoch
        return self.dataset[self.indices[index]]


@dataclass(frozen=True)
class Splits:
    """A data set in two parts. A pixel p in [0, 1] becomes ``(p - mean) / std``, per channel."""

    train: Dataset
    test: Dataset
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
        train = self.train
        files = getattr(train, "files", None)
        labels = torch.zeros(len(train), dtype=torch.int64)
        if isinstance(train, InMemory):
            labels = train.labels
        elif files is not None:
            labels = torch.tensor([label for _, label in files])
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in labels.unique():
            members = (labels == label).nonzero().flatten()
            order = torch.randperm(len(members), generator=generator)
            chosen.append(members[order[: max(1, round(fraction * len(members)))]])
        indices = torch.cat(chosen).sort().values.tolist()
        if isinstance(train, InMemory):
            part: Dataset = InMemory(*train.__getitems__(indices))
        elif files is not None:
            part = copy.copy(train)
            part.files = [files[index] for index in indices]
        else:
            part = Chosen(train, indices)
        return replace(self, train=part)

    def digest(self) -> str:
        """Return what tells these data from others: a hash of the samples, or of their files' names
        and labels."""
        seen = hashlib.sha256()
        for part in (self.train, self.test):
            seen.update(f"{len(part)} samples\0".encode())
            if isinstance(part, InMemory):
                for tensor in (part.samples, part.labels):
                    seen.update(tensor.contiguous().numpy())
            for path, label in getattr(part, "files", ()):
                name = f"{label} {path.parent.name}/{path.name}\0"
                seen.update(name.encode("utf-8", "surrogateescape"))
        return seen.hexdigest()
