"""Every op in a dozen lines of plain PyTorch: slow, exact, and in float64 if asked.

The kernels are tested against these functions and never fall back to them.
"""

from .batch_norm_lif import batch_norm_lif
from .lif import lif
from .pack_spikes import pack_spikes, unpack_spikes
from .unshared_conv import unshared_spike_conv

__all__ = ["batch_norm_lif", "lif", "pack_spikes", "unpack_spikes", "unshared_spike_conv"]
