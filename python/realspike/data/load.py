"""From a configuration to a data set."""

import torch

from realspike import digits
from realspike.data import cifar, cifar10_dvs, events, image_folder
from realspike.data.sets import InMemory, Splits
from realspike.datasets import check_present
from realspike.run_config import RunConfig

TEST_FRACTION = 0.25  # of the digits, drawn with seed 0


def load(config: RunConfig) -> Splits:
    """Read the data set that ``config`` names.

    Raises:
        DataError: if a file is missing, truncated or corrupt.
        MissingPackageError: if scikit-learn is not installed (for the digits).
    """
    network = config.network_config()
    name, root = config.data.name, config.data.folder
    check_present(name, root)
    if name in cifar.ARCHIVES:
        return cifar.load(name, root)
    if name == "imagenet":
        return image_folder.load(
            root, network.image_size, network.classes, seed=config.training.seed
        )
    if name == "cifar10-dvs":
        return cifar10_dvs.load(root, network.timesteps, network.image_size)
    assert name in ("digits", "digits-events")
    samples, labels = digits.read_pixels()
    if name == "digits-events":
        samples = events.saccades(samples, network.timesteps, network.image_size)
    train, test = (
        torch.from_numpy(indices)
        for indices in digits.stratified_split(labels.numpy(), TEST_FRACTION, seed=0)
    )
    # Per channel, of the training part alone: nothing of the test part may reach the network.
    by_channel = samples[train].movedim(-3, 0).flatten(1)
    return Splits(
        InMemory(samples[train], labels[train]),
        InMemory(samples[test], labels[test]),
        by_channel.mean(1).tolist(),
        by_channel.std(1).tolist(),
    )
