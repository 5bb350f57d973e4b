"""What every reader returns."""

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
