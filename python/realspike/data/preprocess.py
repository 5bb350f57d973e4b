"""From a batch as it was read to the input of a network, on whatever device the batch is.

Crop, flip and AutoAugment are kornia's. One seed gives one augmentation, whatever was drawn before,
so that a resumed run continues exactly.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from realspike.config.run_config import DataSection
from realspike.optional import require


class Preprocess(nn.Module):
    """Scale to [0, 1], augment, normalise, and put time outermost.

    Args:
        config: Which augmentations.
        mean, std: Per channel, see `realspike.data.Splits`.
        image_size: Height and width of the images.

    Shape: images [B, C, H, W] -> the same, frames [B, T, C, H, W] -> [T*B, C, H, W]; float32.
    """

    def __init__(
        self, config: DataSection, mean: Sequence[float], std: Sequence[float], image_size: int
    ):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.cutout = config.cutout
        self.geometric = nn.Sequential()
        self.policies: nn.ModuleList = nn.ModuleList()
        if config.crop or config.flip or config.autoaugment:
            kornia = require("kornia.augmentation")
        if config.crop:
            size = (image_size, image_size)
            self.geometric.append(kornia.RandomCrop(size, padding=config.crop, p=1.0))
        if config.flip:
            self.geometric.append(kornia.RandomHorizontalFlip())
        if config.autoaugment:
            self.policies.extend(require("kornia.augmentation.auto").AutoAugment("cifar10"))

    def forward(self, samples: Tensor, seed: "int | None" = None) -> Tensor:
        """Prepare a batch; ``seed`` is for training, None (evaluation) leaves it unaugmented."""
        if samples.dtype == torch.uint8:
            samples = samples.float() / 255
        if seed is None:
            return self._time_outermost((samples - self.mean) / self.std)
        devices = [samples.device] if samples.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            # All frames of a sample are moved alike.
            flat = samples.flatten(1, 2) if samples.dim() == 5 else samples
            flat = self._auto_augment(self.geometric(flat))
            samples = (flat.view(samples.shape) - self.mean) / self.std
            return self._time_outermost(self._cut_out(samples))

    def _auto_augment(self, images: Tensor) -> Tensor:  # [B, 3, H, W]
        """Draw a policy for every image; kornia's own module draws one for the whole batch."""
        if not self.policies:
            return images
        chosen = torch.randint(len(self.policies), (len(images),)).to(images.device)
        out = torch.empty_like(images)
        for number in chosen.unique().tolist():
            out[chosen == number] = self.policies[number](images[chosen == number])
        return out

    def _cut_out(self, samples: Tensor) -> Tensor:  # [B, ..., H, W]
        """Blank a square around a random pixel; it may reach over the edge, as in Cutout's code
        (kornia's erasing keeps it inside)."""
        if not self.cutout:
            return samples
        centres = torch.rand(2, len(samples), device=samples.device)
        inside = []
        for centre, size in zip(centres, samples.shape[-2:], strict=True):
            first = (centre * size).floor()[:, None] - self.cutout // 2
            position = torch.arange(size, device=samples.device)
            inside.append((position >= first) & (position < first + self.cutout))  # [B, size]
        hole = inside[0][:, :, None] & inside[1][:, None, :]
        hole = hole.view(len(samples), *(1,) * (samples.dim() - 3), *hole.shape[1:])
        return samples.masked_fill(hole, 0.0)

    @staticmethod
    def _time_outermost(samples: Tensor) -> Tensor:
        return samples.transpose(0, 1).flatten(0, 1) if samples.dim() == 5 else samples
