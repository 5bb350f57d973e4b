"""Modules; they take [T*B, C, H, W] with the timestep outermost, as stock layers do."""

from .neurons.folded_lif import FoldedLIF
from .neurons.fused_norm import unfuse
from .neurons.lif import RealSpikeLIF
from .neurons.norm_lif import NormLIF
from .rearrange import AtTimestep, Rearrange
from .spike_pool import SpikeMaxPool1d, SpikeMaxPool2d
from .synapses.one_to_one import OneToOneSynapses
from .synapses.piecewise_conv import PiecewiseSpikeConv
from .synapses.shared_conv import SpikeConv2d, SpikeLinear
from .synapses.synaptic_current import Synapses, SynapticCurrent
from .synapses.unshared_conv import UnsharedSpikeConv
from .synapses.unshared_conv1d import UnsharedSpikeConv1d
from .time import DirectEncoding, MeanOverTime, SumOverTime

__all__ = [
    "AtTimestep",
    "DirectEncoding",
    "FoldedLIF",
    "MeanOverTime",
    "NormLIF",
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
    "unfuse",
]
