"""The parts of every network: its neurons, its encoding, its classifier, what they start with."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike_ops import DirectEncoding, MeanOverTime, RealSpikeLIF


class SpikingNetwork(nn.Module):
    """A network that carries its configuration.

    Shape: [B, Cin, S, S] (frames: [T*B, Cin, S, S]) -> [B, classes].
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config


def width_of(config: NetworkConfig) -> int:
    """Return the channels of the first convolution, which every architecture of ours has."""
    assert config.width is not None
    return config.width


def neurons(
    config: NetworkConfig, channels: int, size: int, granularity: "str | None" = None
) -> RealSpikeLIF:
    """Return the LIF layer of ``channels`` maps of ``size`` x ``size`` neurons.

    It knows its ``neurons_per_amplitude``, which `realspike.train.optimizer.sgd` wants.
    """
    lif = RealSpikeLIF(
        config.timesteps,
        config.granularity if granularity is None else granularity,
        (channels, size, size),
        decay=config.decay,
        v_threshold=config.v_threshold,
        detach_reset=config.detach_reset,
        emission=config.emission,
    )
    if lif.amplitude is not None:
        lif.neurons_per_amplitude = channels * size * size // lif.amplitude.numel()
    return lif


def encoding(config: NetworkConfig) -> nn.Module:
    """Return what stands before the first neurons: a repetition, or nothing for frames."""
    return DirectEncoding(config.timesteps) if config.encoding == "direct" else nn.Identity()


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def halved(size: int) -> int:
    """The size of a map behind any layer of stride 2 here: all of them round up."""
    return -(-size // 2)


class Classifier(nn.Module):
    """Average the spikes over the map and over time, then classify.

    Shape: [T*B, C, H, W] -> [B, classes].
    """

    def __init__(self, config: NetworkConfig, channels: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mean = MeanOverTime(config.timesteps)
        self.linear = nn.Linear(channels, config.classes)

    def forward(self, spikes: Tensor) -> Tensor:
        return self.linear(self.mean(self.pool(spikes).flatten(1)))


def draw_convolutions(network: nn.Module) -> None:
    """Draw the weights of the convolutions from N(0, 2 / (k*k*Cout))."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))


@torch.no_grad()
def draw_amplitudes(network: nn.Module, spread: float, seed: int) -> None:
    """Draw the amplitudes from N(1, spread^2); they stay as they are where ``spread`` is 0."""
    random = np.random.default_rng((seed, 1))  # not the numbers that the weights were drawn from
    for module in network.modules():
        if spread and isinstance(module, RealSpikeLIF) and module.amplitude is not None:
            drawn = random.normal(1.0, spread, tuple(module.amplitude.shape))
            module.amplitude.copy_(torch.from_numpy(drawn))


def initialise_norms(network: nn.Module, config: NetworkConfig) -> None:
    """Set the weights of the batch norms, which are 1 as made.

    With ``threshold_norm`` they start at the threshold, at 1/sqrt(2) of it where two of them are
    summed (a block's ``summed_norms``): every current has then the deviation of the threshold. With
    ``zero_init_residual`` the ``last_norm`` of a block starts at 0, and the block as its shortcut.
    """
    if config.threshold_norm:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, config.v_threshold)
    for module in network.modules():
        if config.threshold_norm:
            for norm in getattr(module, "summed_norms", ()):
                nn.init.constant_(norm.weight, config.v_threshold / math.sqrt(2))
        last_norm = getattr(module, "last_norm", None)
        if config.zero_init_residual and last_norm is not None:
            nn.init.zeros_(last_norm.weight)
