"""Spike-element-wise ResNets, for ImageNet: every block adds its spikes to those of the shortcut.

Fang et al., "Deep Residual Learning in Spiking Neural Networks", NeurIPS 2021, with connection ADD;
as in the Real Spike code, the neurons of a shortcut emit binary spikes.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike.networks.layers import (
    Classifier,
    SpikingNetwork,
    encoding,
    halved,
    neurons,
    width_of,
)
from realspike.networks.residual import ResidualBlock, residual_stages


class SEWBlock(ResidualBlock):
    """LIF(BN(conv(LIF(BN(conv(x)))))) + shortcut(x), a sum of spikes.

    Shape: [T*B, Cin, S, S] -> [T*B, C, S/stride, S/stride].
    """

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.branch(x)) + self.shortcut(x)


class SEWResNet(SpikingNetwork):
    """A 7 x 7 stem of stride 2, a pooling, stages of `SEWBlock`, and a classifier.

    Args:
        config: See `NetworkConfig`; published with IF neurons (decay 1, threshold 1) and a
            detached reset.
        blocks: Blocks per stage, see `residual_stages`.

    Shape: [B, Cin, S, S] (frames: [T*B, Cin, S, S]) -> [B, classes].
    """

    def __init__(self, config: NetworkConfig, blocks):
        super().__init__(config)
        width, size = width_of(config), halved(config.image_size)
        self.conv1 = nn.Conv2d(config.in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.encoding = encoding(config)
        self.lif1 = neurons(config, width, size)
        pooling = nn.MaxPool2d if config.pooling == "max" else nn.AvgPool2d
        self.pool = pooling(3, stride=2, padding=1)

        def shortcut(in_channels: int, channels: int, stride: int, size: int) -> nn.Module:
            conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            lif = neurons(config, channels, size, granularity="none")
            return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), lif=lif))

        self.stages, channels = residual_stages(
            blocks, width, halved(size), partial(SEWBlock, config, shortcut=shortcut)
        )
        self.classifier = Classifier(config, channels)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.lif1(self.encoding(self.bn1(self.conv1(images))))
        return self.classifier(self.stages(self.pool(spikes)))


def sew_resnet18(config: NetworkConfig) -> SEWResNet:
    return SEWResNet(config, (2, 2, 2, 2))


def sew_resnet34(config: NetworkConfig) -> SEWResNet:
    return SEWResNet(config, (3, 4, 6, 3))


def sew_resnet10(config: NetworkConfig) -> SEWResNet:
    return SEWResNet(config, (1, 1, 1, 1))
