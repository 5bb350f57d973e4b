"""From a configuration to a network with its initial weights."""

from typing import Protocol

import torch
from torch import Tensor, nn

from realspike.network_config import NetworkConfig
from realspike.networks.digits_net import DigitsNet
from realspike.networks.layers import draw_convolutions, initialise_norms
from realspike.networks.resnet import resnet8, resnet19, resnet20
from realspike.networks.sew_resnet import sew_resnet10, sew_resnet18, sew_resnet34
from realspike.networks.vgg import vgg5, vgg16

BUILDERS = {
    "digits": DigitsNet,
    "resnet20": resnet20,
    "resnet19": resnet19,
    "resnet8": resnet8,
    "vgg16": vgg16,
    "vgg5": vgg5,
    "sew_resnet18": sew_resnet18,
    "sew_resnet34": sew_resnet34,
    "sew_resnet10": sew_resnet10,
}


class SpikingNetwork(Protocol):
    """A module that carries its configuration: [B, Cin, S, S] -> [B, classes]."""

    config: NetworkConfig

    def __call__(self, images: Tensor) -> Tensor: ...


def build(config: NetworkConfig, seed: int) -> nn.Module:
    """Return an initialised network on the CPU; torch's global random state is left as it was.

    Amplitudes start at 1 and draw nothing, so that networks of different granularities start from
    the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BUILDERS[config.architecture](config)
        if config.architecture != "digits":  # whose training was tuned with torch's own weights
            draw_convolutions(network)
        initialise_norms(network, config)
    return network
