"""Safetensors whose bytes follow from their contents alone, and JSON that says one thing."""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from torch import Tensor

LONGEST_JSON = 2**24  # characters
LARGEST_INTEGER = 2**53


def package(part: str = "safetensors") -> Any:
    """Return the module, or ImportError with how to install it."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError("this needs safetensors: pip install safetensors") from error
    return safetensors.torch if part == "safetensors.torch" else safetensors


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a file of these; the same bytes for the same contents, in every process.

    Raises:
        ImportError: if safetensors is not installed.
    """
    held: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # A file has every tensor once for each of its names.
        held[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    content = package("safetensors.torch").save(held, dict(metadata))
    # The library writes the metadata in an order that differs from process to process.
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def json_object(text: str) -> dict:
    """Return a JSON object; its numbers are finite, its integers below 2^53, no key is there twice.

    Raises:
        ValueError: if the text is anything else.
    """
    if len(text) > LONGEST_JSON:
        raise ValueError(f"JSON of {len(text)} characters; at most {LONGEST_JSON} are read")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def _object(pairs: list) -> dict:
    made: dict = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r:.80} is there twice")
        _check_numbers(key, value)
        made[key] = value
    return made


def _check_numbers(key: str, value) -> None:
    if isinstance(value, list):
        for item in value:
            _check_numbers(key, item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key!r:.80} is {value}")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{key!r:.80} is an integer beyond 2^53")
