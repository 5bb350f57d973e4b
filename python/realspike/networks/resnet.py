"""The ResNets of the CIFAR experiments: the residual sum is a current, the neurons come after it.

ResNet20 is the authors' variant (three convolutions and an average pooling before four stages);
ResNet19 that of Zheng et al., "Going Deeper With Directly-Trained Larger SNNs", AAAI 2021.
"""

from collections import OrderedDict

from torch import Tensor, nn

from realspike.network_config import NetworkConfig
from realspike.networks.layers import Classifier, conv3x3, encoding, halved, neurons


def pooled_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(pool=pool, conv=conv, bn=nn.BatchNorm2d(channels)))


def strided_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels)))


class BasicBlock(nn.Module):
    """LIF(BN(conv(LIF(BN(conv(x))))) + shortcut(x)).

    Shape: [T*B, Cin, S, S] -> [T*B, C, S/stride, S/stride].
    """

    def __init__(self, config, in_channels: int, channels: int, stride: int, size: int, shortcut):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.lif1 = neurons(config, channels, size)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        is_identity = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if is_identity else shortcut(in_channels, channels, stride)
        self.lif2 = neurons(config, channels, size)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        current = self.bn2(self.conv2(self.lif1(self.bn1(self.conv1(x)))))
        return self.lif2(current + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of basic blocks, and a classifier.

    Args:
        config: See `NetworkConfig`.
        blocks: Basic blocks per stage; every stage but the first halves the map and doubles the
            channels.
        stem: Convolutions before the first stage; the first runs once per image (direct encoding).
        pool: Whether an average pooling by 2 follows the stem.
        shortcut: What makes the shortcut of a block that changes the size.

    Shape: [B, Cin, S, S] (frames: [T*B, Cin, S, S]) -> [B, classes].
    """

    def __init__(self, config: NetworkConfig, blocks, stem: int, pool: bool, shortcut):
        super().__init__()
        self.config = config
        channels, size = config.width, config.image_size
        self.conv1 = conv3x3(config.in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.encoding = encoding(config)
        self.lif1 = neurons(config, channels, size)
        self.stem = nn.Sequential()
        for number in range(2, stem + 1):
            self.stem.add_module(f"conv{number}", conv3x3(channels, channels))
            self.stem.add_module(f"bn{number}", nn.BatchNorm2d(channels))
            self.stem.add_module(f"lif{number}", neurons(config, channels, size))
        if pool:
            self.stem.add_module("pool", nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
            size = halved(size)
        in_channels = channels
        self.stages = nn.Sequential()
        for number, count in enumerate(blocks):
            channels = config.width << number
            stage = nn.Sequential()
            for block in range(count):
                stride = 2 if number > 0 and block == 0 else 1
                size = halved(size) if stride == 2 else size
                stage.append(BasicBlock(config, in_channels, channels, stride, size, shortcut))
                in_channels = channels
            self.stages.append(stage)
        self.classifier = Classifier(config, in_channels)

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
