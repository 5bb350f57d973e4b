"""The input current of neurons that several maps of spikes reach."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Signs(torch.autograd.Function):
    """Split ternary spikes into two binary maps, o+ and o-."""

    @staticmethod
    def forward(ctx, spikes):
        return (spikes > 0).to(spikes.dtype), (spikes < 0).to(spikes.dtype)

    @staticmethod
    def backward(ctx, grad_positive, grad_negative):
        # o = o+ - o-: of a linear current both say the same about o.
        return (grad_positive - grad_negative) / 2


class Synapses(nn.Module):
    """One map of spikes, and the layer that turns it into a current.

    Args:
        layer: The gather-accumulate layer; without a bias.
        signed: The spikes are ternary. Their positive and their negative part run through the same
            weights, as one batch, and are subtracted.
        pad: (left, right, top, bottom) silent pixels that the layer expects around the map;
            negative ones cut.
        channels: (first, all): the current is that of the channels from ``first`` on, of ``all``.
            None: of all channels.
        flatten: None, or where the map becomes features: ``"spikes"`` or ``"current"``.
        sums: The number of positions whose currents are added up to one (an average over the map,
            whose divisor is part of the weights); 0: they stay apart.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        signed: bool = False,
        pad: "tuple[int, int, int, int]" = (0, 0, 0, 0),
        channels: "tuple[int, int] | None" = None,
        flatten: str | None = None,
        sums: int = 0,
    ):
        super().__init__()
        self.layer = layer
        self.signed = bool(signed)
        self.pad = tuple(pad)
        self.channels = None if channels is None else tuple(channels)
        self.flatten = flatten
        self.sums = int(sums)

    @property
    def is_plain(self) -> bool:
        """Whether the layer alone does the same."""
        return not (self.signed or any(self.pad) or self.channels or self.flatten or self.sums)

    def forward(self, spikes: Tensor) -> Tensor:
        if self.flatten == "spikes":
            spikes = spikes.flatten(1)
        if any(self.pad):
            spikes = F.pad(spikes, self.pad)
        if self.signed:
            current = self.layer(torch.cat(_Signs.apply(spikes)))
            positive, negative = current.chunk(2)
            current = positive - negative
        else:
            current = self.layer(spikes)
        if self.sums:
            current = current.sum((2, 3), keepdim=True)
        if self.channels is not None:
            first, count = self.channels
            behind = count - first - current.shape[1]
            current = F.pad(current, (0, 0) * (current.dim() - 2) + (first, behind))
        return current.flatten(1) if self.flatten == "current" else current

    def extra_repr(self) -> str:
        parts = [f"{name}={getattr(self, name)}" for name in ("signed", "flatten", "channels")]
        parts = [part for part in parts if not part.endswith(("=False", "=None"))]
        parts += [f"sums={self.sums}"] if self.sums else []
        return ", ".join(parts + ([f"pad={self.pad}"] if any(self.pad) else []))


class SynapticCurrent(nn.Module):
    """Add up what several maps of spikes send to the same neurons, and a bias.

    Args:
        synapses: For every map that is read, by name, in the order of the inputs.
        bias: Broadcasts against one map of currents; None: 0.

    Shape: one map of spikes per entry of ``synapses``, then currents to add as they are -> one map
    of currents.
    """

    def __init__(self, synapses: "dict[str, nn.Module]", bias: Tensor | None = None):
        super().__init__()
        self.synapses = nn.ModuleDict(synapses)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, *maps: Tensor) -> Tensor:
        if len(maps) < len(self.synapses):
            raise ValueError(f"expected at least {len(self.synapses)} maps; got {len(maps)}")
        spikes, currents = maps[: len(self.synapses)], maps[len(self.synapses) :]
        layers = self.synapses.values()
        currents = [layer(map) for layer, map in zip(layers, spikes, strict=True)] + [*currents]
        total = currents[0]
        for current in currents[1:]:
            total = total + current
        return total if self.bias is None else total + self.bias

    def extra_repr(self) -> str:
        return "" if self.bias is None else f"bias={list(self.bias.shape)}"
