"""The configuration of a run: a YAML file, overrides ``key=value``, and their checks.

Everything is checked before torch or any data is loaded.
"""

import dataclasses
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realspike import files
from realspike.config import options, strict_yaml
from realspike.config.datasets import DATASETS, facts_of
from realspike.config.network_config import NetworkConfig
from realspike.config.options import option, same
from realspike.errors import UserError
from realspike.files import path_of
from realspike.names import check_known, nearest, shown
from realspike.optional import require

FILE = "config.yaml"  # in the folder of a run
PRECISIONS = ("32-true", "bf16-mixed")
OPTIMIZERS = ("sgd", "adamw")
AMPLITUDE_OPTIMIZERS = ("same", "adam")
# Where data lie and how many processes read them change nothing that a run comes to.
PLACES = ("data.root", "data.workers")


class ConfigError(UserError, ValueError):
    """A configuration cannot be used; the message names the key, its value and what is accepted."""


@dataclass(frozen=True)
class NetworkSection:
    architecture: str = same(NetworkConfig, "architecture", "resnet20")
    granularity: str = same(NetworkConfig, "granularity", "element")
    timesteps: int = same(NetworkConfig, "timesteps")
    width: int | None = same(NetworkConfig, "width")
    decay: float = same(NetworkConfig, "decay")
    v_threshold: float = same(NetworkConfig, "v_threshold")
    detach_reset: bool = same(NetworkConfig, "detach_reset")
    pooling: str | None = same(NetworkConfig, "pooling")
    zero_init_residual: bool = same(NetworkConfig, "zero_init_residual")
    threshold_norm: bool = same(NetworkConfig, "threshold_norm", True)
    emission: str = same(NetworkConfig, "emission")


@dataclass(frozen=True)
class DataSection:
    name: str = option(
        "digits", "the data set", choices=tuple(DATASETS), own="package.module:function"
    )
    root: str = option("data", "folder with the data set's files")
    batch_size: int = option(128, "images per step and process", 1, 10**6)
    fraction: float = option(
        1.0, "of the training samples, drawn with the seed, of every class alike", high=1, above=0
    )
    held_out: int = option(
        0,
        "training samples, the same for every seed, that are tested on instead of the test's"
        " and not trained on",
        0,
        10**9,
    )
    workers: int = option(2, "processes that read images from files", 0, 256)
    crop: int = option(0, "padding of the random crop in pixels (0: none)", 0, 64)
    flip: bool = option(False, "random horizontal flip")
    autoaugment: bool = option(False, "AutoAugment, the policy found on CIFAR-10")
    cutout: int = option(0, "side of the square that Cutout blanks (0: none)", 0, 224)
    image_size: int | None = same(
        NetworkConfig, "image_size", None, "pixels, of cifar10-dvs and images; null: 48 and 224"
    )
    classes: int | None = same(
        NetworkConfig, "classes", None, "of images or your own data; null: as read"
    )
    channels: int | None = same(
        NetworkConfig, "in_channels", None, "of your own data; null: as read"
    )
    encoding: str | None = same(NetworkConfig, "encoding", None, "of your own data; null: as read")

    @property
    def folder(self) -> Path:
        return path_of(self.root)

    @property
    def tested_on(self) -> str:
        """Which samples a run is tested on."""
        return "held-out" if self.held_out else "test"

    @property
    def measured(self) -> str:
        """What an accuracy of a run is."""
        if self.held_out:
            return f"accuracy on {self.held_out} training samples that are held out"
        return "test accuracy"


