"""The handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, ten classes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from realspike.optional import require

CLASSES = 10
SIZE = 8  # pixels
_WHITE = 16.0  # the largest pixel value in the data


@dataclass(frozen=True)
class Digits:
    """A training and a test part, both normalised by the mean and deviation of the training part.

    ``train_indices`` and ``test_indices`` are positions in scikit-learn's data set. A raw pixel p
    in [0, 1] became ``(p - pixel_mean) / pixel_std``.
    """

    train_images: Tensor  # [N, 1, 8, 8] float32
    train_labels: Tensor  # [N] int64
    test_images: Tensor  # [M, 1, 8, 8] float32
    test_labels: Tensor  # [M] int64
    train_indices: Tensor  # [N] int64
    test_indices: Tensor  # [M] int64
    pixel_mean: float
    pixel_std: float

    @property
    def background(self) -> float:
        """The normalised value of an empty pixel."""
        return -self.pixel_mean / self.pixel_std


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


def read_pixels() -> tuple[Tensor, Tensor]:
    """Return all images [1797, 1, 8, 8] with values in [0, 1] and their labels [1797].

    Raises:
        MissingPackageError: if scikit-learn is not installed.
    """
    raw = require("sklearn.datasets").load_digits()
    pixels = torch.from_numpy(raw.images / _WHITE).float().unsqueeze(1)
    return pixels, torch.from_numpy(raw.target).long()


def load_digits(test_fraction: float = 0.25, split_seed: int = 0) -> Digits:
    """Load the digits and split them, the same way for the same arguments.

    Raises:
        MissingPackageError: if scikit-learn is not installed.
        ValueError: for a ``test_fraction`` that leaves a class without images.
    """
    pixels, labels = read_pixels()
    train, test = stratified_split(labels.numpy(), test_fraction, split_seed)
    train, test = torch.from_numpy(train), torch.from_numpy(test)
    # Of the training part alone: nothing of the test images may reach the network.
    mean, std = pixels[train].mean().item(), pixels[train].std().item()
    images = (pixels - mean) / std
    return Digits(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        train_indices=train,
        test_indices=test,
        pixel_mean=mean,
        pixel_std=std,
    )
