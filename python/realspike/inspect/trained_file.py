"""A trained network with the test data that belongs to it, from a checkpoint."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from realspike import checkpoint, data, files, own
from realspike.checkpoint import CheckpointError
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.data.loader import evaluation_loader
from realspike.data.own import GIVEN, check_normalisation
from realspike.data.preprocess import Preprocess
from realspike.first_input import example_input
from realspike.names import nearest, shown
from realspike.progress import track

BATCH = 64  # samples
RUN_FILE = "model.safetensors"


@dataclass(frozen=True)
class Trained:
    """A network in eval mode, how it was trained, and its test data.

    Attributes:
        network: The trained network, or what it was folded to.
        network_config: Of the trained network.
        config: Of its run, with the overrides.
        record: What was saved beside the network.
        source: The file.
        allow: Names ``package.module:function`` of data that may be imported.
    """

    network: nn.Module
    network_config: NetworkConfig
    config: RunConfig
    record: dict
    source: Path
    allow: Collection[str] = ()

    def test_batches(self, samples: "int | None" = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Return batches of (network input, labels) of the test data, the first ``samples`` of it.

        Raises:
            DataError: if the data cannot be read.
            OwnError: if they are of the user's own, and not allowed.
        """
        try:
            if (name := self.config.data.name) != GIVEN:  # which is nothing to import
                own.check_allowed("data set", name, self.allow)
        except own.OwnError as error:
            raise CheckpointError(f"{self.source}: {error}") from error
        splits = data.load(self.config)
        data.fitted(self.config, splits)
        splits = splits.hold_out(self.config.data.held_out)
        classes = self.record.get("classes")
        if classes and classes != list(splits.classes):
            raise data.DataError(
                f"{self.config.data.folder} has the classes {shown(list(splits.classes))}, and "
                f"{self.source} was trained on {shown(classes)}: labels would mean something else"
            )
        # As in training, whatever other data are normalised by.
        mean, std = (self.record.get(key, getattr(splits, key)) for key in ("mean", "std"))
        check_normalisation(mean, std, self.network_config.in_channels, self.source)
        preprocess = Preprocess(self.config.data, mean, std, self.network_config.image_size)
        workers = self.config.data.workers if splits.read_in_workers else 0
        loader = evaluation_loader(splits.test, BATCH, workers=workers, samples=samples)
        batches = track(loader, "test samples")
        return ((preprocess(inputs), labels) for inputs, labels in batches)

    def example_input(self) -> Tensor:
        """Return an input of the right shape for one sample."""
        return example_input(self.network_config)


def load(path: Path, overrides: Sequence[str] = (), allow: Collection[str] = ()) -> Trained:
    """Load a checkpoint, or that of a run's folder; ``allow`` as in `realspike.checkpoint.load`.

    Raises:
        CheckpointError: if it is none, or a folder without one.
        ConfigError: for a bad override, or one that changes the network.
    """
    path = file_of(path)
    loaded = checkpoint.load(path, allow=allow)
    record = loaded.training
    config = config_of(loaded.config, record, overrides)
    return Trained(loaded.network, loaded.config, config, record, path, allowed(overrides, allow))


def networks_by_name() -> dict[str, Path]:
    """Return the files of the networks that come with the package."""
    return files.shipped("weights", ".safetensors")


def file_of(path: Path) -> Path:
    """Return the checkpoint that a path names: itself, that of a run's folder, or a shipped one.

    Raises:
        CheckpointError: for a folder without one, and for a name that nothing has.
    """
    if path.name == str(path) and not path.suffix and not path.exists():
        known = networks_by_name()
        if path.name not in known:
            raise CheckpointError(
                f"there is neither a file {path} nor a trained network of this name"
                f"{nearest(path.name, known)}; shipped: {', '.join(known) or 'none'}"
            )
        return known[path.name]
    if not path.is_dir():
        return path
    if not (path / RUN_FILE).exists():
        raise CheckpointError(
            f"{path} is a folder without {RUN_FILE}, which a run has after its first epoch"
        )
    return path / RUN_FILE


def allowed(overrides: Sequence[str], allow: Collection[str]) -> tuple[str, ...]:
    """Return what may be imported: what is allowed, and the data set that an override names."""
    named = run_config.parse_overrides(overrides).get("data.name")
    return (*allow, *([named] if named else []))


def config_of(network: NetworkConfig, record: dict, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration in a record; the quickstart's checkpoints have none: digits."""
    stored = record.get("config")
    if stored is None:
        config = RunConfig().replaced(name="digits")
    else:
        config = RunConfig.from_dict(stored)
        if config.network_config() != network:
            raise CheckpointError("its configuration of the run is not that of its network")
    changes = run_config.parse_overrides(overrides)
    for key in changes:
        if not key.startswith("data."):
            raise ConfigError(f"{key} cannot be changed after training; keys of data can")
    config = config.replaced(**changes)
    data = config.network_config()
    for field in ("classes", "in_channels", "image_size", "encoding"):
        has, wants = getattr(data, field), getattr(network, field)
        if has != wants:
            raise ConfigError(
                f"{config.data.name} does not fit this network: {field} is {has}, "
                f"the network was trained with {wants}"
            )
    return config
