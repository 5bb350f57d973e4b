"""The optimizers that step the weights."""

import math
from collections import defaultdict

import torch
from torch import nn

from realspike_ops import RealSpikeLIF

_DECAYED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def sgd(network: nn.Module, **options) -> torch.optim.SGD:
    """Return SGD; see `optimizer_of`."""
    return optimizer_of(network, torch.optim.SGD, **options)


def adamw(network: nn.Module, *, momentum: float, **options) -> torch.optim.AdamW:
    """Return AdamW, whose first beta is ``momentum``; see `optimizer_of`."""
    return optimizer_of(network, torch.optim.AdamW, betas=(momentum, 0.999), **options)


def optimizer_of(
    network: nn.Module,
    kind: type[torch.optim.Optimizer],
    *,
    lr: float,
    weight_decay: float,
    scale_amplitudes: bool = False,
    **options,
) -> torch.optim.Optimizer:
    """Return an optimizer with weight decay for the weights of convolutions and linear layers.

    Amplitudes are left out: a batch norm follows, so that their scale is no measure of complexity.

    Args:
        network: Whose parameters are stepped.
        kind: Of `torch.optim`, with decoupled or coupled weight decay.
        lr: The learning rate.
        weight_decay: Of the weights.
        scale_amplitudes: Divide the learning rate of an amplitude by the square root of the number
            of neurons that share it. Its gradient is a sum over them, and one that a whole layer
            shares otherwise jumps (Esser et al., "Learned Step Size Quantization", ICLR 2020, scale
            a shared step size so).
        options: Of ``kind``, such as ``momentum``.
    """
    decayed = [m.weight for m in network.modules() if isinstance(m, _DECAYED)]
    rates = {}
    if scale_amplitudes:
        rates = {
            lif.amplitude: lr / math.sqrt(lif.neurons_per_amplitude)
            for lif in network.modules()
            if isinstance(lif, RealSpikeLIF) and lif.amplitude is not None
        }
    with_rate = defaultdict(list)
    decayed_set = set(decayed)
    for parameter in network.parameters():
        if parameter not in decayed_set:
            with_rate[rates.get(parameter, lr)].append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}]
    groups += [
        {"params": parameters, "lr": rate, "weight_decay": 0.0}
        for rate, parameters in with_rate.items()
    ]
    return kind([group for group in groups if group["params"]], lr=lr, **options)
