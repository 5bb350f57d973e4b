"""The documented functions, one file per op: each checks its arguments, then calls one op."""

from realspike_ops.functional.batch_norm_lif import batch_norm_lif
from realspike_ops.functional.conv_geometry import output_size
from realspike_ops.functional.lif import lif
from realspike_ops.functional.pack_spikes import pack_spikes, unpack_spikes
from realspike_ops.functional.quantize_weight import quantize_weight
from realspike_ops.functional.unshared_conv import unshared_spike_conv
from realspike_ops.functional.unshared_conv_lif import unshared_spike_conv_lif
from realspike_ops.ops.compress_spikes import compress_spikes

__all__ = [
    "batch_norm_lif",
    "compress_spikes",
    "lif",
    "output_size",
    "pack_spikes",
    "quantize_weight",
    "unpack_spikes",
    "unshared_spike_conv",
    "unshared_spike_conv_lif",
]
