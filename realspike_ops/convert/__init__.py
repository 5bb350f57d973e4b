"""From plain, SpikingJelly, snnTorch and norse networks to networks of RealSpikeLIF."""

from .convert import convert

__all__ = ["convert"]
