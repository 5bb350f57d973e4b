"""The ResNets of the CIFAR experiments: the residual sum is a current, the neurons come after it.

ResNet20 is the authors' variant (three convolutions and an average pooling before four stages);
ResNet19 that of Zheng et al., "Going Deeper With Directly-Trained Larger SNNs", AAAI 2021.
"""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike.networks.layers import (
    Classifier,
    SpikingNetwork,
    conv3x3,
    encoding,
    halved,
    neurons,
    width_of,
)
from realspike.networks.residual import ResidualBlock, residual_stages


def pooled_shortcut(in_channels: int, channels: int, stride: int, size: int) -> nn.Module:
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(pool=pool, conv=conv, bn=nn.BatchNorm2d(channels)))


def strided_shortcut(in_channels: int, channels: int, stride: int, size: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


class BasicBlock(ResidualBlock):
    """LIF(BN(conv(LIF(BN(conv(x))))) + shortcut(x)).

    Shape: [T*B, Cin, S, S] -> [T*B, C, S/stride, S/stride].
    """

    @property
    def summed_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norms whose sum is the current of the last neurons, if there are two."""
        if isinstance(self.shortcut, nn.Identity):
            return ()
        norm = self.shortcut.get_submodule("bn")
        assert isinstance(norm, nn.BatchNorm2d)
        return self.bn2, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.lif2(self.branch(x) + self.shortcut(x))


class ResNet(SpikingNetwork):
    """A stem, stages of basic blocks, and a classifier.

    Args:
        config: See `NetworkConfig`.
        blocks: Basic blocks per stage, see `residual_stages`.
        stem: Convolutions before the first stage; the first runs once per image (direct encoding).
        pool: Whether an average pooling by 2 follows the stem.
        shortcut: What makes the shortcut of a block that changes the size.

    Shape: [B, Cin, S, S] (frames: [T*B, Cin, S, S]) -> [B, classes].
    """

    def __init__(self, config: NetworkConfig, blocks, stem: int, pool: bool, shortcut):
        super().__init__(config)
        width, size = width_of(config), config.image_size
        self.conv1 = conv3x3(config.in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.encoding = encoding(config)
        self.lif1 = neurons(config, width, size)
        self.stem = nn.Sequential()
        for number in range(2, stem + 1):
            self.stem.add_module(f"conv{number}", conv3x3(width, width))
            self.stem.add_module(f"bn{number}", nn.BatchNorm2d(width))
            self.stem.add_module(f"lif{number}", neurons(config, width, size))
        if pool:
            self.stem.add_module("pool", nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
            size = halved(size)
        self.stages, channels = residual_stages(
            blocks, width, size, partial(BasicBlock, config, shortcut=shortcut)
        )
        self.classifier = Classifier(config, channels)

    def forward(self, images: Tensor) -> Tensor:
        spikes = self.lif1(self.encoding(self.bn1(self.conv1(images))))
        return self.classifier(self.stages(self.stem(spikes)))


def resnet20(config: NetworkConfig) -> ResNet:
    return ResNet(config, (2, 2, 2, 2), stem=3, pool=True, shortcut=pooled_shortcut)


def resnet19(config: NetworkConfig) -> ResNet:
    return ResNet(config, (3, 3, 2), stem=1, pool=False, shortcut=strided_shortcut)


def resnet8(config: NetworkConfig) -> ResNet:
    """The build of ResNet20 in small: one convolution in the stem, three stages of one block."""
    return ResNet(config, (1, 1, 1), stem=1, pool=False, shortcut=pooled_shortcut)
