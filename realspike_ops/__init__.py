"""Real Spike for PyTorch: fused LIF neurons and multiplication-free unshared convolution."""

from realspike_ops import nn, reference
from realspike_ops._native import build_info
from realspike_ops._version import __version__
from realspike_ops.functional import (
    compress_spikes,
    lif,
    pack_spikes,
    quantize_weight,
    unpack_spikes,
    unshared_spike_conv,
)
from realspike_ops.nn import (
    DirectEncoding,
    MeanOverTime,
    RealSpikeLIF,
    SpikeConv2d,
    SpikeLinear,
    SumOverTime,
    UnsharedSpikeConv,
    UnsharedSpikeConv1d,
)
from realspike_ops.reparam import (
    LayerReport,
    MultiplicationError,
    ReparameterizationError,
    VerificationReport,
    assert_multiplication_free,
    reparameterize,
    verify,
)
from realspike_ops.surrogate import Surrogate

__all__ = [
    "DirectEncoding",
    "LayerReport",
    "MeanOverTime",
    "MultiplicationError",
    "RealSpikeLIF",
    "ReparameterizationError",
    "SpikeConv2d",
    "SpikeLinear",
    "SumOverTime",
    "Surrogate",
    "UnsharedSpikeConv",
    "UnsharedSpikeConv1d",
    "VerificationReport",
    "__version__",
    "assert_multiplication_free",
    "build_info",
    "compress_spikes",
    "lif",
    "nn",
    "pack_spikes",
    "quantize_weight",
    "reference",
    "reparameterize",
    "unpack_spikes",
    "unshared_spike_conv",
    "verify",
]
