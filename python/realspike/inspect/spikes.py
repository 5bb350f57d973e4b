"""Reading the spikes out of a network while it runs."""

import torch
from torch import Tensor, nn

from realspike_ops import RealSpikeLIF


@torch.no_grad()
def record_spikes(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return what every LIF layer emits for ``images``, [T, B, C, H, W], by layer name.

    Binary spikes for a folded or a binary network, real-valued ones (a * o) otherwise.
    """
    spikes: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, _, output):
            spikes[name] = output.unflatten(0, (module.timesteps, -1))

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in network.named_modules()
        if isinstance(module, RealSpikeLIF)
    ]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return spikes
