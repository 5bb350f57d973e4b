"""AutoAugment with the policy found on CIFAR-10, one policy per image, on whatever device they are.

Every image of a batch goes through the same three operations: a move of its pixels, a look-up of
its levels, a blend with a picture made of it. Which policy an image has decides the matrix, the
table and the factor of the three, and two of them change nothing. So there is no loop over
policies, and nothing is asked of the device.
"""

import math

import torch
from torch import Tensor, nn

# Cubuk et al., "AutoAugment", CVPR 2019, Table 7: operation, probability, level from 0 to 9.
_POLICIES = """
invert 0.1 7, contrast 0.2 6
rotate 0.7 2, translate_x 0.3 9
sharpness 0.8 1, sharpness 0.9 3
shear_y 0.5 8, translate_y 0.7 9
autocontrast 0.5 8, equalize 0.9 2
shear_y 0.2 7, posterize 0.3 7
color 0.4 3, brightness 0.6 7
sharpness 0.3 9, brightness 0.7 9
equalize 0.6 5, equalize 0.5 1
contrast 0.6 7, sharpness 0.6 5
color 0.7 7, translate_x 0.5 8
equalize 0.3 7, autocontrast 0.4 8
translate_y 0.4 3, sharpness 0.2 6
brightness 0.9 6, color 0.2 8
solarize 0.5 2, invert 0.0 3
equalize 0.2 0, autocontrast 0.6 0
equalize 0.2 8, equalize 0.6 4
color 0.9 9, equalize 0.6 6
autocontrast 0.8 4, solarize 0.2 8
brightness 0.1 3, color 0.7 0
solarize 0.4 5, autocontrast 0.9 3
translate_y 0.9 9, translate_y 0.7 9
autocontrast 0.9 2, solarize 0.8 3
equalize 0.8 8, invert 0.1 3
translate_y 0.7 9, autocontrast 0.9 1
"""
POLICIES = [
    [(name, float(probability), int(level)) for name, probability, level in map(str.split, steps)]
    for steps in (line.split(",") for line in _POLICIES.strip().splitlines())
]
DRAWS = 5  # random numbers per image: policy, whether each step is taken, the side of each

# Operations that read the image as a whole.
_READING = ("autocontrast", "equalize", "color", "contrast", "sharpness")
_AUTOCONTRAST, _EQUALIZE, _COLOR, _CONTRAST, _SHARPNESS = range(1, 6)
_UNITS = 2**16  # of Pillow's fixed point, per pixel


def magnitude(name: str, level: int, size: int) -> float:
    """Return how much an operation changes at a level: a shear, pixels, degrees, bits, a threshold,
    or how far the factor of a blend is from 1.

    Ranges are those of Table 6 of the paper, in ten steps from no change to the largest.

    Args:
        size: Height and width of the images; a translation is a share of it.
    """
    part = level / 9
    if name.startswith("translate"):
        return int(150 / 331 * size * part)
    return {
        **{"shear_x": 0.3 * part, "shear_y": 0.3 * part, "rotate": 30 * part},
        **{"posterize": 8 - round(4 * part), "solarize": round(255 * (1 - part))},
    }.get(name, 0.9 * part)


def _matrix(name: str, amount: float, size: int) -> list[float]:
    """Return where the pixel of a pixel is: (x, y) -> (a x + b y + c, d x + e y + f)."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    if name == "rotate":
        cosine, sine = math.cos(math.radians(amount)), math.sin(math.radians(amount))
        a, b, d, e = cosine, -sine, sine, cosine
        centre = size / 2
        c, f = centre - (a + b) * centre, centre - (d + e) * centre
    b += amount * (name == "shear_x")
    c += amount * (name == "translate_x")
    d += amount * (name == "shear_y")
    f += amount * (name == "translate_y")
    return [a, b, c + (a + b) / 2, d, e, f + (d + e) / 2]  # of the centres of pixels


def _levels(name: str, amount: float) -> Tensor:  # [256]
    """Return what becomes of each level, where it depends on nothing else."""
    levels = torch.arange(256)
    if name == "invert":
        return 255 - levels
    if name == "posterize":
        return levels & -(1 << 8 - int(amount))
    if name == "solarize":
        return torch.where(levels < amount, levels, 255 - levels)
    if name == "brightness":
        return _blended(torch.zeros(256), levels, torch.tensor(amount))
    return levels


def _blended(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return image + factor * (other - image), cut to whole levels as Pillow does."""
    return (image + factor * (other - image)).clamp(0, 255).to(torch.uint8)


