"""The small network of the quickstart."""

from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike.networks.layers import SpikingNetwork, encoding, neurons, width_of
from realspike_ops import MeanOverTime


class DigitsNet(SpikingNetwork):
    """Three spiking convolutions and a classifier, for small images; no pooling.

    The first convolution reads the image itself and runs once per image; its current is repeated
    over the timesteps (direct encoding). The class scores are the mean over time of the currents
    into the output. `realspike_ops.reparameterize` folds it.

    Shape: [B, Cin, S, S] -> [B, classes]; for frames, [T*B, Cin, S, S] -> [B, classes].
    """

    def __init__(self, config: NetworkConfig):
        super().__init__(config)
        width, size = width_of(config), config.image_size
        half = -(-size // 2)
        self.conv1 = nn.Conv2d(config.in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.encoding = encoding(config)
        self.lif1 = neurons(config, width, size)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.lif2 = neurons(config, width, size)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.lif3 = neurons(config, 2 * width, half)
        self.linear = nn.Linear(2 * width * half * half, config.classes)
        self.mean = MeanOverTime(config.timesteps)

    def forward(self, images: Tensor) -> Tensor:  # [B, Cin, S, S] -> [B, classes]
        x = self.encoding(self.bn1(self.conv1(images)))  # [T*B, C, S, S]
        x = self.lif1(x)
        x = self.lif2(self.bn2(self.conv2(x)))
        x = self.lif3(self.bn3(self.conv3(x)))  # [T*B, 2*C, S/2, S/2]
        return self.mean(self.linear(x.flatten(1)))
