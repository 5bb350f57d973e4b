"""Real Spike for PyTorch: fused LIF neurons and multiplication-free unshared convolution."""

from realspike_ops import nn, reference, safe_files
from realspike_ops._native import build_info
from realspike_ops._version import __version__
from realspike_ops.convert import convert
from realspike_ops.export import export_nir, import_nir
from realspike_ops.functional import (
    compress_spikes,
    lif,
    pack_spikes,
    quantize_weight,
    unpack_spikes,
    unshared_spike_conv,
    unshared_spike_conv_lif,
)
from realspike_ops.nn import (
    DirectEncoding,
    FoldedLIF,
    MeanOverTime,
    OneToOneSynapses,
    PiecewiseSpikeConv,
    RealSpikeLIF,
    SpikeConv2d,
    SpikeLinear,
    SpikeMaxPool2d,
    SumOverTime,
    Synapses,
    SynapticCurrent,
    UnsharedSpikeConv,
    UnsharedSpikeConv1d,
)
from realspike_ops.reparam import (
    FoldedNetwork,
    LayerProfile,
    LayerReport,
    MultiplicationError,
    ProfileReport,
    ReparameterizationError,
    VerificationReport,
    assert_multiplication_free,
    load_folded,
    reparameterize,
    save_folded,
)
from realspike_ops.reparam.check import profile, verify
from realspike_ops.surrogate import Surrogate

__all__ = [
    "DirectEncoding",
    "FoldedLIF",
    "FoldedNetwork",
    "LayerProfile",
    "LayerReport",
    "MeanOverTime",
    "MultiplicationError",
    "OneToOneSynapses",
    "PiecewiseSpikeConv",
    "ProfileReport",
    "RealSpikeLIF",
    "ReparameterizationError",
    "SpikeConv2d",
    "SpikeLinear",
    "SpikeMaxPool2d",
    "SumOverTime",
    "Surrogate",
    "Synapses",
    "SynapticCurrent",
    "UnsharedSpikeConv",
    "UnsharedSpikeConv1d",
    "VerificationReport",
    "__version__",
    "assert_multiplication_free",
    "build_info",
    "compress_spikes",
    "convert",
    "export_nir",
    "import_nir",
    "lif",
    "load_folded",
    "nn",
    "pack_spikes",
    "profile",
    "quantize_weight",
    "reference",
    "reparameterize",
    "safe_files",
    "save_folded",
    "unpack_spikes",
    "unshared_spike_conv",
    "unshared_spike_conv_lif",
    "verify",
]
