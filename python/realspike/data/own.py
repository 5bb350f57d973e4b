"""Data of the user's own: what they may be, and what is found out about them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike import own
from realspike.data.sets import DataError, InMemory, Part, Splits
from realspike.names import shown


def load(name: str, root: Path, seed: int, timesteps: int) -> Splits:
    """Call the user's function with those of ``root``, ``seed`` and ``timesteps`` that it takes.

    Raises:
        OwnError: if it cannot be imported or called so.
        DataError: if it returns something else than `splits_of` takes.
    """
    function = own.find("data.name", name)
    given = {"root": root, "seed": seed, "timesteps": timesteps}
    return splits_of(own.call("data.name", name, function, given), name)


def splits_of(data: object, name: str) -> Splits:
    """Return data as a `Splits`.

    Args:
        data: A `Splits`, or a pair (training part, test part) that is used as it is, without a
            mean and a deviation. A part is a data set of (sample, label) that has a length, or a
            pair of tensors (samples, labels).
        name: For messages.

    Raises:
        DataError: for anything else.
    """
    if not isinstance(data, Splits):
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise DataError(
                f"{name} must give realspike.data.Splits or a pair (training part, test part); got "
                f"{shown(data)}"
            )
        data = Splits(_part(data[0], f"the training part of {name}"),
                      _part(data[1], f"the test part of {name}"), (0.0,), (1.0,))  # fmt: skip
    for part in (data.train, data.test):
        if len(part) == 0:
            raise DataError(f"{name} must have training and test samples; a part of it is empty")
    return data


def _part(part: Any, what: str) -> Part:
    if isinstance(part, (tuple, list)) and len(part) == 2:
        samples, labels = part
        if isinstance(samples, Tensor) and isinstance(labels, Tensor):
            if labels.dim() != 1 or len(samples) != len(labels):
                raise DataError(
                    f"{what} must have one label per sample; got {len(samples)} samples and labels "
                    f"of shape {list(labels.shape)}"
                )
            return InMemory(samples, labels)
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, tuple):
        return _Checked(part)
    raise DataError(
        f"{what} must be a data set with a length or a pair of tensors (samples, labels); got "
        f"{shown(part)}"
    )


class _Checked(Dataset):
    """A data set whose samples all have the shape of the first."""

    def __init__(self, dataset):
        self.dataset, self.epoch = dataset, 0
        self.classes = getattr(dataset, "classes", None)
        self.shape: torch.Size | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample, label = self.dataset[index]
        if not isinstance(sample, Tensor):
            raise DataError(f"sample {index} must be a tensor; got {shown(sample)}")
        self.shape = self.shape or sample.shape
        if sample.shape != self.shape:
            raise DataError(
                f"sample {index} must have the shape {list(self.shape)} of the first; got "
                f"{list(sample.shape)}"
            )
        return sample, int(label)


def facts(splits: Splits, classes: "int | None", name: str) -> dict:
    """Return ``classes``, ``channels``, ``image_size`` and ``encoding`` of data.

    Args:
        classes: As configured; None: as many as the training part has ``classes``, or, of labels
            in memory, one more than the largest.

    Raises:
        DataError: if samples are no images [C, S, S] or frames [T, C, S, S] of uint8 or float32, or
            labels are no classes.
    """
    sample, _ = splits.train[0]
    shape, encoding = list(sample.shape), "frames" if sample.dim() == 4 else "direct"
    if sample.dim() not in (3, 4) or shape[-1] != shape[-2]:
        raise DataError(
            f"samples of {name} must be square images [C, S, S] or frames [T, C, S, S]; got {shape}"
        )
    if sample.dtype not in (torch.uint8, torch.float32):
        raise DataError(f"samples of {name} must be uint8 or float32; got {sample.dtype}")
    names = getattr(splits.train, "classes", None)
    if classes is None and names is not None:
        classes = len(names)
    for part in (splits.train, splits.test):
        if not isinstance(part, InMemory):
            continue
        if part.labels.dtype != torch.int64:
            raise DataError(f"labels of {name} must be int64; got {part.labels.dtype}")
        low, high = int(part.labels.min()), int(part.labels.max())
        classes = high + 1 if classes is None else classes
        if low < 0 or high >= classes:
            raise DataError(
                f"labels of {name} must be from 0 to {classes - 1}; they are from {low} to {high}"
            )
        if list(part.samples.shape[1:]) != shape:
            raise DataError(
                f"all samples of {name} must be of shape {shape}; got "
                f"{list(part.samples.shape[1:])}"
            )
    if classes is None:
        raise DataError(f"how many classes {name} has is unknown: give data.classes=N")
    return {"classes": classes, "channels": shape[-3], "image_size": shape[-1],
            "encoding": encoding}  # fmt: skip
