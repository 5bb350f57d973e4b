"""Images in one folder per class, such as ImageNet: train/CLASS/*.jpg and val/CLASS/*.jpg."""

import math
import os
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from realspike.data.sets import DataError, Files, Splits
from realspike.optional import require

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Whatever its suffix says, a file is one of these: others of Pillow's formats start programs
# (EPS) or are no pictures of one size.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Small files may claim more than a process can hold: decoders need up to 16 bytes per pixel, and
# as many for every row. JPEG itself has no longer sides.
MOST_PIXELS, LONGEST_SIDE = 10**8, 65_535
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP_AREA = (0.08, 1.0)  # of the image; with the ratios, the practice since Inception
_CROP_RATIO = (3 / 4, 4 / 3)
_TEST_MARGIN = 256 / 224  # the shorter side is this much longer than the central crop


class ImageFolder(Files):
    """Images that are decoded, cropped and resized when they are asked for.

    Args:
        folder: One subfolder per class; classes are numbered in the order of their names. Files
            that are no images, and hidden ones, are left out.
        size: Height and width of what is returned.
        training: Crop at random (area 8 to 100 %, ratio 3:4 to 4:3) instead of the centre.
        seed: With `epoch` and the index, it decides the random crop, whichever process reads.

    Raises:
        DataError: for a class without images, a hidden folder, images beside the classes or in a
            folder of a class's folder, broken links, and classes that differ in case alone.
    """

    def __init__(self, folder: Path, size: int, training: bool, seed: int = 0):
        self.folder, self.size, self.training, self.seed, self.epoch = (
            *(folder, size, training, seed),
            0,
        )
        self.classes = _classes(folder)
        self.files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in _images(folder / name)
        ]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # [3, size, size] uint8, label
        path, label = self.files[index]
        image_module = require("PIL.Image")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of palettes, large images, odd EXIF
                with image_module.open(path, formats=FORMATS) as file:
                    image = _rgb(file)
        except Exception as error:  # decoders raise nearly anything
            raise DataError(
                f"{path} is no image, truncated or corrupt ({' '.join(str(error).split())}; "
                f"{', '.join(FORMATS)} are read): fetch it again or delete it"
            ) from error
        box = self._random_box(image, index) if self.training else self._central_box(image)
        resized = image.resize((self.size,) * 2, image_module.Resampling.BILINEAR, box=box)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous(), label

    def _random_box(self, image, index: int) -> tuple[float, float, float, float]:
        random = np.random.default_rng((self.seed, self.epoch, index))
        W, H = image.size
        low, high = map(math.log, _CROP_RATIO)
        for _ in range(10):
            area = H * W * random.uniform(*_CROP_AREA)
            ratio = math.exp(random.uniform(low, high))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= W and h <= H:
                left, top = random.uniform(0, W - w), random.uniform(0, H - h)
                return left, top, left + w, top + h
        return _square(W, H, min(W, H))

    def _central_box(self, image) -> tuple[float, float, float, float]:
        W, H = image.size
        return _square(W, H, min(W, H) / _TEST_MARGIN)


def _entries(folder: Path) -> Iterator[tuple[Path, bool, bool]]:
    """Yield what is in a folder, by name, with whether it is a folder and whether an image.

    A link counts as what it leads to; one that leads nowhere is refused.
    """
    try:
        with os.scandir(folder) as entries:  # which asks the system about links alone
            for entry in sorted(entries, key=lambda entry: entry.name):
                path, is_folder = Path(entry.path), entry.is_dir()
                if not is_folder and not entry.is_file():
                    raise DataError(f"{path} is a broken link or no regular file: delete it")
                is_image = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
                yield path, is_folder, is_image
    except OSError as error:
        name = error.filename or folder
        raise DataError(f"cannot read {name} ({error.strerror}): fetch or delete it") from error


def _classes(folder: Path) -> list[str]:
    """Return the names of the folders of classes; what else might be meant as one is refused."""
    classes: dict[str, str] = {}
    for path, is_folder, is_image in _entries(folder):
        if is_folder and path.name.startswith("."):
            raise DataError(f"{path}/ is hidden, and no class: move or delete it")
        if is_image and not is_folder:
            raise DataError(f"{path} is in no folder of a class ({folder}/CLASS/*.jpg)")
        if is_folder:
            alike = unicodedata.normalize("NFC", path.name).lower()
            if (other := classes.setdefault(alike, path.name)) != path.name:
                raise DataError(
                    f"{folder}/ has {other}/ and {path.name}/, which many systems take for one: "
                    "are they one class?"
                )
    if not classes:
        raise DataError(f"{folder}/ has no folders of classes ({folder}/CLASS/*.jpg)")
    return sorted(classes.values())


def _images(folder: Path) -> list[Path]:
    """Return the images of a class, by name; there must be one."""
    paths = []
    for path, is_folder, is_image in _entries(folder):
        if is_folder and not path.name.startswith("."):
            raise DataError(
                f"{path}/ is a folder in that of a class, whose images lie in it directly"
            )
        if is_image:
            paths.append(path)
    if not paths:
        raise DataError(
            f"{folder}/ has no images ({', '.join(SUFFIXES)}): convert what is in it to one of "
            "these, or delete the folder"
        )
    return paths


def _rgb(file):
    """Return an opened image as viewers show it, upright, in 8 bits per colour, without alpha.

    Raises:
        ValueError: for several frames, a size beyond all reason, and a mode that has no such
            picture.
    """
    W, H = file.size
    if W * H > MOST_PIXELS or max(W, H) > LONGEST_SIDE:
        raise ValueError(
            f"it has {W} x {H} pixels: at most {MOST_PIXELS:,} and sides of {LONGEST_SIDE:,} are "
            "accepted"
        )
    if getattr(file, "is_animated", False) and file.format in ("PNG", "WEBP"):
        raise ValueError(f"it has {file.n_frames} frames, and one is accepted")
    image = require("PIL.ImageOps").exif_transpose(file)
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"its levels reach from {levels.min()} to {levels.max()}")
        scaled = levels.astype(np.uint32)
        scaled += 128
        scaled //= 257
        image = require("PIL.Image").fromarray(scaled.astype(np.uint8))
    elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(f"its mode {image.mode} is not read")
    # By way of RGBA, where a palette has an alpha of its own.
    return (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("RGB")


def _square(W: int, H: int, side: float) -> tuple[float, float, float, float]:
    left, top = (W - side) / 2, (H - side) / 2
    return left, top, left + side, top + side


def load(root: Path, size: int, classes: "int | None", seed: int) -> Splits:
    """Read ``root/train``, and ``root/val`` or, where there is none, ``root/test``.

    Raises:
        DataError: if a folder is missing or empty, the two have different classes, or their number
            is not ``classes`` (None: any).
    """
    train = ImageFolder(root / "train", size, training=True, seed=seed)
    held_out = root / "val" if (root / "val").exists() else root / "test"
    test = ImageFolder(held_out, size, training=False)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise DataError(f"{root}/train and {held_out} must have the same classes; not: {odd[0]}")
    if classes not in (None, len(train.classes)):
        raise DataError(
            f"{root}/train has {len(train.classes)} folders of classes; the configuration says "
            f"{classes} (data.classes)"
        )
    return Splits(train, test, MEAN, STD, read_in_workers=True, classes=train.classes)
