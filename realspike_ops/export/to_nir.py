"""From a folded network to a NIR graph: the function, and the notes beside the nodes."""

import hashlib
import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from realspike_ops import _checks as checks
from realspike_ops._version import __version__
from realspike_ops.export.nir_package import nir_package
from realspike_ops.export.walk import Walk
from realspike_ops.reparam import FoldedNetwork

if TYPE_CHECKING:
    import nir

MAX_BYTES = 2**30
WEIGHTS = ("float32", "float16")


@torch.no_grad()
def export_nir(
    folded: FoldedNetwork,
    path: str | Path | None = None,
    dt: float = 1e-4,
    fold_r: bool = False,
    weights: str = "float32",
    *,
    max_bytes: int = MAX_BYTES,
) -> "nir.NIRGraph":
    r"""Return a folded network as a NIR graph, and write it.

    Every LIF layer becomes a ``nir.LIF`` with :math:`\tau = dt / (1 - decay)`,
    :math:`r = \tau / dt` and, as NIR's neurons fire on `>`, the float32 below its threshold;
    synapses become a ``nir.Conv2d`` where one kernel serves all positions of maps, else (and of
    lines [C, L]) a dense ``nir.Affine`` over flattened maps; currents that meet are several edges
    into one node. docs/deployment.md has the mapping, and what each reader makes of it.

    The graph reads the image (of frames, one frame) at every timestep and ends at the currents of
    the classes, which the reader adds up over the timesteps. ``graph.metadata`` holds
    ``timesteps`` (T), ``dt``, ``encoding`` ("repeat", the same image at every timestep, or
    "frames"), ``readout`` ("sum" over the timesteps, or "none"), ``output_shape``,
    ``realspike_version``, and the ``sha256`` of the folded network's layers and weights.

    Args:
        folded: The network that `reparameterize` returned; exported as in eval mode.
        path: The file to write, which `nir.read` reads; None: no file is written.
        dt: Duration of a timestep in seconds. snnTorch reads every graph as if it were 1e-4.
        fold_r: Write ``r = 1`` and divide the weights by ``1 - decay``, for readers that ignore r
            (norse). Readers then compute ``decay v + (1 - decay) x`` in roundings of their own: a
            potential that comes near the threshold may fire or not. A warning names the layers
            whose ``1 - decay`` is no power of two, for which the weights are rounded too.
        weights: "float32", or "float16" where that holds every weight exactly.
        max_bytes: The most that the arrays of the graph may take; default 1 GiB.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for a layer or neuron that has no equal in NIR, named, with what to do instead;
            for more than ``max_bytes``, before they are allocated.
        ImportError: if ``nir`` is not installed.
        OSError: if the file cannot be written.

    Determinism: the same network gives the same graph, bit for bit.

    Reference:
        Pedersen et al., "Neuromorphic Intermediate Representation", Nature Communications, 2024.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(
            f"folded must be a FoldedNetwork, as reparameterize returns it; "
            f"got {type(folded).__name__}"
        )
    dt = checks.check_number("dt", dt)
    if not 0 < dt < math.inf:
        raise ValueError(f"dt must be above 0, in seconds; got {dt:g}")
    checks.check_choice("weights", weights, WEIGHTS)
    checks.check_flag("fold_r", fold_r)
    if path is not None:
        checks.check_path("path", path)
    checks.check_positive_int("max_bytes", max_bytes)
    package = nir_package()
    walk = Walk(package, folded, dt, fold_r, np.dtype(weights))
    walk.check_size(max_bytes)
    if walk.rounded_by_r:
        layers = ", ".join(map(repr, walk.rounded_by_r))
        warnings.warn(
            f"fold_r=True rounds the weights that reach {layers}: 1 - decay is no power of two",
            stacklevel=3,  # behind torch.no_grad
        )
    graph = package.NIRGraph(
        {name: node.build() for name, node in walk.nodes.items()},
        walk.edges,
        metadata=walk.metadata | {"realspike_version": __version__, "sha256": fingerprint(folded)},
    )
    if path is not None:
        package.write(str(path), graph)
    return graph


def fingerprint(folded: FoldedNetwork) -> str:
    """Return the SHA-256 of a folded network: its steps, what its layers are, and its tensors."""
    digest = hashlib.sha256()
    steps = [[step.name, list(step.inputs)] for step in folded.steps]
    digest.update(json.dumps([steps, folded.output, folded.input_shape]).encode())
    for name, module in folded.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_")
            and key != "training"
            and isinstance(value, (bool, int, float, str, tuple, type(None)))
        }
        digest.update(repr((name, type(module).__name__, sorted(plain.items()))).encode())
    for name, tensor in folded.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        # A copy: one number counts as contiguous with any stride.
        numbers = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(numbers.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
