"""The activity of neurons on data: firing rates, and the entropy of the spikes they emit."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from realspike.inspect.spikes import signs_of
from realspike_ops import RealSpikeLIF

REAL_VALUED_BITS = 32  # of a float32, the paper's R(X) of a real-valued spike (Section 3.4)
BINARY_BITS = 1
TERNARY_BITS = math.log2(3)


@dataclass(frozen=True)
class LayerActivity:
    """One LIF layer over all samples and timesteps.

    Attributes:
        name: In the network.
        spikes: How often each neuron fired, [C, H, W] float64.
        negative: How often it fired a negative spike, likewise; None where spikes are not ternary.
        chances: How often it could have: timesteps * samples.
        amplitude: Of each neuron, [C, H, W]; ones without amplitudes.
        is_real_valued: Whether the layer has amplitudes.
    """

    name: str
    spikes: Tensor  # [C, H, W]
    chances: int
    amplitude: Tensor  # [C, H, W]
    is_real_valued: bool
    negative: "Tensor | None" = None  # [C, H, W]

    @property
    def firing_rates(self) -> Tensor:  # [C, H, W]
        return self.spikes / self.chances

    @property
    def firing_rate(self) -> float:
        return self.firing_rates.mean().item()

    @property
    def capacity(self) -> float:
        """The largest entropy of one spike, R(X), in bits."""
        if self.is_real_valued:
            return REAL_VALUED_BITS
        return BINARY_BITS if self.negative is None else TERNARY_BITS

    def binary_entropy(self) -> float:
        """Return the entropy of "fires or not", over all neurons, in bits."""
        return _entropy(torch.tensor([self.firing_rate, 1 - self.firing_rate]))

    def emitted_entropy(self) -> float:
        """Return the entropy of the value that is emitted, over all neurons, in bits.

        The values are 0 and the amplitudes of the neurons that fire, with the sign of a ternary
        spike. A reader that knows which neuron it reads learns only whether it fired, and the sign:
        see `neuron_entropy`.
        """
        emitted, often = zip(*self._emitted(), strict=True)
        values, which = torch.cat([each.flatten() for each in emitted]).unique(return_inverse=True)
        fired = torch.zeros(len(values), dtype=torch.float64)
        fired.index_add_(0, which, torch.cat([each.flatten() for each in often]))
        shares = fired / (self.chances * self.spikes.numel())
        silent = 1 - shares.sum() + shares[values == 0].sum()
        return _entropy(torch.cat([shares[values != 0], silent[None]]))

    def neuron_entropy(self) -> float:
        """Return the mean over the neurons of the entropy of what one of them emits, in bits.

        An amplitude is fixed after training: one neuron emits 0 or its own, two values, or three
        with a ternary spike's sign.
        """
        parts = [1 - self.firing_rates, *(often / self.chances for _, often in self._emitted())]
        return float(_terms(torch.stack(parts)).sum(0).mean())

    def _emitted(self) -> list[tuple[Tensor, Tensor]]:
        """Return the values other than 0 that neurons emit, and how often: of each sign."""
        if self.negative is None:
            return [(self.amplitude, self.spikes)]
        positive = self.spikes - self.negative
        return [(self.amplitude, positive), (-self.amplitude, self.negative)]


def _terms(shares: Tensor) -> Tensor:
    return -torch.xlogy(shares, shares) / math.log(2)


def _entropy(shares: Tensor) -> float:
    return float(_terms(shares.double().clamp(min=0)).sum())


@torch.no_grad()
def record_activity(network: nn.Module, batches: Iterable[Tensor]) -> list[LayerActivity]:
    """Run batches of network inputs and return what every LIF layer did, in order of execution.

    Raises:
        ValueError: if there are LIF layers and no batches.
    """
    spikes: dict[str, Tensor] = {}
    negative: dict[str, Tensor] = {}
    chances: dict[str, int] = {}
    layers: dict[str, RealSpikeLIF] = {}

    def count(name: str):
        def hook(module, _, output):
            fired = (output != 0).sum(0, dtype=torch.float64)  # [C, H, W]
            spikes[name] = spikes.get(name, 0) + fired
            if module.emission == "ternary":
                below = (signs_of(output, module) < 0).sum(0, dtype=torch.float64)
                negative[name] = negative.get(name, 0) + below
            chances[name] = chances.get(name, 0) + len(output)
            layers[name] = module

        return hook

    handles = [
        module.register_forward_hook(count(name))
        for name, module in network.named_modules()
        if isinstance(module, RealSpikeLIF)
    ]
    try:
        for batch in batches:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    if handles and not spikes:
        raise ValueError("there must be at least one batch")
    return [
        LayerActivity(
            *(name, fired.cpu(), chances[name]),
            _amplitude_map(layers[name], fired),
            layers[name].amplitude is not None,
            negative[name].cpu() if name in negative else None,
        )
        for name, fired in spikes.items()
    ]


def _amplitude_map(layer: RealSpikeLIF, fired: Tensor) -> Tensor:  # [C, H, W]
    if layer.amplitude is None:
        return torch.ones(fired.shape)
    return layer.amplitude.detach().float().cpu().expand(fired.shape)


def entropy_table(layers: list[LayerActivity]) -> list[dict]:
    """Return one row per layer, as JSON can hold it; entropies and capacities in bits."""
    return [
        {
            "layer": layer.name,
            "neurons": layer.spikes.numel(),
            "firing_rate": layer.firing_rate,
            "capacity": layer.capacity,
            "emitted_entropy": layer.emitted_entropy(),
            "binary_entropy": layer.binary_entropy(),
            "neuron_entropy": layer.neuron_entropy(),
        }
        for layer in layers
    ]
