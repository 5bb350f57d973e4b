"""Reading the spikes out of a network while it runs, and what they are."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from realspike.config.network_config import NetworkConfig
from realspike.own import is_own
from realspike_ops import RealSpikeLIF


def kinds_of_spikes(network: nn.Module, config: NetworkConfig) -> tuple[list[NetworkConfig], str]:
    """Return the configuration for every kind of spikes in a network, and T.

    Of a network of the user's own its LIF layers say what they are, which may be several kinds or
    none: a configuration need not be what its class made.
    """
    if not is_own(config.architecture):
        return [config], str(config.timesteps)
    lifs = [module for module in network.modules() if isinstance(module, RealSpikeLIF)]
    kinds = dict.fromkeys((lif.granularity, lif.emission) for lif in lifs)
    timesteps = sorted({lif.timesteps for lif in lifs})
    return (
        [replace(config, granularity=shared, emission=emitted) for shared, emitted in kinds],
        " or ".join(map(str, timesteps)),
    )


def described(network: nn.Module, config: NetworkConfig) -> str:
    """Return what a network is, in a line."""
    kinds, timesteps = kinds_of_spikes(network, config)
    if not kinds:
        return f"{config.architecture}, without spikes"
    spikes = " and ".join(kind.spikes for kind in kinds)
    return f"{config.architecture}, {spikes}, T = {timesteps}"


def signs_of(emitted: Tensor, lif: RealSpikeLIF) -> Tensor:
    """Return o of the a * o that a layer emitted: a negative amplitude makes a spike no negative.

    Args:
        emitted: [..., C, H, W].
        lif: The layer, whose amplitudes are not 0 where neurons fire.
    """
    return (emitted if lif.amplitude is None else emitted * lif.amplitude.detach()).sign()


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
