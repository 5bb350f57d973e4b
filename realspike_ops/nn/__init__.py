"""Modules; they take [T*B, C, H, W] with the timestep outermost, as stock layers do."""

from .folded_lif import FoldedLIF
from .lif import RealSpikeLIF
from .one_to_one import OneToOneSynapses
from .piecewise_conv import PiecewiseSpikeConv
from .rearrange import AtTimestep, Rearrange
from .shared_conv import SpikeConv2d, SpikeLinear
from .spike_pool import SpikeMaxPool1d, SpikeMaxPool2d
from .synaptic_current import Synapses, SynapticCurrent
from .time import DirectEncoding, MeanOverTime, SumOverTime
from .unshared_conv import UnsharedSpikeConv
from .unshared_conv1d import UnsharedSpikeConv1d

__all__ = [
    "AtTimestep",
    "DirectEncoding",
    "FoldedLIF",
    "MeanOverTime",
    "OneToOneSynapses",
    "PiecewiseSpikeConv",
    "RealSpikeLIF",
    "Rearrange",
    "SpikeConv2d",
    "SpikeLinear",
    "SpikeMaxPool1d",
    "SpikeMaxPool2d",
    "SumOverTime",
    "Synapses",
    "SynapticCurrent",
    "UnsharedSpikeConv",
    "UnsharedSpikeConv1d",
]
