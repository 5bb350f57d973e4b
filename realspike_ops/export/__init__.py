"""Folded networks for others: NIR graphs, and back; PyTorch's own operators; ONNX."""

from .from_nir import import_nir
from .stock import without_custom_ops
from .to_nir import export_nir
from .to_onnx import export_onnx

__all__ = ["export_nir", "export_onnx", "import_nir", "without_custom_ops"]
