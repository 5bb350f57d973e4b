"""What rebuilds a network; every value is one that JSON can hold. Imports no torch."""

import math
from dataclasses import asdict, dataclass, fields

from realspike.names import check_choice, check_known, shown
from realspike.own import is_own

GRANULARITIES = ("none", "layer", "channel", "element")
ENCODINGS = ("direct", "frames")

# name -> (width as published, poolings, the default first)
_ARCHITECTURES = {
    "digits": (32, ("none",)),
    "resnet20": (64, ("average",)),
    "resnet19": (128, ("average",)),
    "resnet8": (16, ("average",)),
    "vgg16": (64, ("max", "average")),
    "vgg5": (16, ("max", "average", "none")),
    "sew_resnet18": (64, ("max", "average")),
    "sew_resnet34": (64, ("max", "average")),
    "sew_resnet10": (16, ("max", "average")),
}
ARCHITECTURES = tuple(_ARCHITECTURES)
_OWN = (None, (None, "max", "average", "none"))


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of a network, its neurons, and the input that it reads.

    Args:
        granularity: What shares one amplitude: ``"none"`` (binary spikes), ``"layer"``,
            ``"channel"`` or ``"element"``.
        timesteps: T, 1 to 64.
        width: Channels of the first convolution, 1 to 512; the others are in proportion. None: the
            published number.
        decay: Factor in [0, 1] by which the membrane potential decays per timestep; 1 is IF.
        v_threshold: Membrane potential at which a neuron fires, above 0, at most 100.
        detach_reset: Stop the gradient through the reset.
        architecture: One of `ARCHITECTURES`, or ``package.module:Class``, any `nn.Module` whose
            class takes those of these fields that it wants by keyword. Its ``width`` and
            ``pooling`` may stay None.
        classes: Of the classifier, 1 to 100,000.
        in_channels: Of the input, 1 to 1,024.
        image_size: Height and width of the input in pixels, 1 to 4,096.
        encoding: ``"direct"``: an image is convolved once and its current repeated T times;
            ``"frames"``: every timestep has an input of its own (event cameras).
        pooling: Between the convolutions of a VGG and behind the stem of a SEW-ResNet. None: as
            published, ``"max"``, which a network of granularity ``"element"`` cannot fold.
        zero_init_residual: Start the last batch norm of every residual branch at 0, so that every
            block starts as its shortcut.
        threshold_norm: Start the weights of the batch norms at the threshold instead of 1 (the
            initial scale of Zheng et al., AAAI 2021).

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    granularity: str = "none"
    timesteps: int = 4
    width: "int | None" = None
    decay: float = 0.25
    v_threshold: float = 0.5
    detach_reset: bool = False
    architecture: str = "digits"
    classes: int = 10
    in_channels: int = 1
    image_size: int = 8
    encoding: str = "direct"
    pooling: "str | None" = None
    zero_init_residual: bool = False
    threshold_norm: bool = False

    def __post_init__(self):
        own = is_own(self.architecture)
        if not own:
            check_choice("architecture", self.architecture, ARCHITECTURES)
        width, poolings = _ARCHITECTURES.get(self.architecture, _OWN)
        if self.width is None:
            object.__setattr__(self, "width", width)
        if self.pooling is None:
            object.__setattr__(self, "pooling", poolings[0])
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("encoding", self.encoding, ENCODINGS)
        if self.pooling is not None or not own:
            check_choice(f"pooling of {self.architecture}", self.pooling, poolings[-3:])
        for name, largest in (
            *(("timesteps", 64), ("width", 512), ("classes", 100_000)),
            *(("in_channels", 1024), ("image_size", 4096)),
        ):
            value = getattr(self, name)
            if own and name == "width" and value is None:
                continue
            if type(value) is not int or not 1 <= value <= largest:
                raise ValueError(
                    f"{name} must be an integer from 1 to {largest}; got {shown(value)}"
                )
        if not _is_number(self.decay) or not 0.0 <= self.decay <= 1.0:
            raise ValueError(f"decay must be a number in [0, 1]; got {shown(self.decay)}")
        if not _is_number(self.v_threshold) or not 0.0 < self.v_threshold <= 100.0:
            raise ValueError(
                f"v_threshold must be a number in (0, 100]; got {shown(self.v_threshold)}"
            )
        for name in ("detach_reset", "zero_init_residual", "threshold_norm"):
            value = getattr(self, name)
            if type(value) is not bool:
                raise ValueError(f"{name} must be true or false; got {shown(value)}")
        if self.zero_init_residual and "resnet" not in self.architecture and not own:
            raise ValueError(
                f"zero_init_residual needs a residual network; {self.architecture} is none"
            )

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "NetworkConfig":
        """Undo `to_dict`, strictly: every field must be given, and nothing else.

        Raises:
            ValueError: for an unknown or missing key, or a value out of range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"the configuration must be a dictionary; got {shown(values)}")
        names = [field.name for field in fields(cls)]
        check_known("configuration key", values, names)
        if missing := sorted(set(names) - set(values)):
            raise ValueError(f"the configuration key {missing[0]!r} is missing")
        return cls(**values)


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
