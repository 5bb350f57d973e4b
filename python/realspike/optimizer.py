"""What steps the weights."""

import math
from collections import defaultdict

import torch
from torch import nn

from realspike_ops import RealSpikeLIF


def sgd(
    network: nn.Module, *, lr: float, weight_decay: float, scale_amplitudes: bool = False, **options
) -> torch.optim.SGD:
    """Return SGD with weight decay for the weights of convolutions and linear layers alone.

    Amplitudes are left out: a batch norm follows, so that their scale is no measure of complexity.

    Args:
        network: Whose parameters are stepped.
        lr: The learning rate.
        weight_decay: Of the weights.
        scale_amplitudes: Divide the learning rate of an amplitude by the square root of the number
            of neurons that share it. Its gradient is a sum over them, and one that a whole layer
            shares otherwise jumps (Esser et al., "Learned Step Size Quantization", ICLR 2020, scale
            a shared step size so).
        options: Of `torch.optim.SGD`, such as ``momentum``.
    """
    decayed = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
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
    groups += [{"params": parameters, "lr": rate} for rate, parameters in with_rate.items()]
    return torch.optim.SGD(groups, lr=lr, **options)
