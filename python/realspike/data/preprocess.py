"""From a batch as it was read to the input of a network, on whatever device the batch is.

The random numbers of a batch are drawn on the CPU, all at once, and are an input like the images:
one seed gives one augmentation on every device, whatever was drawn before, so that a resumed run
continues exactly; and nothing here waits for a device, so that a step can be captured.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike.config.run_config import DataSection
from realspike.data import auto_augment
from realspike.data.auto_augment import AutoAugment

# Random numbers per sample: of the crop (down, right), the flip, Cutout (down, right), AutoAugment.
DRAWS = 5 + auto_augment.DRAWS


class Preprocess(nn.Module):
    """Augment, scale to [0, 1], normalise, and put time outermost.

    Args:
        config: Which augmentations.
        mean, std: Per channel, see `realspike.data.Splits`.
        image_size: Height and width of the images.

    Shape: images [B, C, H, W] -> the same, frames [B, T, C, H, W] -> [T*B, C, H, W]; float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: DataSection, mean: Sequence[float], std: Sequence[float], image_size: int
    ):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            # In float32, also those that NumPy made in double precision.
            numbers = torch.tensor([*map(float, values)], dtype=torch.float32)
            self.register_buffer(name, numbers[:, None, None], persistent=False)
        self.crop, self.flip, self.cutout = config.crop, config.flip, config.cutout
        self.policies = AutoAugment(image_size) if config.autoaugment else None

    @staticmethod
    def draw(count: int, seed: int) -> Tensor:  # [count, DRAWS], on the CPU
        """Return the random numbers in [0, 1) of a batch."""
        return torch.rand(count, DRAWS, generator=torch.Generator().manual_seed(seed))

    def forward(self, samples: Tensor, draws: "Tensor | None" = None) -> Tensor:
        """Prepare a batch; ``draws`` are for training, None (evaluation) leaves it unaugmented."""
        if draws is None:
            return self._time_outermost(self._normalised(samples))
        with torch.no_grad():
            # All frames of a sample are changed alike.
            samples = self._auto_augment(self._crop_and_flip(samples, draws), draws)
            return self._time_outermost(self._cut_out(self._normalised(samples), draws))

    def _normalised(self, samples: Tensor) -> Tensor:  # [..., C, H, W]
        if samples.dtype == torch.uint8:
            samples = samples.float() / 255
        return (samples - self.mean) / self.std

    def _crop_and_flip(self, samples: Tensor, draws: Tensor) -> Tensor:  # [B, ..., H, W]
        """Cut a window of the size of the image out of it, black around it, or its mirror image."""
        if not (self.crop or self.flip):
            return samples
        padded = F.pad(samples, (self.crop,) * 4).flatten(1, -3)  # [B, T*C, H + 2 p, W + 2 p]
        B, C = padded.shape[:2]
        first = _whole(draws[:, :2], 2 * self.crop + 1)  # [B, 2]
        rows, columns = (torch.arange(size, device=draws.device) for size in samples.shape[-2:])
        if self.flip:
            columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(0), columns)
        rows, columns = first[:, :1] + rows, first[:, 1:] + columns  # [B, H], [B, W]
        sample = torch.arange(B, device=draws.device)[:, None, None, None]
        channel = torch.arange(C, device=draws.device)[:, None, None]
        window = padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return window.view(samples.shape)

    def _auto_augment(self, samples: Tensor, draws: Tensor) -> Tensor:  # [B, ..., 3, H, W]
        """Change images by policies, whose operations know 256 levels of [0, 1] alone."""
        if self.policies is None:
            return samples
        if samples.dtype != torch.uint8:
            samples = (samples * 255).round().clamp(0, 255).to(torch.uint8)
        images = samples.flatten(0, -4)  # [B*T, 3, H, W]
        draws = draws[:, 5:].repeat_interleave(len(images) // len(draws), 0)
        return self.policies(images, draws).view(samples.shape)

    def _cut_out(self, samples: Tensor, draws: Tensor) -> Tensor:  # [B, ..., H, W]
        """Blank a square around a random pixel; it may reach over the edge, as in Cutout's code."""
        if not self.cutout:
            return samples
        inside = []
        for centre, size in zip(draws[:, 3:5].unbind(1), samples.shape[-2:], strict=True):
            first = _whole(centre, size)[:, None] - self.cutout // 2
            position = torch.arange(size, device=draws.device)
            inside.append((position >= first) & (position < first + self.cutout))  # [B, size]
        hole = inside[0][:, :, None] & inside[1][:, None, :]
        hole = hole.view(len(samples), *(1,) * (samples.dim() - 3), *hole.shape[1:])
        return samples.masked_fill(hole, 0.0)

    @staticmethod
    def _time_outermost(samples: Tensor) -> Tensor:
        return samples.transpose(0, 1).flatten(0, 1) if samples.dim() == 5 else samples


def _whole(draws: Tensor, count: int) -> Tensor:
    """Return numbers from 0 to count - 1; a product may round up to count."""
    return (draws * count).long().clamp(max=count - 1)