@dataclass(frozen=True)
class TrainingSection:
    epochs: int = option(400, "passes over the training data", 1, 10**6)
    max_steps: int | None = option(
        None, "of the optimizer, which end a run; null: those of its epochs", 1, 10**9
    )
    restarts: str = option("", "epochs after which the cosine begins anew, such as 30,60")
    start_from: str | None = option(
        None, "a trained network, or its run, with whose weights to begin (--from)"
    )
    optimizer: str = option("sgd", "what steps the weights", choices=OPTIMIZERS)
    learning_rate: float = option(0.1, "at its highest", 0)
    momentum: float = option(0.9, "of SGD; the first beta of AdamW", 0, 1)
    weight_decay: float = option(1e-4, "of convolutions and linear layers", 0)
    scale_amplitudes: bool = option(
        True, "learning rate of an amplitude over the root of how many neurons share it"
    )
    amplitude_optimizer: str = option(
        "same",
        "what steps the amplitudes: what steps the weights, or Adam",
        choices=AMPLITUDE_OPTIMIZERS,
    )
    amplitude_rate: float | None = option(
        None, "learning rate of amplitudes at its highest; null: learning_rate", 0
    )
    amplitude_spread: float = option(
        0.0, "deviation from 1 of the amplitudes at the start, drawn with the seed", 0, 1
    )
    warmup_epochs: float = option(0.0, "of a linear rise before the cosine to 0", 0)
    accumulate: int = option(1, "batches per step of the optimizer", 1, 10**6)
    clip_gradient: float = option(0.0, "largest norm of the gradient (0: any)", 0)
    device: str = option("auto", "to train on", choices=("auto", "cpu", "cuda"))
    precision: str | None = option(
        None,
        "of the computation; null: bf16-mixed on a GPU that has it, else 32-true",
        choices=PRECISIONS,
    )
    channels_last: bool | None = option(
        None, "whether maps lie in memory pixel by pixel; null: on a GPU"
    )
    cuda_graph: bool | None = option(
        None, "whether steps are captured and replayed; null: on a GPU, where the run allows it"
    )
    fuse: bool = option(True, "whether neurons compute the batch norm before them, in one op")
    ema: float = option(0.0, "decay of an average of the weights (0: none)", 0, 1)
    compress_spikes: bool = option(False, "keep spikes for backward as bits: less memory, slower")
    sync_batchnorm: bool = option(True, "batch norm over all GPUs of a run")
    log_every: int = option(
        50, "steps between two notes of loss, learning rate and speed", 1, 10**6
    )
    seed: int = option(0, "of weights, batches and augmentation", 0, 2**31 - 1)
    threads: int | None = option(None, "CPU threads per process; null: as PyTorch chooses", 1, 1024)

    def restart_epochs(self) -> tuple[int, ...]:
        """Return the numbers in ``restarts``.

        Raises:
            ConfigError: if they are none, or do not rise from the warm-up to the end.
        """
        try:
            epochs = tuple(int(text) for text in self.restarts.split(",")) if self.restarts else ()
        except ValueError:
            epochs = (0,)
        limits = (max(0, self.warmup_epochs), *epochs, self.epochs)
        if any(not a < b for a, b in itertools.pairwise(limits)):
            raise ConfigError(
                "training.restarts must be rising epochs behind the warm-up and before the last, "
                f"such as 30,60; got {shown(self.restarts)} with {self.epochs} epochs"
            )
        return epochs


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Unknown keys and impossible values raise `ConfigError`."""

    network: NetworkSection = NetworkSection()
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()

    def __post_init__(self):
        for section in dataclasses.fields(self):
            try:
                options.check(getattr(self, section.name), f"{section.name}.")
            except ValueError as error:
                raise ConfigError(str(error)) from error
        data, facts = self.data, facts_of(self.data.name)
        for key in ("image_size", "classes", "channels", "encoding"):
            fixed = not facts.resizable or key not in ("image_size", "classes")
            if getattr(data, key) is not None and fixed and getattr(facts, key) is not None:
                raise ConfigError(f"data.{key} cannot be chosen for {data.name}")
        if data.autoaugment and (data.channels or facts.channels or 3) != 3:
            raise ConfigError(f"data.autoaugment needs colour images; {data.name} has none")
        if self.training.warmup_epochs >= self.training.epochs:
            raise ConfigError(
                f"training.warmup_epochs must be below training.epochs ({self.training.epochs}); "
                f"got {self.training.warmup_epochs}"
            )
        if self.training.restart_epochs() and self.training.max_steps:
            raise ConfigError("training.restarts and training.max_steps cannot be given together")
        for kind in (self.training.optimizer, self.training.amplitude_optimizer):
            if kind in ("adamw", "adam") and self.training.momentum == 1:
                raise ConfigError(f"training.momentum must be below 1 for {kind}; got 1.0")
        if self.training.ema == 1:
            raise ConfigError("training.ema must be below 1, or the average never moves; got 1.0")
        self.network_config()

    def network_config(self) -> NetworkConfig:
        """Return the network that fits the data."""
        # Until the data are read, facts about them have the defaults of a network.
        facts, stand_in = facts_of(self.data.name), NetworkConfig
        data = self.data
        try:
            return NetworkConfig(
                **dataclasses.asdict(self.network),
                classes=data.classes or facts.classes or stand_in.classes,
                in_channels=data.channels or facts.channels or stand_in.in_channels,
                image_size=data.image_size or facts.image_size or stand_in.image_size,
                encoding=data.encoding or facts.encoding or stand_in.encoding,
            )
        except ValueError as error:
            raise ConfigError(f"network: {error}") from error

    def extended(self, epochs: int) -> "RunConfig":
        """Return the configuration of a run that goes on to more epochs.

        The cosine of the epochs before is as it was, and another one follows: so that the run is
        what one that was configured so from the start would have been.

        Raises:
            ConfigError: for fewer epochs, or if another key ends the run.
        """
        training = self.training
        if epochs == training.epochs:
            return self
        if epochs < training.epochs or training.max_steps:
            reason = (
                f"training.max_steps={training.max_steps} ends it"
                if training.max_steps
                else f"it was begun with {training.epochs}, and its learning rate follows them"
            )
            raise ConfigError(
                f"a run goes on as it was configured, or to more epochs: not to {epochs} "
                f"({reason}); --from begins another run with its weights"
            )
        restarts = [*([training.restarts] if training.restarts else []), str(training.epochs)]
        return self.replaced(epochs=epochs, restarts=",".join(restarts))

    def anywhere(self) -> "RunConfig":
        """Return a copy with the `PLACES` of the defaults: those of a run are nobody else's."""
        return self.replaced(**RunConfig().places())

    def places(self) -> dict[str, object]:
        """Return the values of `PLACES`."""
        values = self.to_dict()
        return {key: values[section][name] for key in PLACES for section, name in [key.split(".")]}

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        return require("yaml").safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping) -> "RunConfig":
        """Make a configuration of nested dictionaries; what is not given keeps its default.

        Raises:
            ConfigError: for an unknown key, a value of the wrong type or out of range.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"the configuration must hold sections; got {shown(values)}")
        sections = {}
        known: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(cls)}
        try:
            _check_known("section", values, known)
            for name, given in values.items():
                if not isinstance(given, Mapping):
                    raise ConfigError(f"{name} must be a section of keys; got {shown(given)}")
                _check_known(f"key of {name}", given, _SECTIONS[name])
                if name == "data" and given.get("name") == "imagenet":
                    given = {**given, "name": "images"}  # its name before 0.2
                kinds = {field.name: field for field in dataclasses.fields(known[name])}
                sections[name] = known[name](
                    **{k: _convert(f"{name}.{k}", v, kinds[k]) for k, v in given.items()}
                )
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return cls(**sections)

    def replaced(self, **changes) -> "RunConfig":
        """Return a copy; keys as in `resolve_key` (``timesteps=2``, ``**{"data.root": "x"}``)."""
        values = self.to_dict()
        for key, value in changes.items():
            section, name = resolve_key(key)
            values[section][name] = value
        return type(self).from_dict(values)


def _options_of(section: dataclasses.Field) -> tuple[dataclasses.Field, ...]:
    kind: Any = section.type
    return dataclasses.fields(kind)


_SECTIONS = {
    section.name: tuple(option.name for option in _options_of(section))
    for section in dataclasses.fields(RunConfig)
}


def _check_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not known; a key in another place than its section is told where."""
    for name in names:
        owners = [section for section, keys in _SECTIONS.items() if name in keys]
        if owners and name not in known:
            raise ConfigError(f"unknown {what} {shown(name)}: it is a key of {owners[0]}")
    check_known(what, names, known)


