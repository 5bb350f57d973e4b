"""The networks of the paper, small ones of the same build, and what makes one from its config."""

from realspike.config.network_config import ARCHITECTURES, GRANULARITIES, NetworkConfig

from .build import build
from .layers import SpikingNetwork

__all__ = ["ARCHITECTURES", "GRANULARITIES", "NetworkConfig", "SpikingNetwork", "build"]
