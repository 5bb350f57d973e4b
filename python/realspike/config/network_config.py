"""The configuration that rebuilds a network, of values that JSON can hold. Imports no torch."""

from dataclasses import asdict, dataclass, fields

from realspike.config import options
from realspike.config.options import option
from realspike.names import check_choice, check_known, shown
from realspike.own import is_own

GRANULARITIES = ("none", "layer", "channel", "element")
ENCODINGS = ("direct", "frames")
EMISSIONS = ("binary", "ternary")

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
_OWN = (None, (None,))
_OWN_HIGH = 2**16  # as of folded networks


def method_of(network) -> str:
    """Return what a network is compared as: what shares an amplitude, or that spikes are ternary.

    Args:
        network: Anything with ``granularity`` and ``emission``.
    """
    return network.granularity if network.emission == "binary" else network.emission


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of a network, its neurons, and the input that it reads.

    Args:
        width: The other convolutions are in proportion.
        architecture: Or ``package.module:Class``, any `nn.Module` whose class takes those of these
            fields that it wants by keyword. Its ``width`` and ``pooling`` may stay None.
        encoding: ``"direct"``: an image is convolved once and its current repeated T times;
            ``"frames"``: every timestep has an input of its own (event cameras).
        pooling: Between the convolutions of a VGG and behind the stem of a SEW-ResNet. A network of
            granularity ``"element"`` cannot fold ``"max"``.
        threshold_norm: The initial scale of Zheng et al., AAAI 2021.

    Raises:
        ValueError: naming the field, its value and what is accepted.
    """

    granularity: str = option(
        "none", "what shares one amplitude; none: binary spikes", choices=GRANULARITIES
    )
    timesteps: int = option(4, "T", 1, 64, own_high=_OWN_HIGH)
    width: int | None = option(
        None,
        "channels of the first convolution; null: as published",
        1,
        512,
        own_high=_OWN_HIGH,
    )
    decay: float = option(0.25, "of the membrane potential per timestep; 1: IF neurons", 0, 1)
    v_threshold: float = option(0.5, "potential at which a neuron fires", high=100, above=0)
    detach_reset: bool = option(False, "stop the gradient through the reset")
    architecture: str = option(
        "digits", "the network", choices=ARCHITECTURES, own="package.module:Class"
    )
    classes: int = option(10, "of the classifier", 1, 100_000)
    in_channels: int = option(1, "of the input", 1, 1024)
    image_size: int = option(8, "height and width of the input in pixels", 1, 4096)
    encoding: str = option("direct", "of the input", choices=ENCODINGS)
    pooling: str | None = option(
        None, "of VGG and SEW-ResNet; null: as published (max)", choices=("max", "average", "none")
    )
    zero_init_residual: bool = option(
        False, "start the last batch norm of every residual branch at 0"
    )
    threshold_norm: bool = option(False, "start batch norms at the threshold instead of 1")
    emission: str = option(
        "binary",
        "of neurons; ternary: -1 where the potential is at most -v_threshold, too",
        choices=EMISSIONS,
    )

    def __post_init__(self):
        options.check(self)
        own = is_own(self.architecture)
        width, poolings = _ARCHITECTURES.get(self.architecture, _OWN)
        if self.width is None:
            object.__setattr__(self, "width", width)
        if self.pooling is None:
            object.__setattr__(self, "pooling", poolings[0])
        elif not own:
            check_choice(f"pooling of {self.architecture}", self.pooling, filter(None, poolings))
        if self.zero_init_residual and "resnet" not in self.architecture and not own:
            raise ValueError(
                f"zero_init_residual needs a residual network; {self.architecture} is none"
            )

    @property
    def spikes(self) -> str:
        """What neurons emit, in words."""
        if self.granularity == "none":
            return self.emission
        return f"{'real' if self.emission == 'binary' else self.emission}, {self.granularity}"

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "NetworkConfig":
        """Undo `to_dict`, strictly: every field must be given, and nothing else.

        Only ``emission`` may be missing: files that are older than it hold binary networks.

        Raises:
            ValueError: for an unknown or missing key, or a value out of range.
        """
        if not isinstance(values, dict):
            raise ValueError(f"the configuration must be a dictionary; got {shown(values)}")
        values = {"emission": "binary", **values}
        names = [field.name for field in fields(cls)]
        check_known("configuration key", values, names)
        if missing := sorted(set(names) - set(values)):
            raise ValueError(f"the configuration key {missing[0]!r} is missing")
        return cls(**values)
