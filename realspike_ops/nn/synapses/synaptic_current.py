"""The input current of neurons that several maps of spikes reach."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realspike_ops._checks import FLOATS
from realspike_ops.functional.unshared_conv_lif import Added, join_maps
from realspike_ops.nn.neurons.folded_lif import FoldedLIF
from realspike_ops.nn.packed_spikes import PackedSpikes, as_dense, as_map, padded
from realspike_ops.nn.synapses.one_to_one import OneToOneSynapses
from realspike_ops.nn.synapses.shared_conv import SpikeConv2d, SpikeLinear
from realspike_ops.nn.synapses.spike_conv import of_maps
from realspike_ops.nn.synapses.storage import Stored, parameter
from realspike_ops.nn.synapses.unshared_conv import UnsharedSpikeConv

# Their neurons may be in the same op. A class that comes from these may compute anything.
CAN_FIRE = (SpikeConv2d, UnsharedSpikeConv, SpikeLinear)


class _Signs(torch.autograd.Function):
    """Split ternary spikes into two binary maps, o+ and o-."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def forward(spikes: Tensor) -> tuple[Tensor, Tensor]:
        return (spikes > 0).to(spikes.dtype), (spikes < 0).to(spikes.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # o = o+ - o-. A current is linear, so that both gradients say the same about o.
        grad_positive, grad_negative = grads
        return (grad_positive - grad_negative) / 2


class Synapses(nn.Module):
    """Maps of spikes, and the layer that turns them into a current.

    The layer reads all its binary maps as one batch, through the same weights. Ternary spikes are
    two of these maps, the positive and the negative ones. The currents of the maps are added; those
    of negative spikes are subtracted.

    Args:
        layer: The gather-accumulate layer; it has a bias only if its output is the current.
        maps: How many maps of spikes it reads.
        signed: The spikes are ternary.
        pad: (left, right, top, bottom) silent pixels that the layer expects around the map;
            negative ones cut.
        channels: (first, all): the layer computes the channels from ``first`` on, of ``all``.
            None: the current has all channels.
        flatten: Whether the current becomes features.
        reads: 3: the spikes are lines [N, C, L], which the layer reads as maps of one row. 2: they
            are features [N, F], which it reads as maps of one pixel. 4: it reads them as they come.
        line: Whether the current, of a map with one row, becomes a line [N, C, L].
        sums: The number of positions whose currents are added up to one (an average over the map,
            whose divisor is part of the weights); 0: they stay apart.

    Shape: ``maps`` maps [N, C, H, W] (or `PackedSpikes`) -> one map of currents, or features.
    """

    def __init__(
        self,
        layer: nn.Module,
        *,
        maps: int = 1,
        signed: bool = False,
        pad: tuple[int, int, int, int] = (0, 0, 0, 0),
        channels: tuple[int, int] | None = None,
        flatten: bool = False,
        sums: int = 0,
        reads: int = 4,
        line: bool = False,
    ):
        super().__init__()
        self.layer = layer
        self.maps = int(maps)
        self.signed = bool(signed)
        self.pad = tuple(pad)
        self.channels = None if channels is None else (channels[0], channels[1])
        self.flatten = bool(flatten)
        self.sums = int(sums)
        self.reads = int(reads)
        self.line = bool(line)

    @property
    def is_plain(self) -> bool:
        """Whether the layer alone does the same."""
        several = self.signed or self.maps > 1
        moved = self.flatten or self.line or self.reads != 4
        return not (several or any(self.pad) or self.channels or moved or self.sums)

    def forward(self, *maps: Tensor | PackedSpikes) -> Tensor:
        current = self.layer(self._batch(maps))
        current = join_maps(current, self.maps, self.signed)
        if self.sums:
            # One memory format, and so one order of the sum, whichever way the spikes came.
            pixels = current.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # [N, H*W, C]
            current = pixels.sum(1)[..., None, None]
        if self.channels is not None:
            first, count = self.channels
            behind = count - first - current.shape[1]
            current = F.pad(current, (0, 0) * (current.dim() - 2) + (first, behind))
        current = current.squeeze(2) if self.line else current
        return current.flatten(1) if self.flatten else current

    @property
    def current_dims(self) -> int:
        """The dimensions of the current: 4 of maps, 3 of lines, 2 of features."""
        return 2 if self.flatten else 3 if self.line else getattr(self.layer, "current_dims", 4)

    @property
    def can_fire(self) -> bool:
        """Whether the layer and the neurons behind the current may be one op."""
        # Features are a map of one pixel, or else in another order than their bits.
        pixel = isinstance(self.layer, SpikeLinear) or self.reads == 2
        own = self.channels is None and not self.sums and (pixel or not self.flatten)
        return own and type(self.layer) in CAN_FIRE

    def fire(
        self, *maps: Tensor | PackedSpikes, neurons: FoldedLIF, added: Sequence[Added] = ()
    ) -> PackedSpikes:
        """Run ``neurons(self(*maps) + ..., packed=True)`` as one op, in inference."""
        layer: Any = self.layer
        return layer.fire(
            self._batch(maps), neurons, maps=self.maps, signed=self.signed, added=added,
            dims=self.current_dims,
        )  # fmt: skip

    def _batch(self, spikes_of: Sequence[Tensor | PackedSpikes]) -> Tensor | PackedSpikes:
        """Return all binary maps, padded, as one batch."""
        maps = [as_map(spikes, self.reads) for spikes in spikes_of]
        packed = [spikes for spikes in maps if isinstance(spikes, PackedSpikes)]
        if len(packed) == len(maps):
            words = [spikes.planes() if self.signed else spikes.words for spikes in packed]
            # A layer that tells the signs apart by itself gets ternary spikes as they are.
            signed = packed[0].signed and not self.signed
            joined = words[0] if len(words) == 1 else torch.cat(words, 1 if signed else 0)
            return PackedSpikes(padded(joined, (0, 0, *self.pad)), packed[0].channels, signed)
        batch = [as_dense(spikes) for spikes in maps]
        if self.signed:
            batch: list[Tensor] = [sign for spikes in batch for sign in _Signs.apply(spikes)]
        return padded(batch[0] if len(batch) == 1 else torch.cat(batch), self.pad)

    def extra_repr(self) -> str:
        names = ("signed", "flatten", "line", "channels")
        parts = [f"{name}={getattr(self, name)}" for name in names]
        parts = [part for part in parts if not part.endswith(("=False", "=None"))]
        parts += [f"maps={self.maps}"] if self.maps > 1 else []
        parts += [f"sums={self.sums}"] if self.sums else []
        parts += [f"reads={self.reads}"] if self.reads != 4 else []
        return ", ".join(parts + ([f"pad={self.pad}"] if any(self.pad) else []))


def can_fire(layer: nn.Module) -> bool:
    """Whether a layer of synapses and the neurons behind it may be one op."""
    return type(layer) in CAN_FIRE or (type(layer) is Synapses and layer.can_fire)


def _added(layer: Any, maps: Sequence[Tensor | PackedSpikes], dims: int) -> Added:
    """Return what a layer adds to a current; None: the map itself is one."""
    spikes = maps[0]
    if type(layer) is OneToOneSynapses and isinstance(spikes, PackedSpikes):
        words: Any = as_map(spikes, dims)
        return of_maps(layer.weight, dims), words.words
    current = as_dense(spikes) if layer is None else layer(*maps)
    return as_map(current, dims)  # pyright: ignore[reportReturnType]


class SynapticCurrent(Stored):
    """Add up what several maps of spikes send to the same neurons, and a bias.

    Args:
        synapses: By name, in the order of the inputs; `Synapses` may read several of them, any
            other layer reads one.
        bias: Broadcasts against one map of currents; None: 0.

    Shape: the maps of spikes that ``synapses`` read, then currents to add as they are -> one map
    of currents.
    """

    synapses: nn.ModuleDict
    bias: nn.Parameter | None

    def __init__(self, synapses: dict[str, nn.Module], bias: Tensor | None = None):
        super().__init__()
        self.synapses = nn.ModuleDict(synapses)
        self.bias = None if bias is None else parameter(bias)

    @property
    def readers(self) -> list[nn.Module]:
        """For every map of spikes, the layer that reads it."""
        layers = self.synapses.values()
        return [layer for layer in layers for _ in range(getattr(layer, "maps", 1))]

    def forward(self, *maps: Tensor | PackedSpikes) -> Tensor:
        count = len(self.readers)
        if len(maps) < count:
            raise ValueError(f"expected at least {count} maps; got {len(maps)}")
        read = 0
        currents: list[Tensor] = []
        for layer in self.synapses.values():
            own = getattr(layer, "maps", 1)
            currents.append(layer(*maps[read : read + own]))
            read += own
        currents += [as_dense(current) for current in maps[read:]]
        total = currents[0]
        for current in currents[1:]:
            total = total + current
        return total if self.bias is None else total + self.bias.to(total.dtype)

    @property
    def firing(self) -> int | None:
        """Which of the synapses runs as one op with the neurons behind the sum; None: none."""
        can = [n for n, layer in enumerate(self.synapses.values()) if can_fire(layer)]
        return can[-1] if can else None

    def fire(self, *maps: Tensor | PackedSpikes, neurons: FoldedLIF) -> PackedSpikes | None:
        """Run ``neurons(self(*maps), packed=True)`` with the last convolution and the neurons as
        one op, in inference; None where currents are of a type that is added as it is.
        """
        layers: list[Any] = list(self.synapses.values())
        at = self.firing
        assert at is not None
        counts = [getattr(layer, "maps", 1) for layer in layers]
        ends = list(itertools.accumulate(counts))
        of = [maps[end - count : end] for end, count in zip(ends, counts, strict=True)]
        dims = layers[at].current_dims
        currents: list[tuple[Any, Any]] = [
            *zip(layers, of, strict=True),
            *((None, (m,)) for m in maps[ends[-1] :]),
        ]
        # The sum of two is the same in either order; of more, those before the convolution come
        # first.
        before = [_added(*current, dims) for current in currents[: at if at < 2 else 0]]
        if at >= 2:
            total = layers[0](*of[0])
            for layer, own in currents[1:at]:
                total = total + layer(*own)
            of_maps_before: Any = as_map(total, dims)
            before = [of_maps_before]
        added = [*before, *(_added(*current, dims) for current in currents[at + 1 :])]
        if self.bias is not None:
            added.append(of_maps(self.bias, dims))
        if any((v[0] if isinstance(v, tuple) else v).dtype not in FLOATS for v in added):
            return None
        return layers[at].fire(*of[at], neurons=neurons, added=added)

    def reset_parameters(self) -> None:
        """Set the bias to 0."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return "" if self.bias is None else f"bias={list(self.bias.shape)}"
