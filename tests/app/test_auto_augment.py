"""AutoAugment beside Pillow's operations, image by image and level for level."""

import numpy as np
import pytest
import torch

for package in ("sklearn", "PIL"):
    pytest.importorskip(package)

from PIL import Image, ImageEnhance, ImageOps
from realspike.data.auto_augment import DRAWS, POLICIES, AutoAugment, magnitude
from sklearn.datasets import load_sample_image

FACTORS = {name.lower(): getattr(ImageEnhance, name)
           for name in ("Color", "Contrast", "Brightness", "Sharpness")}  # fmt: skip


def by_pillow(image, name, level, side):
    """One operation on an RGB image; ``side`` is 1 or -1."""
    amount = magnitude(name, level, image.width)
    if name in FACTORS:
        return FACTORS[name](image).enhance(1 + side * amount)
    if name == "rotate":
        return image.rotate(side * amount)
    if name in ("posterize", "solarize"):
        return getattr(ImageOps, name)(image, amount)
    if name in ("invert", "autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    shift = side * amount
    matrix = {
        "shear_x": (1, shift, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shift, 1, 0),
        "translate_x": (1, 0, shift, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def photographs(size, count=24):  # [count, 3, size, size] uint8
    """Pieces of two photographs, coarse and fine, and pictures of one, of few and of all levels."""
    found = []
    for n in range(count - 6):
        photograph = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[n % 2]))
        left, top, side = 31 * n % 400, 17 * n % 200, (size, 3 * size)[n // 2 % 2]
        piece = photograph.crop((left, top, left + side, top + side)).resize((size, size))
        found.append(np.array(piece))
    random = np.random.default_rng(0)
    shape = (size, size, 3)
    found += [np.full(shape, level, np.uint8) for level in (0, 7, 255)]
    found += [random.integers(0, top, shape, np.uint8, endpoint=True) for top in (1, 40, 255)]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def as_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [32, 17])
def test_every_operation_of_the_policies_is_pillows(size):
    augment, images = AutoAugment(size), photographs(size)
    pictures = [as_pillow(image) for image in images]
    changed = set()
    for number, (name, _, level) in enumerate(step for steps in POLICIES for step in steps):
        for row, side in ((2 * number, 1), (2 * number + 1, -1)):
            out = augment.apply_rows(images, torch.full((len(images),), row))
            for picture, before, image in zip(pictures, images, out, strict=True):
                expected = as_tensor(by_pillow(picture, name, level, side))
                assert torch.equal(image, expected), (name, level, side)
                changed |= {name} if not torch.equal(image, before) else set()
    assert changed == {name for steps in POLICIES for name, _, _ in steps}


def test_every_image_has_the_policy_that_its_numbers_draw():
    images = photographs(32, 200)
    draws = torch.rand(200, DRAWS, generator=torch.Generator().manual_seed(1))
    out = AutoAugment(32)(images, draws)
    policies = set()
    for image, (policy, *taken, first, second), result in zip(
        images, draws.tolist(), out, strict=True
    ):
        number = int(policy * 25)
        policies.add(number)
        picture = as_pillow(image)
        for (name, probability, level), draw, side in zip(
            POLICIES[number], taken, (first, second), strict=True
        ):
            if draw < probability:
                picture = by_pillow(picture, name, level, -1 if side < 0.5 else 1)
        assert torch.equal(result, as_tensor(picture)), number
    assert policies == set(range(25))


def test_magnitudes_by_hand():
    """The ranges of Table 6 of the paper: 0.3, 150 of 331 pixels, 30 degrees, 4 bits, 0.9."""
    assert magnitude("shear_x", 9, 32) == magnitude("shear_y", 9, 32) == pytest.approx(0.3)
    assert [magnitude("translate_x", level, 32) for level in (0, 3, 9)] == [0, 4, 14]
    assert magnitude("translate_y", 9, 331) == 150
    assert magnitude("rotate", 3, 32) == pytest.approx(10)
    assert [magnitude("posterize", level, 32) for level in (0, 7, 9)] == [8, 5, 4]
    assert [magnitude("solarize", level, 32) for level in (0, 3, 9)] == [255, 170, 0]
    for name in FACTORS:
        assert magnitude(name, 0, 32) == 0
        assert magnitude(name, 9, 32) == pytest.approx(0.9)
    assert len(POLICIES) == 25
    assert all(len(steps) == 2 for steps in POLICIES)


def test_images_too_small_to_be_smoothed_are_as_pillow_leaves_them():
    images = photographs(2)
    sharpness = next(n for n, steps in enumerate(POLICIES) if steps[0][0] == "sharpness")
    out = AutoAugment(2).apply_rows(images, torch.full((len(images),), 4 * sharpness))
    level = POLICIES[sharpness][0][2]
    for image, result in zip(images, out, strict=True):
        assert torch.equal(result, as_tensor(by_pillow(as_pillow(image), "sharpness", level, 1)))
