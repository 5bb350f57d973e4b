"""The networks and the configurations that rebuild them."""

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from realspike.digits import CLASSES, SIZE
from realspike_ops import DirectEncoding, MeanOverTime, RealSpikeLIF

GRANULARITIES = ("none", "layer", "channel", "element")


@dataclass(frozen=True)
class DigitsNetConfig:
    """What rebuilds a `DigitsNet`; every value is one that JSON can hold.

    Args:
        granularity: What shares one amplitude: ``"none"`` (binary spikes), ``"layer"``,
            ``"channel"`` or ``"element"``.
        timesteps: T, 1 to 64.
        width: Channels of the first two convolutions, 1 to 512; the third has twice as many.
        decay: Factor in [0, 1] by which the membrane potential decays per timestep.
        v_threshold: Membrane potential at which a neuron fires, above 0, at most 100.
        detach_reset: Stop the gradient through the reset.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    granularity: str = "none"
    timesteps: int = 4
    width: int = 32
    decay: float = 0.25
    v_threshold: float = 0.5
    detach_reset: bool = False

    def __post_init__(self):
        if self.granularity not in GRANULARITIES:
            names = ", ".join(GRANULARITIES)
            raise ValueError(f"granularity must be one of {names}; got {self.granularity!r}")
        for name, largest in (("timesteps", 64), ("width", 512)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise ValueError(f"{name} must be an integer from 1 to {largest}; got {value!r}")
        if not _is_number(self.decay) or not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be a number in [0, 1]; got {self.decay!r}")
        if not _is_number(self.v_threshold) or not 0.0 < self.v_threshold <= 100.0:
            raise ValueError(f"v_threshold must be a number in (0, 100]; got {self.v_threshold!r}")
        if type(self.detach_reset) is not bool:
            raise ValueError(f"detach_reset must be true or false; got {self.detach_reset!r}")

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "DigitsNetConfig":
        """Undo `to_dict`, strictly: every field must be given, and nothing else.

        Raises:
            ValueError: for an unknown or missing key, or a value out of range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"the configuration must be a dictionary; got {values!r:.80}")
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise ValueError(f"unknown configuration key {unknown[0]!r:.80}")
        if missing := sorted(names - set(values)):
            raise ValueError(f"the configuration key {missing[0]!r} is missing")
        return cls(**values)


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


class DigitsNet(nn.Module):
    """Three spiking convolutions and a classifier, for images of 8 x 8 pixels.

    The first convolution reads the image itself and runs once per image; its current is repeated
    over the timesteps (direct encoding). The class scores are the mean over time of the currents
    into the output. `realspike_ops.reparameterize` folds it.

    Shape: [B, 1, 8, 8] -> [B, 10].
    """

    def __init__(self, config: DigitsNetConfig):
        super().__init__()
        self.config = config
        width, half = config.width, SIZE // 2
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.encoding = DirectEncoding(config.timesteps)
        self.lif1 = self._neurons(width, SIZE)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.lif2 = self._neurons(width, SIZE)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.lif3 = self._neurons(2 * width, half)
        self.linear = nn.Linear(2 * width * half * half, CLASSES)
        self.mean = MeanOverTime(config.timesteps)

    def _neurons(self, channels: int, size: int) -> RealSpikeLIF:
        return RealSpikeLIF(
            self.config.timesteps,
            self.config.granularity,
            (channels, size, size),
            decay=self.config.decay,
            v_threshold=self.config.v_threshold,
            detach_reset=self.config.detach_reset,
        )

    def forward(self, images: Tensor) -> Tensor:  # [B, 1, 8, 8] -> [B, 10]
        x = self.encoding(self.bn1(self.conv1(images)))  # [T*B, C, 8, 8]
        x = self.lif1(x)
        x = self.lif2(self.bn2(self.conv2(x)))
        x = self.lif3(self.bn3(self.conv3(x)))  # [T*B, 2*C, 4, 4]
        return self.mean(self.linear(x.flatten(1)))


def build(config: DigitsNetConfig, seed: int) -> DigitsNet:
    """Return an initialised network on the CPU; torch's global random state is left as it was.

    Amplitudes start at 1 and draw nothing, so that networks of different granularities start from
    the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNet(config)
