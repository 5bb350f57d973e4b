"""VGG: a chain of 3 x 3 convolutions with poolings between them."""

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

# Multiples of the width, one tuple per map size; a pooling by 2 stands between two of them.
VGG16 = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
VGG5 = ((1, 1), (2, 2), (4,))


class VGG(SpikingNetwork):
    """Convolution, batch norm and LIF neurons in a chain, and a classifier behind it.

    With pooling ``"none"`` the first convolution behind a place of pooling has stride 2 instead,
    so that the network is a plain chain.

    Shape: [B, Cin, S, S] (frames: [T*B, Cin, S, S]) -> [B, classes].
    """

    def __init__(self, config: NetworkConfig, multiples):
        super().__init__(config)
        size, in_channels, number = config.image_size, config.in_channels, 0
        self.features = nn.Sequential()
        add = self.features.add_module
        for stage, group in enumerate(multiples):
            stride = 1
            if stage > 0 and size > 1:
                size = halved(size)
                if config.pooling == "none":
                    stride = 2
                else:
                    add(f"pool{stage}", _pooling(config.pooling))
            for multiple in group:
                number += 1
                channels = multiple * width_of(config)
                add(f"conv{number}", conv3x3(in_channels, channels, stride))
                add(f"bn{number}", nn.BatchNorm2d(channels))
                if number == 1:
                    add("encoding", encoding(config))
                add(f"lif{number}", neurons(config, channels, size))
                in_channels, stride = channels, 1
        self.classifier = Classifier(config, in_channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def _pooling(kind: "str | None") -> nn.Module:
    if kind == "max":
        return nn.MaxPool2d(2, ceil_mode=True)
    return nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)


def vgg16(config: NetworkConfig) -> VGG:
    return VGG(config, VGG16)


def vgg5(config: NetworkConfig) -> VGG:
    return VGG(config, VGG5)
