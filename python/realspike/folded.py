"""Folded networks in files: those of `realspike_ops.save_folded`, with the record of the run.

`realspike_ops.load_folded` reads them without this application; the record is what finds the test
data again.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

import realspike_ops as rso
from realspike import checkpoint, trained
from realspike.checkpoint import FOLDED_FORMAT, CheckpointError
from realspike.files import write_atomically
from realspike.network_config import NetworkConfig
from realspike.optional import require
from realspike.trained import Trained

_CONFIG, _RECORD = "trained_network", "training"  # of the metadata, in JSON


def fold(network: Trained) -> nn.Module:
    """Return the binary-spike network; see `realspike_ops.reparameterize` for what it raises."""
    return rso.reparameterize(network.network, network.example_input())


def save(path: Path, network: Trained, folded: nn.Module) -> None:
    """Write the folded network with the configuration and the record of the trained one.

    Raises:
        OSError: if the file cannot be written.
    """
    plain = path.with_name(f".{path.name}.{os.getpid()}.folded")
    try:
        plain.touch()  # safetensors' own error has no reason
        rso.save_folded(folded, plain)
        with checkpoint.open_file(plain) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() | {
                _CONFIG: json.dumps(network.network_config.to_dict()),
                _RECORD: json.dumps(network.record),
            }
        write_atomically(path, require("safetensors.torch").save(tensors, metadata))
    finally:
        if plain.parent.is_dir():
            plain.unlink(missing_ok=True)


def is_folded(path: Path) -> bool:
    """Whether a file says that it holds a folded network."""
    return path.is_file() and checkpoint.format_of(path) == FOLDED_FORMAT


def load(path: Path, overrides: Sequence[str] = ()) -> Trained:
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
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot load the folded network {path}: {error}") from error
    return Trained(network, config, trained.config_of(config, record, overrides), record, path)


def load_either(path: Path, overrides: Sequence[str] = ()) -> Trained:
    """Read a folded network, or a trained one (or that of a run's folder), whichever it is."""
    return (load if is_folded(path) else trained.load)(path, overrides)
