"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, ten classes."""

import numpy as np
import torch
from torch import Tensor

from realspike.data.sets import InMemory, Splits
from realspike.optional import require

TEST_FRACTION = 0.25
_WHITE = 16.0  # the largest pixel value in the data


def read_pixels() -> tuple[Tensor, Tensor]:
    """Return all images [1797, 1, 8, 8] with values in [0, 1] and their labels [1797].

    Raises:
        MissingPackageError: if scikit-learn is not installed.
    """
    raw = require("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(raw.images / _WHITE).float().unsqueeze(1)
    return pixels, torch.from_numpy(raw.target).long()


def stratified_split(labels: np.ndarray, test_fraction: float, seed: int):  # [N] -> [N'], [M]
    """Return the sorted training and test indices; every class is split by the same fraction.

    Raises:
        ValueError: if ``test_fraction`` leaves a class without training or test images.
    """
    random = np.random.default_rng(seed)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(test_fraction * len(members))
        if not 0 < count < len(members):
            raise ValueError(
                f"test_fraction must leave training and test images of every class; "
                f"got {test_fraction} for {len(members)} images of class {label}"
            )
        test[random.permutation(members)[:count]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def split(samples: Tensor, labels: Tensor, seed: int = 0) -> Splits:  # [N, ..., C, H, W], [N]
    """Return the two parts, with the mean and the deviation of every channel of the training part
    alone: nothing of the test part may reach the network."""
    parts = stratified_split(labels.numpy(), TEST_FRACTION, seed)
    train, test = (
        InMemory(samples[indices], labels[indices]) for indices in map(torch.from_numpy, parts)
    )
    by_channel = train.samples.movedim(-3, 0).flatten(1)
    return Splits(train, test, by_channel.mean(1).tolist(), by_channel.std(1).tolist())
