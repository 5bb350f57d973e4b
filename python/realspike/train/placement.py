"""Where the processes of a run compute."""

import os
from typing import Any

import torch

from realspike.errors import RunError


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def placement(device: str) -> dict[str, Any]:
    """Return where Lightning puts the processes: one, or as many as torchrun started."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("training.device is cuda, but there is no CUDA device")
    gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": local,
        "num_nodes": world // local,
        "strategy": "ddp" if world > 1 else "auto",
        "sync_batchnorm": gpu and world > 1,
    }
