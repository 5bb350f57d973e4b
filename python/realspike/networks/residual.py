"""The parts of residual networks: the branch of a block, and blocks in stages."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike.networks.layers import conv3x3, halved, neurons


class ResidualBlock(nn.Module):
    """The layers of a block of two convolutions; how branch and shortcut meet is the subclass's.

    Args:
        shortcut: ``shortcut(in_channels, channels, stride, size)`` makes the shortcut of a block
            that changes the size; elsewhere it is the identity.
    """

    def __init__(
        self,
        config: NetworkConfig,
        in_channels: int,
        channels: int,
        stride: int,
        size: int,
        shortcut: Callable[[int, int, int, int], nn.Module],
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.lif1 = neurons(config, channels, size)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = shortcut(in_channels, channels, stride, size)
        self.lif2 = neurons(config, channels, size)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def branch(self, x: Tensor) -> Tensor:  # [T*B, Cin, S, S] -> [T*B, C, S/stride, S/stride]
        return self.bn2(self.conv2(self.lif1(self.bn1(self.conv1(x)))))


def residual_stages(
    blocks: Sequence[int],
    width: int,
    size: int,
    make_block: Callable[[int, int, int, int], nn.Module],
) -> tuple[nn.Sequential, int]:
    """Return stages of ``blocks`` blocks each, and the channels behind the last.

    Every stage but the first halves the map and doubles the channels.

    Args:
        width: Channels of the input and of the first stage.
        size: Of the input's map.
        make_block: ``make_block(in_channels, channels, stride, size)``, size being the output's.
    """
    stages, in_channels = nn.Sequential(), width
    for number, count in enumerate(blocks):
        channels = width << number
        stage = nn.Sequential()
        for block in range(count):
            stride = 2 if number > 0 and block == 0 else 1
            size = halved(size) if stride == 2 else size
            stage.append(make_block(in_channels, channels, stride, size))
            in_channels = channels
        stages.append(stage)
    return stages, in_channels
