"""Images in one folder per class, such as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from realspike.data.sets import DataError, Splits
from realspike.optional import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_AREA = (0.08, 1.0)  # of the image; with the ratios, the practice since Inception
_CROP_RATIO = (3 / 4, 4 / 3)
_TEST_MARGIN = 256 / 224  # the shorter side is this much longer than the central crop


class ImageFolder(Dataset):
    """Images that are decoded, cropped and resized when they are asked for.

    Args:
        folder: One subfolder per class; classes are numbered in the order of their names.
        size: Height and width of what is returned.
        training: Crop at random (area 8 to 100 %, ratio 3:4 to 4:3) instead of the centre.
        seed: With `epoch` and the index, it decides the random crop, whichever process reads.
    """

    def __init__(self, folder: Path, size: int, training: bool, seed: int = 0):
        self.folder, self.size, self.training, self.seed, self.epoch = (
            *(folder, size, training, seed),
            0,
        )
        if not folder.is_dir():
            raise DataError(
                f"there is no folder {folder}/: put the images there, as {folder}/CLASS/*.jpg"
            )
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise DataError(
                f"{folder}/ has no images in folders of classes ({folder}/CLASS/*.jpg; "
                f"{', '.join(SUFFIXES)})"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # [3, size, size] uint8, label
        path, label = self.files[index]
        image_module = require("PIL.Image")
        try:
            with image_module.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # decoders raise nearly anything
            raise DataError(
                f"{path} is no image, truncated or corrupt ({error}): fetch it again or delete it"
            ) from error
        box = self._random_box(image, index) if self.training else self._central_box(image)
        resized = image.resize((self.size,) * 2, image_module.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous(), label

    def _random_box(self, image, index: int) -> tuple[float, float, float, float]:
        random = np.random.default_rng((self.seed, self.epoch, index))
        W, H = image.size
        for _ in range(10):
            area = H * W * random.uniform(*_CROP_AREA)
            ratio = math.exp(random.uniform(*map(math.log, _CROP_RATIO)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= W and h <= H:
                left, top = random.uniform(0, W - w), random.uniform(0, H - h)
                return left, top, left + w, top + h
        return _square(W, H, min(W, H))

    def _central_box(self, image) -> tuple[float, float, float, float]:
        W, H = image.size
        return _square(W, H, min(W, H) / _TEST_MARGIN)


def _square(W: int, H: int, side: float) -> tuple[float, float, float, float]:
    left, top = (W - side) / 2, (H - side) / 2
    return left, top, left + side, top + side


def load(root: Path, size: int, classes: int, seed: int) -> Splits:
    """Read ``root/train`` and ``root/val``.

    Raises:
        DataError: if a folder is missing or empty, the two have different classes, or their number
            is not ``classes``.
    """
    train = ImageFolder(root / "train", size, training=True, seed=seed)
    test = ImageFolder(root / "val", size, training=False)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{root}/train and {root}/val must have the same classes; not: {odd[0]}")
    if len(train.classes) != classes:
        raise DataError(
            f"{root}/train has {len(train.classes)} folders of classes; the configuration says "
            f"{classes} (data.classes)"
        )
    return Splits(train, test, MEAN, STD, read_in_workers=True)
