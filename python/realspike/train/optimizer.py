"""The optimizers that step the weights."""

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from realspike.train.together import Together
from realspike_ops import RealSpikeLIF

# Added to what Adam divides by. The gradient of an amplitude of a whole layer that batch norms read
# is 0 but for their eps and rounding, up to 2e-6, and must not make whole steps; those of elements,
# the smallest of all others, vary by 3e-5 and more (docs/results/cifar10_search.md).
_AMPLITUDE_EPS = 1e-5
_SQUARES = 0.999  # the second beta of Adam
_DECAYED = (nn.modules.conv._ConvNd, nn.Linear)
# With what a weight is made of: `torch.nn.utils.parametrizations`, `prune`, `weight_norm`.
_WEIGHT = re.compile(r"(parametrizations\.)?weight")


def sgd(network: nn.Module, **options) -> torch.optim.Optimizer:
    """Return SGD; see `optimizer_of`."""
    return optimizer_of(network, torch.optim.SGD, **options)


def adamw(network: nn.Module, **options) -> torch.optim.Optimizer:
    """Return AdamW, whose first beta is ``momentum``; see `optimizer_of`."""
    return optimizer_of(network, torch.optim.AdamW, **options)


def optimizer_of(
    network: nn.Module,
    kind: type[torch.optim.Optimizer],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    scale_amplitudes: bool = False,
    amplitude_lr: "float | None" = None,
    adam_amplitudes: bool = False,
) -> torch.optim.Optimizer:
    """Return an optimizer with weight decay for the weights of convolutions and linear layers.

    Amplitudes are left out: a batch norm follows, so that their scale is no measure of complexity.

    Args:
        network: Whose parameters are stepped.
        kind: SGD, Adam or AdamW.
        lr: The learning rate.
        weight_decay: Of the weights.
        momentum: Of SGD, the first beta of Adam.
        scale_amplitudes: Divide the learning rate of an amplitude by the square root of the number
            of neurons that share it. Its gradient is a sum over them, and one that a whole layer
            shares otherwise jumps (Esser et al., "Learned Step Size Quantization", ICLR 2020, scale
            a shared step size so).
        amplitude_lr: The learning rate of the amplitudes; None: ``lr``.
        adam_amplitudes: Step the amplitudes by Adam, whose steps are of the learning rate's size
            however small the gradient is, unless it is below 1e-5.
    """
    # Each once: layers may share a weight.
    decayed = dict.fromkeys(
        parameter
        for module in network.modules()
        if isinstance(module, _DECAYED)
        for name, parameter in module.named_parameters()
        if _WEIGHT.match(name)
    )
    rates = {
        lif.amplitude: (lr if amplitude_lr is None else amplitude_lr)
        / (math.sqrt(lif.neurons_per_amplitude) if scale_amplitudes else 1)
        for lif in network.modules()
        if isinstance(lif, RealSpikeLIF) and lif.amplitude is not None
    }
    with_rate = defaultdict(list, {lr: []})  # first: its rate is reported
    apart = {*decayed, *(rates if adam_amplitudes else ())}
    for parameter in network.parameters():
        if parameter not in apart:
            with_rate[rates.get(parameter, lr)].append(parameter)
    groups = [{"params": [*decayed], "weight_decay": weight_decay}, *_undecayed(with_rate)]
    optimizer = _made(kind, groups, lr, momentum)
    if not (adam_amplitudes and rates):
        return optimizer
    with_rate = defaultdict(list)
    for amplitude, rate in rates.items():
        with_rate[rate].append(amplitude)
    betas = (momentum, _SQUARES)
    adam = torch.optim.Adam(_undecayed(with_rate), lr=lr, betas=betas, eps=_AMPLITUDE_EPS)
    return Together(optimizer, adam)


def _undecayed(with_rate: "dict[float, list[nn.Parameter]]") -> list[dict]:
    return [
        {"params": parameters, "lr": rate, "weight_decay": 0.0}
        for rate, parameters in with_rate.items()
    ]


def _made(kind, groups: list[dict], lr: float, momentum: float) -> torch.optim.Optimizer:
    sgd_or_adam: dict[str, Any] = (
        {"momentum": momentum} if kind is torch.optim.SGD else {"betas": (momentum, _SQUARES)}
    )
    return kind([group for group in groups if group["params"]], lr=lr, **sgd_or_adam)