def resolve_key(key: str) -> tuple[str, str]:
    """Return (section, name) of ``section.name``, or of a name alone: no two sections share one.

    Raises:
        ConfigError: if there is no such key; the message gives the nearest.
    """
    section, dot, name = key.rpartition(".")
    owners = [s for s, names in _SECTIONS.items() if name in names and section in ("", s)]
    if not owners and key in _SECTIONS:
        raise ConfigError(
            f"{key} is a section: give a key of it, such as {key}.{_SECTIONS[key][0]}"
        )
    if not owners:
        known = [f"{s}.{n}" if dot else n for s, names in _SECTIONS.items() for n in names]
        hint = nearest(key, known) or "; `realspike train --help` lists them"
        raise ConfigError(f"unknown key {shown(key)}{hint}")
    return owners[0], name


_NULLS = ("", "~", "null")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(text, 0)  # 0x10


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))  # as YAML spells them


def _text(text: str) -> str:
    if "\0" in text:  # which no path may have
        raise ValueError
    text.encode()  # as the file of the configuration is written
    return text


_READERS: dict[type, Callable[[str], object]] = {
    bool: lambda text: _BOOLEANS[text.lower()],
    int: _integer,
    float: _number,
    str: _text,
}


def _convert(key: str, value, field: dataclasses.Field):
    """Return ``value`` as the kind of the option, which alone decides what a text means."""
    kind, is_optional = options.kind_of(field)
    if is_optional and (value is None or str(value).lower() in _NULLS):
        return None
    try:
        if type(value) is str:
            return _READERS[kind](value)
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
    except (ValueError, KeyError, OverflowError):
        pass
    wanted = f"{options.WANTED[kind]}{' or null' * is_optional}"
    raise ConfigError(f"{key} must be {wanted}; got {shown(value)}")


