"""The checkpoint from which a run continues: torch's archive under a checksum.

The checksum is the comment at the end of the zip archive, which torch and zip tools pass over.
"""

import hashlib
import io
import struct
from pathlib import Path

import torch
from lightning.pytorch.plugins import CheckpointIO

from realspike.files import write_atomically

_SEAL = b"sha256:"
_LENGTH = len(_SEAL) + hashlib.sha256().digest_size


def write(path: Path, state: dict) -> None:
    """Write a state so that the file is the old one or the new one, whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    # A zip archive ends with the length of its comment.
    content = buffer.getvalue()[:-2] + struct.pack("<H", _LENGTH) + _SEAL
    write_atomically(path, content + hashlib.sha256(content).digest())


def read(path: Path) -> dict:
    """Return the state that `write` wrote, on the CPU.

    Raises:
        ValueError: if a single bit of it is another than was written.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    body, digest = content[:-32], content[-32:]
    if not body.endswith(_SEAL) or hashlib.sha256(body).digest() != digest:
        raise ValueError("its checksum does not fit its contents")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class SealedCheckpoints(CheckpointIO):
    """Makes Lightning's trainer write and read these files."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        write(Path(path), checkpoint)

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict:
        return read(Path(path))

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink()
