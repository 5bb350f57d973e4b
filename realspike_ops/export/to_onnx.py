"""From a folded network to ONNX."""

import importlib
from pathlib import Path

import torch
from torch import nn

from realspike_ops import _checks as checks
from realspike_ops.export.stock import without_custom_ops
from realspike_ops.nn import RealSpikeLIF
from realspike_ops.reparam import FoldedNetwork


@torch.no_grad()
def export_onnx(folded: FoldedNetwork, path: str | Path) -> None:
    """Write a folded network, as `without_custom_ops` has it, as an ONNX file for any batch.

    Its one input is called ``x``, [B, ...] or frames [T*B, ...] as the network takes them.

    Args:
        folded: The network that `reparameterize` returned; exported as in eval mode, on the CPU.
        path: Of the file.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`, or ``path`` no path.
        ValueError: if it takes inputs of any shape, or has a layer that folding does not make.
        ImportError: if ``onnx`` or ``onnxscript`` is not installed.
        OSError: if the file cannot be written.

    Rounding: as `without_custom_ops`. ONNX leaves the order of sums to the runtime: where sums are
    exact (``reparameterize(..., scales="power_of_two")``), spikes are equal in all of them.
    """
    checks.check_path("path", path)
    try:
        for package in ("onnx", "onnxscript"):
            importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"export_onnx needs the package {error.name!r}: pip install 'realspike[onnx]'"
        ) from error
    program = exported_program(without_custom_ops(folded).cpu(), folded)
    written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None  # with dynamo
    written.save(str(path))


def exported_program(network: nn.Module, folded: FoldedNetwork) -> torch.export.ExportedProgram:
    """Export a network that takes what a folded one does, for any batch that it takes."""
    if folded.input_shape is None:
        raise ValueError(
            "folded takes inputs of any shape, and a file has one: fold with reparameterize"
        )
    T = next(m.timesteps for m in folded.modules() if isinstance(m, RealSpikeLIF))
    x = torch.zeros(folded.batch or 2 * T, *folded.input_shape)
    if folded.batch is not None:
        return torch.export.export(network, (x,))
    from torch._dynamo.exc import UserError

    batch = torch.export.Dim("batch", min=1, max=2**20)
    try:
        return torch.export.export(network, (x,), dynamic_shapes=({0: batch},))
    except UserError:  # frames: T divides their number
        return torch.export.export(network, (x,), dynamic_shapes=({0: T * batch},))
