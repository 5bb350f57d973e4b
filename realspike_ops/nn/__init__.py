"""Modules; they take [T*B, C, H, W] with the timestep outermost, as stock layers do."""

from .lif import RealSpikeLIF
from .time import DirectEncoding, MeanOverTime, SumOverTime
from .unshared_conv import SpikeConv2d, SpikeLinear, UnsharedSpikeConv
from .unshared_conv1d import UnsharedSpikeConv1d

__all__ = [
    "DirectEncoding",
    "MeanOverTime",
    "RealSpikeLIF",
    "SpikeConv2d",
    "SpikeLinear",
    "SumOverTime",
    "UnsharedSpikeConv",
    "UnsharedSpikeConv1d",
]