class AutoAugment(nn.Module):
    """Change every image by a policy of its own, exactly as Pillow's operations do.

    Args:
        size: Height and width of the images.

    Shape: images [B, 3, size, size] uint8 and random numbers [B, `DRAWS`] in [0, 1) -> images.
    """

    matrix: Tensor
    levels: Tensor
    factor: Tensor
    reading: Tensor
    probability: Tensor

    def __init__(self, size: int):
        super().__init__()
        # Per policy and step, one row for each side; the last row changes nothing.
        rows = [
            (name, probability, magnitude(name, level, size), side)
            for steps in POLICIES
            for name, probability, level in steps
            for side in (1, -1)
        ]
        rows.append(("nothing", 1.0, 0.0, 1))
        self.nothing = len(rows) - 1
        signed = [
            amount if name in ("posterize", "solarize") else side * amount
            for name, _, amount, side in rows
        ]
        factors = [1 + amount for amount in signed]
        names = [name for name, *_ in rows]
        of = list(zip(names, signed, strict=True))
        matrices = torch.tensor([_matrix(*row, size) for row in of], dtype=torch.float64)
        levels = [
            _levels(name, factor if name == "brightness" else amount)
            for (name, amount), factor in zip(of, factors, strict=True)
        ]
        blends = [
            factor if name in ("color", "contrast", "sharpness") else 1.0
            for name, factor in zip(names, factors, strict=True)
        ]
        reading = [_READING.index(name) + 1 if name in _READING else 0 for name in names]
        tables = {
            "matrix": (matrices * _UNITS + 0.5).floor().long(),  # [rows, 6]
            "levels": torch.stack(levels).to(torch.uint8),  # [rows, 256]
            "factor": torch.tensor(blends),  # [rows]
            "reading": torch.tensor(reading),  # [rows]
            "probability": torch.tensor([probability for _, probability, *_ in rows]),  # [rows]
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, images: Tensor, draws: Tensor) -> Tensor:
        policy = (draws[:, 0] * len(POLICIES)).long().clamp(max=len(POLICIES) - 1)
        for step in (0, 1):
            row = 4 * policy + 2 * step + (draws[:, 3 + step] < 0.5)
            taken = draws[:, 1 + step] < self.probability[row]
            images = self.apply_rows(images, torch.where(taken, row, self.nothing))
        return images

    def apply_rows(self, images: Tensor, row: Tensor) -> Tensor:  # [B, 3, H, W], [B]
        """Change each image as its row of the tables says."""
        images = _moved(images, self.matrix[row])
        reading = self.reading[row][:, None, None]
        images = _looked_up(images, self.levels[row], reading)
        return _mixed(images, self.factor[row][:, None, None, None], reading[..., None])


def _moved(images: Tensor, matrix: Tensor) -> Tensor:  # [B, 3, H, W] uint8, [B, 6] int64
    """Return the nearest pixel of where each pixel is, black outside."""
    H, W = images.shape[-2:]
    x = torch.arange(W, device=images.device)
    y = torch.arange(H, device=images.device)[:, None]
    a, b, c, d, e, f = matrix[:, :, None, None].unbind(1)  # each [B, 1, 1]
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16  # [B, H, W]
    inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
    place = torch.where(inside, row * W + column, 0).flatten(1)[:, None]  # [B, 1, H * W]
    found = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1))
    return found.view(images.shape) * inside[:, None]


def _looked_up(images: Tensor, table: Tensor, reading: Tensor) -> Tensor:
    """Return the levels that a table [B, 256] gives, or one made of the image's own histogram."""
    pixels = images.flatten(2).long()  # [B, 3, H * W]
    level = torch.arange(256, device=images.device)
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    low, high = pixels.amin(2, keepdim=True), pixels.amax(2, keepdim=True)  # [B, 3, 1]
    span = (high - low).double()
    scale = torch.full_like(span, 255) / span  # 255 / span would multiply by 1 / span
    stretched = (level * scale + -low * scale).clamp(0, 255).long()
    stretched = torch.where(high > low, stretched, level)
    step = (pixels.shape[2] - counts.gather(2, high)) // 255
    below = counts.cumsum(2) - counts
    equal = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equal = torch.where(step > 0, equal, level)
    chosen = torch.where(reading == _AUTOCONTRAST, stretched, table[:, None].long())
    chosen = torch.where(reading == _EQUALIZE, equal, chosen)
    return chosen.gather(2, pixels).to(torch.uint8).view(images.shape)


def _mixed(images: Tensor, factor: Tensor, reading: Tensor) -> Tensor:
    """Return images away from (a factor above 1), or towards, grey, their mean, or a smooth one."""
    values = images.int()
    red, green, blue = values.unbind(1)
    grey = (red * 19595 + green * 38470 + blue * 7471 + 0x8000 >> 16)[:, None]  # [B, 1, H, W]
    mean = (grey.sum((2, 3), keepdim=True) / grey[0].numel() + 0.5).floor().int()
    other = torch.where(reading == _COLOR, grey, values)
    other = torch.where(reading == _CONTRAST, mean, other)
    other = torch.where(reading == _SHARPNESS, _smooth(values), other)
    return _blended(other, values, factor)


def _smooth(values: Tensor) -> Tensor:  # [B, 3, H, W] int32
    """Return (the sum of 3 x 3 pixels + 4 of the middle one) / 13, rounded; edges as they are."""
    if min(values.shape[2:]) < 3:
        return values
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = values[:, :, 1:-1, 1:-1]
    out = values.clone()
    out[:, :, 1:-1, 1:-1] = (2 * (sums + 4 * inner) + 13) // 26
    return out
