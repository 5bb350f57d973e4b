"""From plain, SpikingJelly, snnTorch and norse networks to networks of RealSpikeLIF."""

from .convert import convert
from .fuse import FusionReport, fuse, fusion_report

__all__ = ["FusionReport", "convert", "fuse", "fusion_report"]
