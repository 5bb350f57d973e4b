"""Folded networks in files: those of `realspike_ops.save_folded`, with the record of the run.

`realspike_ops.load_folded` reads them without this application; the record is what finds the test
data again.
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import realspike_ops as rso
from realspike import checkpoint
from realspike.checkpoint import FOLDED_FORMAT, CheckpointError
from realspike.config.network_config import NetworkConfig
from realspike.first_input import example_input
from realspike.inspect import trained_file
from realspike.inspect.trained_file import Trained
from realspike.optional import require

_CONFIG, _RECORD = "trained_network", "training"  # of the metadata, in JSON


def fold(network: Trained) -> rso.FoldedNetwork:
    """Return the binary-spike network; see `realspike_ops.reparameterize` for what it raises."""
    return rso.reparameterize(network.network, network.example_input())


def save(path: Path, network: Trained, folded: rso.FoldedNetwork) -> None:
    """Write the folded network with the configuration and the record of the trained one.

    Raises:
        OSError: if the file cannot be written.
    """
    require("safetensors.torch")
    metadata = {
        _CONFIG: json.dumps(network.network_config.to_dict()),
        _RECORD: json.dumps(network.record),
    }
    rso.save_folded(folded, path, metadata)


def size_of(network: nn.Module) -> str:
    """Return what the tensors of a network take, in a unit that suits it."""
    count = sum(tensor.nbytes for tensor in network.state_dict().values())
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def is_folded(path: Path) -> bool:
    """Whether a file says that it holds a folded network."""
    return path.is_file() and checkpoint.format_of(path) == FOLDED_FORMAT


def load(path: Path, overrides: Sequence[str] = (), allow: Collection[str] = ()) -> Trained:
    """Read what `save` wrote; its ``network`` is the folded one.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt or no folded network, or was
            not written by `save`.
    """
    try:
        with checkpoint.open_file(path) as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FOLDED_FORMAT:
            raise ValueError(f"it is a safetensors file, but not a {FOLDED_FORMAT}")
        config = NetworkConfig.from_dict(checkpoint.json_object(metadata, _CONFIG))
        record = checkpoint.json_object(metadata, _RECORD)
        network = rso.load_folded(path)
        _try(network, example_input(config), config.classes)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot load the folded network {path}: {error}") from error
    run = trained_file.config_of(config, record, overrides)
    return Trained(network, config, run, record, path, trained_file.allowed(overrides, allow))


@torch.inference_mode()
def _try(network: nn.Module, example: Tensor, classes: int) -> None:
    """Run a network on one sample; ValueError if it cannot, or classifies something else."""
    try:
        logits = network(example)
        fits = tuple(logits.shape) == (1, classes) and bool(torch.isfinite(logits).all())
    except Exception as error:  # its steps may do anything that tensors refuse
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it cannot run: {text:.200}") from error
    if not fits:
        raise ValueError(f"it does not give {classes} finite numbers for a sample")


def load_either(path: Path, overrides: Sequence[str] = (), allow: Collection[str] = ()) -> Trained:
    """Read a folded network, or a trained one (or that of a run's folder), whichever it is."""
    return (load if is_folded(path) else trained_file.load)(path, overrides, allow)
