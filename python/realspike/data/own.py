"""Data of the user's own: what they may be, and what is found out about them."""

import contextlib
import math
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike import own
from realspike.data.sets import Chosen, DataError, Files, InMemory, Part, Splits
from realspike.errors import UserError
from realspike.names import shown
from realspike.random_numbers import numbers_from

GIVEN = "given:to_fit"  # stands for data that `realspike.fit` was given


def load(name: str, root: Path, seed: int, timesteps: int) -> Splits:
    """Call the user's function with those of ``root``, ``seed`` and ``timesteps`` that it takes.

    Raises:
        OwnError: if it cannot be imported or called so.
        DataError: if it returns something else than `splits_of` takes, and for `GIVEN`.
    """
    if name == GIVEN:
        raise DataError(
            "what realspike.fit was given has no name, so that its runs are not resumed: give "
            "data.name=package.module:function to test on what it returns"
        )
    function = own.find("data.name", name)
    given = {"root": root, "seed": seed, "timesteps": timesteps}
    with numbers_from(seed):
        return splits_of(own.call("data.name", name, function, given), name)


def splits_of(data: object, name: str) -> Splits:
    """Return data as a `Splits`.

    Args:
        data: A `Splits`, or a pair (training part, test part) that is used as it is, without a
            mean and a deviation, and read in the process that trains. A part is a data set of
            (sample, label) that has a length, or a pair of tensors (samples, labels).
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
        data = Splits(data[0], data[1], (0.0,), (1.0,))
    data = replace(
        data,
        classes=() if data.classes is None else _names(data.classes, name),
        train=_part(data.train, f"the training part of {name}"),
        test=_part(data.test, f"the test part of {name}"),
    )
    for part in (data.train, data.test):
        if len(part) == 0:
            raise DataError(f"{name} must have training and test samples; a part of it is empty")
    return data


def _names(classes: Any, name: str) -> list:
    """Return names of classes as files hold them, texts and integers, also those of NumPy."""
    try:
        found = [each.item() if isinstance(each, np.generic) else each for each in classes]
    except TypeError:
        raise DataError(
            f"the classes of {name} must be their names, in the order of the labels; got "
            f"{shown(classes)}"
        ) from None
    return [each if type(each) is int else str(each) for each in found]


def _count(classes: Any) -> "int | None":
    """Return how many classes names, or their number, say there are; None: they say nothing."""
    for count in (len, operator.index):
        with contextlib.suppress(TypeError):
            return count(classes)
    return None


def _part(part: Any, what: str) -> Part:
    if isinstance(part, (InMemory, Files, Chosen, Checked)):
        return part
    if isinstance(part, (tuple, list)) and len(part) == 2:
        samples, labels = part
        if isinstance(samples, Tensor) and isinstance(labels, Tensor):
            if labels.dim() != 1 or len(samples) != len(labels):
                raise DataError(
                    f"{what} must have one label per sample; got {len(samples)} samples and labels "
                    f"of shape {list(labels.shape)}"
                )
            return InMemory(samples.detach(), labels)  # a run trains its network alone
    if hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, tuple):
        return Checked(part, what)
    raise DataError(
        f"{what} must be a data set with a length or a pair of tensors (samples, labels); got "
        f"{shown(part)}"
    )


class Checked(Dataset):
    """A data set whose samples are all as the first: tensors of its shape and dtype, with labels.

    Args:
        dataset: Of (sample, label).
        what: It is, for messages.

    Attributes:
        limit: What labels must be below.
    """

    def __init__(self, dataset, what: str):
        self.dataset, self.what, self.epoch, self.limit = dataset, what, 0, math.inf
        self.classes = getattr(dataset, "classes", None)
        self.first: Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        what = f"sample {index} of {self.what}"
        try:
            item = self.dataset[index]
        except UserError:
            raise
        except Exception as error:  # whatever it does
            raise DataError(f"{what} cannot be read: {own.said(error)}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{what} must be a pair (sample, label); got {shown(item)}")
        sample, label = item
        if not isinstance(sample, Tensor):
            raise DataError(f"{what} must be a tensor; got {shown(sample)}")
        first = self.first = sample if self.first is None else self.first
        if (sample.shape, sample.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{what} must have the shape {list(first.shape)} and dtype {first.dtype} of the "
                f"first; got {list(sample.shape)} and {sample.dtype}"
            )
        # One that lies elsewhere is not waited for.
        if sample.is_cpu and sample.is_floating_point() and not sample.isfinite().all():
            raise DataError(f"{what} has values that are not finite")
        try:
            number = operator.index(label)
        except (TypeError, RuntimeError, ValueError):
            raise DataError(f"the label of {what} must be an integer; got {shown(label)}") from None
        if not 0 <= number < self.limit:
            raise DataError(
                f"the label of {what} must be at least 0 and below {self.limit}; got {number}"
            )
        return sample.detach(), number


def _check_finite(samples: Tensor, of_what: str) -> None:
    step = 1024  # no mask of all samples
    for first in range(0, len(samples) if samples.is_floating_point() else 0, step):
        finite = samples[first : first + step].isfinite().flatten(1).all(1)
        if not finite.all():
            index = first + int(finite.int().argmin())
            raise DataError(f"sample {index} {of_what} has values that are not finite")


def check_normalisation(mean: Any, std: Any, channels: int, name: object) -> None:
    """Refuse what are no means and deviations of the channels, or of all alike.

    Raises:
        DataError: naming ``name`` as their owner.
    """
    for what, values, smallest in (("mean", mean, -math.inf), ("std", std, 0.0)):
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError, OverflowError):
            numbers = []
        if len(numbers) not in (1, channels) or not all(smallest < n < math.inf for n in numbers):
            raise DataError(
                f"the {what} of {name} must be {channels} finite numbers, one per channel"
                f"{', above 0' * (what == 'std')}; got {shown(values)}"
            )


def facts(splits: Splits, classes: "int | None", name: str, timesteps: int) -> dict:
    """Return ``classes``, ``channels``, ``image_size`` and ``encoding`` of data.

    Args:
        splits: The data, which are told what labels must be below.
        classes: As configured; None: as many as the splits, or their training part, have
            ``classes``, or, of labels in memory, one more than the largest.
        name: For messages.
        timesteps: How many frames a sample must have, if it has any.

    Raises:
        DataError: if samples are no images [C, S, S] or frames [T, C, S, S] of uint8 or float32, or
            not finite, or labels are no classes, or for a mean and a deviation of another number of
            channels.
    """
    (sample, _), (tested, _) = splits.train[0], splits.test[0]
    shape, encoding = list(sample.shape), "frames" if sample.dim() == 4 else "direct"
    if sample.dim() not in (3, 4) or shape[-1] != shape[-2]:
        raise DataError(
            f"samples of {name} must be square images [C, S, S] or frames [T, C, S, S]; got {shape}"
        )
    if sample.dim() == 4 and len(sample) != timesteps:
        raise DataError(
            f"samples of {name} have {len(sample)} frames, and network.timesteps is {timesteps}"
        )
    for each in (sample, tested):
        if each.dtype not in (torch.uint8, torch.float32):
            raise DataError(f"samples of {name} must be uint8 or float32; got {each.dtype}")
        if each.layout != torch.strided:
            raise DataError(f"samples of {name} must be dense; got {each.layout}")
    if tested.shape != sample.shape:
        raise DataError(
            f"all samples of {name} must be of shape {shape}; got {list(tested.shape)} in its test "
            "part"
        )
    check_normalisation(splits.mean, splits.std, shape[-3], name)
    if classes is None:
        classes = _count(splits.classes or getattr(splits.train, "classes", None))
    for part, which in ((splits.train, "training"), (splits.test, "test")):
        if not isinstance(part, InMemory):
            continue
        _check_finite(part.samples, f"of the {which} part of {name}")
        if part.labels.dtype != torch.int64:
            raise DataError(f"labels of {name} must be int64; got {part.labels.dtype}")
        low, high = int(part.labels.min()), int(part.labels.max())
        classes = high + 1 if classes is None else classes
        if low < 0 or high >= classes:
            raise DataError(
                f"labels of {name} must be from 0 to {classes - 1}; they are from {low} to {high}"
            )
    if classes is None:
        raise DataError(f"how many classes {name} has is unknown: give data.classes=N")
    for part in (splits.train, splits.test):
        if isinstance(part, Checked):
            part.limit = classes
    return {"classes": classes, "channels": shape[-3], "image_size": shape[-1],
            "encoding": encoding}  # fmt: skip
