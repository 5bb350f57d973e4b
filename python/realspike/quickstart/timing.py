"""Wall-clock times of networks side by side."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Timing:
    """The time of one network's forward pass on one batch."""

    median_ms: float
    fastest_ms: float
    relative: float  # median over the rounds of this network's time / the first network's


@torch.inference_mode()
def time_interleaved(
    networks: Mapping[str, nn.Module],
    images: Tensor,  # [B, 1, H, W]
    rounds: int = 100,
    warmup: int = 5,
) -> dict[str, Timing]:
    """Time the forward pass of whole networks on the CPU; the first one is the measure.

    Each round runs every network once, each time starting with another, so that whatever else the
    machine does meets all of them alike.

    Raises:
        ValueError: if there is no network, or ``rounds`` is less than 1.
    """
    if not networks or rounds < 1:
        raise ValueError(
            f"networks and rounds must be at least 1; got {len(networks)} networks, {rounds} rounds"
        )
    names = list(networks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            networks[name](images)
            elapsed = time.perf_counter() - start
            if turn >= 0:
                seconds[name].append(elapsed)
    measure = seconds[names[0]]
    return {
        name: Timing(
            median_ms=statistics.median(values) * 1e3,
            fastest_ms=min(values) * 1e3,
            relative=statistics.median(
                value / reference for value, reference in zip(values, measure, strict=True)
            ),
        )
        for name, values in seconds.items()
    }
