"""Where the processes of a run compute, and how."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from realspike.config.run_config import RunConfig
from realspike.errors import RunError
from realspike.own import is_own


@dataclass(frozen=True)
class Placement:
    """What follows from a configuration on this machine.

    Args:
        trainer: Arguments of Lightning's trainer.
        channels_last: Whether maps lie in memory pixel by pixel, which a GPU's convolutions want.
        captures: Whether steps are captured in CUDA graphs.
    """

    trainer: dict[str, Any]
    channels_last: bool = False
    captures: bool = False


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def placement(config: RunConfig) -> Placement:
    """Return where Lightning puts the processes: one, or as many as torchrun started; and how.

    Raises:
        RunError: if there is no CUDA device where one is asked for, or steps are to be captured
            that cannot be.
    """
    training = config.training
    if training.device == "cuda" and not torch.cuda.is_available():
        raise RunError("training.device is cuda, but there is no CUDA device")
    gpu = training.device != "cpu" and torch.cuda.is_available()
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), world_size()
    precision = training.precision
    if precision is None:
        # What a card emulates is slower than float32.
        native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if native else "32-true"
    trainer = {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": local,
        "num_nodes": world // local,
        "strategy": "ddp" if world > 1 else "auto",
        "sync_batchnorm": gpu and world > 1 and training.sync_batchnorm,
        "precision": precision,
        "benchmark": True if gpu else None,
    }
    channels_last = gpu if training.channels_last is None else training.channels_last
    return Placement(trainer, channels_last, _captures(config, gpu, world))


def _captures(config: RunConfig, gpu: bool, world: int) -> bool:
    wanted = config.training.cuda_graph
    if wanted is False:
        return False
    reason = None
    if not gpu:
        reason = "there is no CUDA device, or training.device is cpu"
    elif world > 1:
        reason = f"{world} processes exchange their gradients inside a step"
    elif config.training.compress_spikes:
        reason = "training.compress_spikes runs what it kept as bits anew, in steps of its own"
    if reason is None:
        # Whether a network of the user's own can be captured is for the user to say.
        return bool(wanted) or not is_own(config.network.architecture)
    if wanted:
        raise RunError(
            f"training.cuda_graph is true, but steps cannot be captured: {reason}; leave it null"
        )
    return False
