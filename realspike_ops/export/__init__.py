"""Folded networks as graphs of the Neuromorphic Intermediate Representation (NIR), and back."""

from .from_nir import import_nir
from .to_nir import export_nir

__all__ = ["export_nir", "import_nir"]
