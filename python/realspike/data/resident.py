"""Data that stay on the device that trains."""

from dataclasses import replace

import torch

from realspike.data.sets import InMemory, Part, Splits

# Of the memory of a device that is free before a run; the rest is the network's.
SHARE = 0.25


def kept_on(device: torch.device, splits: Splits) -> Splits:
    """Return data whose parts in memory lie on a device, as they are, where they fit.

    On the CPU they do already. A byte per level is what images of uint8 take there too.
    """
    if device.type != "cuda":
        return splits
    free = SHARE * torch.cuda.mem_get_info(device)[0]
    placed = {}
    for name in ("train", "test"):
        placed[name], free = _kept(getattr(splits, name), device, free)
    return replace(splits, **placed)


def _kept(part: Part, device: torch.device, free: float) -> tuple[Part, float]:
    if not isinstance(part, InMemory) or part.samples.nbytes > free:
        return part, free
    moved = InMemory(part.samples.to(device), part.labels.to(device))
    return moved, free - part.samples.nbytes
