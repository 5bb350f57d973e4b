"""What every reader returns."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Splits:
    """A data set in two parts. A pixel p in [0, 1] becomes ``(p - mean) / std``, per channel."""

    train: Dataset
    test: Dataset
    mean: Sequence[float]  # [C]
    std: Sequence[float]  # [C]
    read_in_workers: bool = False  # from files, which takes longer than an indexing operation
    classes: Sequence[str] = ()  # their names in the order of the labels, where folders give them

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
