"""Runs NIR graphs in the readers that others use, and records what every neuron does."""

import contextlib
import io

import torch
from torch import Tensor


def snntorch_network(graph, dt: float):
    from snntorch.import_nir import import_from_nir

    assert dt == 1e-4, "snnTorch knows no other"

    with contextlib.redirect_stdout(io.StringIO()):  # it prints warnings, and what it looks for
        return import_from_nir(graph)


def spikingjelly_network(graph, dt: float):
    from spikingjelly.activation_based.nir_exchange.from_nir import import_from_nir

    return import_from_nir(graph, dt=dt)


def norse_network(graph, dt: float):
    """Norse's own cells, wired by nirtorch's interpreter instead of its deprecated executor."""
    import nir
    import nirtorch
    from norse.torch.utils.import_nir import _import_norse_module

    kinds = (nir.Affine, nir.Conv2d, nir.Flatten, nir.Linear, nir.LIF)

    def cell(node):
        return _import_norse_module(node, ignore_warnings=True, dt=dt)

    return nirtorch.nir_to_torch(graph, dict.fromkeys(kinds, cell))


NETWORKS = {
    "snntorch": snntorch_network,
    "spikingjelly": spikingjelly_network,
    "norse": norse_network,
}
PACKAGES = {
    "snntorch": ("nir", "nirtorch", "snntorch"),
    "spikingjelly": ("nir", "nirtorch", "spikingjelly"),
    "norse": ("nir", "nirtorch", "norse"),
}


@torch.no_grad()
def run(reader: str, graph, frames: Tensor, dt: float = 1e-4) -> tuple[dict[str, Tensor], Tensor]:
    """Step a graph through frames [T, B, ...].

    Returns the spikes of every LIF node and the output, each [T, B, ...]; flattened maps stay flat.
    """
    import nir

    network = NETWORKS[reader](graph, dt).eval()
    fired: dict[str, list[Tensor]] = {}

    def record(name):
        def hook(module, inputs, output):
            spikes = output[0] if isinstance(output, tuple) else output
            fired.setdefault(name, []).append(spikes.clone())

        return hook

    for name, node in graph.nodes.items():
        if isinstance(node, nir.LIF):
            network.get_submodule(name).register_forward_hook(record(name))
    outputs, state = [], None
    for frame in frames:
        output, state = network(frame, state)
        outputs.append(output)
    return {name: torch.stack(spikes) for name, spikes in fired.items()}, torch.stack(outputs)
