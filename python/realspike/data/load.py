"""From a configuration to a data set."""

from realspike.config.datasets import check_present, facts_of
from realspike.config.run_config import RunConfig
from realspike.data import cifar, cifar10_dvs, digits, events, image_folder, own
from realspike.data.sets import DataError, Splits
from realspike.own import is_own


def load(config: RunConfig) -> Splits:
    """Read the data set that ``config`` names.

    Raises:
        DataError: if a file is missing, truncated or corrupt.
        MissingPackageError: if scikit-learn is not installed (for the digits).
    """
    network = config.network_config()
    name, root = config.data.name, config.data.folder
    if is_own(name):
        return own.load(name, root, config.training.seed, network.timesteps)
    check_present(name, root)
    if name in cifar.ARCHIVES:
        return cifar.load(name, root)
    if name == "images":
        return image_folder.load(
            root, network.image_size, config.data.classes, seed=config.training.seed
        )
    if name == "cifar10-dvs":
        return cifar10_dvs.load(root, network.timesteps, network.image_size)
    assert name in ("digits", "digits-events")
    samples, labels = digits.read_pixels()
    if name == "digits-events":
        samples = events.saccades(samples, network.timesteps, network.image_size)
    return digits.split(samples, labels)


def fitted(config: RunConfig, splits: Splits) -> RunConfig:
    """Return the configuration with what only the data say: classes, channels, size, encoding.

    Raises:
        DataError: if the data cannot be trained on, or are not as the configuration says.
    """
    data, known = config.data, facts_of(config.data.name)
    if None not in (known.classes, known.channels):
        return config
    if known.channels is not None:
        found: dict[str, object] = {"classes": len(splits.classes)}
    else:
        found = own.facts(splits, data.classes, data.name, config.network.timesteps)
    for key, value in found.items():
        if getattr(data, key) not in (None, value):
            raise DataError(
                f"data.{key} is {getattr(data, key)}, and the samples of {data.name} have {value}"
            )
    return config.replaced(**{f"data.{key}": value for key, value in found.items()})
