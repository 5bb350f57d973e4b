"""Checkpoints: a safetensors file with the weights and, as JSON, what rebuilds the network.

Reading one parses numbers and JSON; nothing in a file is ever executed or unpickled. A network of
the user's own is imported by name, and only where the caller allows that name.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from realspike import own
from realspike.errors import UserError
from realspike.files import write_atomically
from realspike.first_input import build_with_sizes
from realspike.networks import NetworkConfig, SpikingNetwork
from realspike.optional import require
from realspike_ops import safe_files

FORMAT = "realspike.checkpoint"
FOLDED_FORMAT = "realspike.folded"  # of realspike_ops.save_folded
FORMAT_VERSION = "3"


class CheckpointError(UserError, ValueError):
    """A file is not a checkpoint that can be loaded; the message names it and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A network in eval mode, on the CPU, and the record that was saved beside it."""

    network: nn.Module
    training: dict
    config: NetworkConfig


def save(path: "str | Path", network: SpikingNetwork, training: Mapping) -> None:
    """Write the weights, the configuration and a record of the training; all or nothing.

    Args:
        path: The file; one that exists is replaced.
        network: The trained (not the folded) network.
        training: Anything that JSON can hold, such as the seed and the accuracy.

    Raises:
        OSError: if the file cannot be written.
        TypeError: if ``training`` holds something that JSON cannot.
        MissingPackageError: if safetensors is not installed.
    """
    write(path, network.config, network.state_dict(), training)


def write(
    path: "str | Path", config: NetworkConfig, tensors: Mapping[str, Tensor], training: Mapping
) -> None:
    """Write the tensors of a network that ``config`` rebuilds, as `save` does."""
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": json.dumps(config.to_dict()),
        "training": json.dumps(dict(training)),
    }
    require("safetensors.torch")
    write_atomically(Path(path), safe_files.to_bytes(tensors, metadata))


def digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's tensors by name; whatever else a file holds is left out."""
    seen = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        seen.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        seen.update(tensor.contiguous().numpy())
    return seen.hexdigest()


def load(
    path: "str | Path", *, allow: Collection[str] = (), network: "nn.Module | None" = None
) -> Checkpoint:
    """Read a checkpoint that `save` wrote.

    Args:
        path: The file.
        allow: Names ``package.module:Class`` of networks that may be imported, if the file names
            one.
        network: Takes the weights in the place of the network that the file names.

    Raises:
        CheckpointError: if the file is missing, truncated, corrupt or not a checkpoint of this
            format; if its configuration has unknown or missing keys or values out of range; if a
            tensor is missing, unknown, of the wrong shape or dtype, or not finite.
        MissingPackageError: if safetensors is not installed.
    """

    path = Path(path)
    try:
        with open_file(path) as file:
            config, training = _read_metadata(file.metadata())
            if network is None:
                own.check_allowed("network", config.architecture, allow)
                with torch.device("meta"):
                    expected = build_with_sizes(config, seed=0).state_dict()
            else:
                expected = network.state_dict()
            tensors = _read_tensors(file, expected)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot load the checkpoint {path}: {error}") from error
    network = build_with_sizes(config, seed=0) if network is None else network
    network.load_state_dict(tensors)
    return Checkpoint(network.eval(), training, config)


def begin_with(path: Path, network: nn.Module) -> None:
    """Give a network the weights in a checkpoint of whatever network; names and shapes must fit.

    Amplitudes that a file does not have, as that of a binary network, stay 1: it had none.

    Raises:
        CheckpointError: as `load` does.
    """
    expected = network.state_dict()
    try:
        with open_file(path) as file:
            _read_metadata(file.metadata())
            found = set(file.keys())
            expected = {
                name: tensor
                for name, tensor in expected.items()
                if name in found or not name.endswith("amplitude")
            }
            tensors = _read_tensors(file, expected)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot begin with the weights in {path}: {error}") from error
    network.load_state_dict(tensors, strict=False)


def format_of(path: "str | Path") -> "str | None":
    """Return the format that a file claims to have, None if it has no such claim."""
    try:
        with open_file(Path(path)) as file:
            return (file.metadata() or {}).get("format")
    except (ValueError, OSError):
        return None


def open_file(path: Path):
    """Open a safetensors file; ValueError says in one line why that cannot be done."""
    safetensors = require("safetensors")
    if not path.exists():
        raise ValueError("there is no such file")
    if not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        return safetensors.safe_open(path, framework="pt", device="cpu")
    except safetensors.SafetensorError as error:
        raise ValueError(_what_it_is(path, error)) from error


def _what_it_is(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return (
            "it is a pickle or a zip archive (torch.save?), which is never opened: it can run code"
        )
    return f"it is truncated, corrupt or not a safetensors file ({error})"


def json_object(metadata: Mapping[str, str], key: str) -> dict:
    """Return an entry of a file's metadata; ValueError if it is missing or no JSON object."""
    try:
        return safe_files.json_object(metadata[key])
    except KeyError:
        raise ValueError(f"its metadata has no {key!r}") from None
    except ValueError as error:
        raise ValueError(f"its metadata {key!r} is not valid JSON ({error})") from error


def _read_metadata(metadata: "Mapping[str, str] | None") -> tuple[NetworkConfig, dict]:
    metadata = metadata or {}
    if metadata.get("format") == FOLDED_FORMAT:
        raise ValueError("it holds a folded network, and a trained one is needed")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"it is a safetensors file, but not a {FORMAT}")
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"its format version is {version!r:.40}; this version reads {FORMAT_VERSION!r}"
        )
    return NetworkConfig.from_dict(json_object(metadata, "network")), json_object(
        metadata, "training"
    )


def _read_tensors(file, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # The header's shapes are compared with those of a network without storage, so that a file
    # cannot make us allocate more than its configuration allows.
    found = set(file.keys())
    if missing := sorted(set(expected) - found):
        raise ValueError(f"the tensor {missing[0]!r} is missing")
    if unknown := sorted(found - set(expected)):
        raise ValueError(f"unknown tensor {unknown[0]!r:.80}")
    for name, tensor in expected.items():
        shape = list(file.get_slice(name).get_shape())
        if shape != list(tensor.shape):
            raise ValueError(f"{name!r} must have shape {list(tensor.shape)}; it has {shape}")
    tensors = {}
    for name, tensor in expected.items():
        tensors[name] = value = file.get_tensor(name)
        if value.dtype != tensor.dtype:
            raise ValueError(f"{name!r} must be {tensor.dtype}; it is {value.dtype}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name!r} holds values that are not finite")
        if name.endswith("running_var") and (value < 0).any():
            raise ValueError(f"{name!r} holds negative variances")
    return tensors
