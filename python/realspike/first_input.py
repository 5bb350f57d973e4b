"""The input of a network, and layers that learn their sizes from it."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from realspike.config.network_config import NetworkConfig
from realspike.networks import build
from realspike.networks.build import try_out


def example_input(config: NetworkConfig) -> Tensor:  # [1, Cin, S, S], for frames [T, Cin, S, S]
    """Return an input of the right shape for one sample."""
    count = config.timesteps if config.encoding == "frames" else 1
    return torch.zeros(count, config.in_channels, config.image_size, config.image_size)


def build_with_sizes(config: NetworkConfig, seed: int) -> nn.Module:
    """Return a network as `realspike.networks.build` does, with every weight.

    A lazy layer of a network of the user's own draws its weights at the first input, here with the
    seed.

    Raises:
        OwnError: as `build` and `try_out` do.
    """
    network = build(config, seed)
    if any(map(is_lazy, itertools.chain(network.parameters(), network.buffers()))):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try_out(network, config, example_input(config))
    return network