def shipped() -> dict[str, Path]:
    """Return the files of the configurations of the paper's tables, by name."""
    return files.shipped("configs", ".yaml")


def find(path: Path) -> Path:
    """Return the file that a user means, who may give the name of a shipped configuration.

    Raises:
        ConfigError: for a name that neither a file nor a shipped configuration has.
    """
    if path.name != str(path) or path.suffix or path.is_file():
        return path
    known = shipped()
    if path.name not in known:
        raise ConfigError(
            f"there is neither a file {path} nor a configuration of this name"
            f"{nearest(path.name, known)}; `realspike train --configs` lists them"
        )
    return known[path.name]


def read(path: "Path | None", overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file (None: the defaults) and apply overrides ``key=value``.

    A section without keys keeps its defaults.

    Raises:
        ConfigError: if the file cannot be read or used, or for a bad key or value.
        MissingPackageError: if PyYAML is not installed.
    """
    values: dict = {}
    if path is not None:
        try:
            values = strict_yaml.read(path)
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the configuration {path} cannot be used: {error}") from error
    values = {name: {} if given is None else given for name, given in values.items()}
    for key, value in parse_overrides(overrides).items():
        section, name = resolve_key(key)
        if not isinstance(values.setdefault(section, {}), dict):
            raise ConfigError(f"{section} must be a section of keys; got {shown(values[section])}")
        values[section][name] = value
    return RunConfig.from_dict(values)


def parse_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """Return the values of ``key=value``, each key as ``section.name``.

    Raises:
        ConfigError: without a "=", for a key that there is not, and for one that is given twice.
    """
    values: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"an override must be key=value; got {shown(override)}")
        key = ".".join(resolve_key(key.strip()))
        if key in values:
            raise ConfigError(f"{key} is given twice: {shown(values[key])} and {shown(text)}")
        values[key] = text
    return values


def describe() -> str:
    """Return one line per key: its name, its default, what it means and what it accepts."""
    lines = []
    for section in dataclasses.fields(RunConfig):
        for field in _options_of(section):
            choices = field.metadata["choices"]
            own = (field.metadata["own"],) if field.metadata["own"] else ()
            accepted = f" [{', '.join((*choices, *own))}]" if choices else ""
            default = json.dumps(field.default).strip('"')
            text = textwrap.wrap(f"{field.metadata['help']}{accepted}", 88, break_on_hyphens=False)
            lines.append(f"  {section.name}.{field.name}={default}")
            lines += [f"      {line}" for line in text]
    return "\n".join(lines)
