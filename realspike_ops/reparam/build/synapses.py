"""From a linear operator on a map of spikes to a layer of synapses: first its size, then itself."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from realspike_ops.nn import (
    OneToOneSynapses,
    PiecewiseSpikeConv,
    SpikeConv2d,
    SpikeLinear,
    Synapses,
    UnsharedSpikeConv,
    UnsharedSpikeConv1d,
)
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.ops.huge_pages import empty_in_huge_pages
from realspike_ops.reparam.algebra.value import Source, Term
from realspike_ops.reparam.algebra.window import Window, block_diagonal
from realspike_ops.reparam.build.steps import Steps


def plan(term: Term, rank: int) -> "PlannedSynapses":
    """Choose the layer that computes a term, whose output is [N, F], [N, C, L] or [N, C, H, W]."""
    source, window = term.source, term.window
    if window.is_one_to_one:
        return _one_to_one(term, rank)
    if window.averages_the_whole_map and not source.varies_over_space:
        return _average(term, rank)
    if rank == 2 and window.reads_the_whole_map:
        kernel = block_diagonal(window.kernel, 1)  # [1, 1, 1, H, W, C, F]
        return _kernel(SpikeLinear, Term(source, replace(window, kernel=kernel)), rank)
    if source.varies_over_space:
        lines = source.rank == rank == 3
        return _kernel(UnsharedSpikeConv1d if lines else UnsharedSpikeConv, term, rank)
    return _kernel(SpikeConv2d if window.is_shared else PiecewiseSpikeConv, term, rank)


def _kernel(kind: type, term: Term, rank: int, sums: int = 0) -> "PlannedKernel":
    return PlannedKernel((term.source.step,), kind, term.source, term.window, rank, sums)


def _average(term: Term, rank: int) -> "PlannedKernel":
    """Plan an average over the map and the layers behind it.

    It is a 1 x 1 kernel whose currents are added up.
    """
    source, window = term.source, term.window
    pixel = Term(source, replace(window, kernel=window.kernel[:, :, :, :1, :1]))
    return _kernel(SpikeConv2d, pixel, rank, sums=math.prod(source.shape[1:]))


def _channels(window: Window) -> tuple[int, int] | None:
    everything = (window.first_channel, window.own_channels) == (0, window.channels)
    return None if everything else (window.first_channel, window.channels)


def _plain(bias: Tensor | None, dtype) -> Tensor | None:  # [C, 1, 1] -> [C]
    if bias is None:
        return None
    bias = bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return bias[:, 0, 0].contiguous() if tuple(bias.shape[1:]) == (1, 1) else bias.contiguous()


@dataclass(frozen=True)
class PlannedKernel:
    """A convolution or a linear layer that is not allocated yet."""

    sources: tuple[str, ...]  # the maps that it reads
    kind: type
    source: Source  # the first of them
    window: Window
    rank: int  # of its current: [N, F], [N, C, L] or [N, C, H, W]
    sums: int  # as in Synapses

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        kernel = tuple(self.window.kernel.shape)
        return (*self.window.out_shape[1:], *kernel[2:]) if self._is_unshared else kernel

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    @property
    def shared_weights(self) -> int:
        """The number of weights that an amplitude without variation over space would need."""
        return self.window.kernel.numel()

    def bytes(self, dtype: torch.dtype) -> int:
        return self.weights * dtype.itemsize

    @property
    def takes_bias(self) -> bool:
        """Whether the layer's own output is its current, so that it can add the bias on the way."""
        several = self.source.signed or len(self.sources) > 1
        moved = _channels(self.window) or (self.rank < 4 and not self._is_of_rank)
        return not (several or moved or self.sums or self.kind is PiecewiseSpikeConv)

    @property
    def _is_unshared(self) -> bool:
        return issubclass(self.kind, UnsharedSpikeConv)

    @property
    def _is_of_rank(self) -> bool:
        """Whether the layer itself gives features, or lines."""
        return self.kind in (SpikeLinear, UnsharedSpikeConv1d)

    def joined(self, other: "PlannedSynapses") -> "PlannedKernel | None":
        """Return one layer that reads the maps of both through one kernel, if they have the same.

        Where spikes are added to spikes, every map that meets in a sum reaches the same kernel; it
        stays one as long as the amplitudes are the same.
        """
        if not isinstance(other, PlannedKernel):
            return None
        own, others = (
            (p.kind, p.rank, p.sums, p.source.signed, p.source.rank, p.window.channels)
            for p in (self, other)
        )
        own_form, other_form = (
            (w.in_shape, w.kernel.shape, w.rows, w.columns, w.stride, w.padding, w.dilation)
            for w in (self.window, other.window)
        )
        same = own == others and own_form == other_form
        same = same and self.window.first_channel == other.window.first_channel
        same = same and _equal(self.source.amplitude, other.source.amplitude)
        if same and torch.equal(self.window.kernel, other.window.kernel):
            return replace(self, sources=(*self.sources, *other.sources))
        return None

    def rows(self) -> Iterator[Tensor]:  # [OW, G, KH, KW, Cin/G, Cout/G] float64 each
        """Yield the weight, one row of positions at a time, to hold little more than it."""
        window, amplitude = self.window, self.source.amplitude
        if amplitude is not None and self._is_unshared:
            yield from fold_into_weight.unshared_rows(
                window.kernel,
                amplitude.expand(window.in_shape),
                output_size=window.out_shape[1:],
                stride=window.stride,
                padding=window.padding,
                dilation=window.dilation,
                rows=window.rows,
                columns=window.columns,
            )
            return
        kernel = window.kernel
        if amplitude is not None and self.kind is SpikeLinear:
            kernel = kernel * amplitude.permute(1, 2, 0).unsqueeze(-1)
        elif amplitude is not None:
            per_channel = amplitude.expand(window.in_shape[0], 1, 1)
            kernel = kernel * per_channel.reshape(window.groups, 1, 1, -1, 1)
        yield from kernel

    def largest(self) -> Tensor:  # [Cout] float64, of its own output channels
        """Return the largest magnitude of the weights of every output channel."""
        rows = [row.abs().amax((0, 2, 3, 4)) for row in self.rows()]  # [G, Cout/G] each
        return torch.stack(rows).amax(0).flatten()

    def total(self, steps: Steps) -> Tensor:  # [Cout] float64, of its own output channels
        """Return the most that all its synapses, as they are stored, add to one neuron."""
        own = steps.own(self.window.own_range)
        totals = []
        for row in self.rows():
            stored = own.of_weights(row).double() - (0 if own.scale is None else 128)
            totals.append(stored.abs().sum((2, 3, 4)).amax(0))  # [G, Cout/G]
        return torch.stack(totals).amax(0).flatten() * len(self.sources) * max(1, self.sums)

    @property
    def synapses_of_a_neuron(self) -> int:
        """How many there are, at most."""
        return math.prod(self.window.kernel.shape[3:6]) * len(self.sources) * max(1, self.sums)

    def build(self, dtype: torch.dtype, bias: Tensor | None, steps: Steps) -> Synapses:
        """Allocate the layer; the bias is in these steps already."""
        own = steps.own(self.window.own_range)
        stored = torch.uint8 if dtype == torch.int8 else dtype
        weight = empty_in_huge_pages(self.shape, stored, self.window.kernel.device)
        for out, row in zip(weight, self.rows(), strict=True):
            out.copy_(own.of_weights(row))
        pad, padding = self._padding()
        geometry: dict[str, Any] = {
            "stride": self.window.stride,
            "dilation": self.window.dilation,
        }
        if self.sums:
            geometry = {"stride": 1, "dilation": 1}  # every position by itself
        if self.kind is PiecewiseSpikeConv:
            rows, columns = self.window.rows, self.window.columns
            layer = self.kind(weight, rows, columns, padding=padding, **geometry)
        elif self.kind is SpikeLinear:
            layer = SpikeLinear.from_weight(weight, _plain(bias, dtype))
        else:
            if self._is_unshared:
                H, W = self.window.in_shape[1:]
                geometry["input_size"] = (H + pad[2] + pad[3], W + pad[0] + pad[1])
            layer = self.kind.from_weight(weight, _plain(bias, dtype), padding=padding, **geometry)
        return Synapses(
            layer,
            maps=len(self.sources),
            signed=self.source.signed,
            pad=pad,
            channels=_channels(self.window),
            flatten=self.rank == 2 and not self._is_of_rank,
            sums=self.sums,
            reads=4 if self._reads_as_it_comes else self.source.rank,
            line=self.rank == 3 and not self._is_of_rank,
        )

    @property
    def _reads_as_it_comes(self) -> bool:
        return self.kind is UnsharedSpikeConv1d or (self.kind is SpikeLinear and self.source.flat)

    def _padding(self):
        """Return the padding of `Synapses`, and the padding of the layer itself."""
        window = self.window
        nothing, padding = (0, 0, 0, 0), window.padding
        if self.kind in (PiecewiseSpikeConv, SpikeLinear):
            return nothing, padding
        if self.sums:
            return nothing, (0, 0)
        axes = list(zip(
            window.out_shape[1:], window.stride, window.kernel_size, window.dilation,
            window.in_shape[1:], padding, strict=True,
        ))  # fmt: skip
        # The layers pad both sides alike; a window that ends elsewhere pads or cuts by itself.
        if all(
            p >= 0 and (size + 2 * p - (k - 1) * d - 1) // s + 1 == n
            for n, s, k, d, size, p in axes
        ):
            return nothing, padding
        bottom, right = ((n - 1) * s + (k - 1) * d + 1 - size - p for n, s, k, d, size, p in axes)
        top, left = padding
        return (left, right, top, bottom), (0, 0)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(*torch.broadcast_tensors(a, b))


@dataclass(frozen=True)
class PlannedOneToOne:
    """Synapses of one weight per neuron that are not allocated yet."""

    sources: tuple[str]
    coefficient: Tensor  # [1], [C, 1, 1], [C, H, W], or [F] of features; float64
    window: Window
    rank: int  # of its current: [N, F], [N, C, L] or [N, C, H, W]
    reads: int  # of the spikes
    kind = OneToOneSynapses
    takes_bias = False

    @property
    def weights(self) -> int:
        return self.coefficient.numel()

    @property
    def shared_weights(self) -> int:
        return self.window.in_shape[0]

    def bytes(self, dtype: torch.dtype) -> int:
        """Return the size; int8 stores float32, since one weight per neuron is small."""
        return self.weights * (4 if dtype == torch.int8 else dtype.itemsize)

    def joined(self, other: "PlannedSynapses") -> None:
        return None

    def largest(self) -> Tensor:
        return self.coefficient.abs().amax()

    def total(self, steps: Steps) -> Tensor:  # [Cout] float64, of its own output channels
        return self._in(steps).abs().expand(self.window.in_shape).amax((1, 2))

    synapses_of_a_neuron = 1

    def _in(self, steps: Steps) -> Tensor:
        numbers = self.coefficient
        if steps.scale is not None and not self._is_flat:
            numbers = numbers.view(-1, 1, 1) if numbers.dim() == 1 else numbers
        return steps.own(self.window.own_range).of(numbers)

    def build(self, dtype: torch.dtype, bias: Tensor | None, steps: Steps) -> Synapses:
        # The layer tells the signs of ternary spikes apart by itself.
        coefficient = self._in(steps)
        dtype = torch.float32 if dtype == torch.int8 else dtype
        layer = OneToOneSynapses(coefficient.to(dtype).contiguous())
        return Synapses(
            layer,
            channels=_channels(self.window),
            flatten=self.rank == 2 and not self._is_flat,
            reads=4 if self._is_flat else self.reads,
            line=self.rank == 3,
        )

    @property
    def _is_flat(self) -> bool:
        return self.rank == self.reads == 2


PlannedSynapses = PlannedKernel | PlannedOneToOne


@dataclass(frozen=True)
class PlannedNeurons:
    """A LIF layer that reads a planned current."""

    step: str
    layer: str  # as an error names it


@dataclass(frozen=True)
class PlannedCurrent:
    """The synapses of one step, before they are allocated."""

    synapses: list[PlannedSynapses]  # in the order of the step's inputs
    bias: Tensor | None  # [C, 1, 1] or [C, H, W] float64
    grid: tuple[int, int, int]  # its map
    rank: int  # of the current: [N, F] (the map flattened), [N, C, L] or [N, C, H, W]
    has_real_part: bool  # the last input of the step, added as it is
    neurons: list[PlannedNeurons]  # none: it becomes the output

    @property
    def flat(self) -> bool:
        return self.rank == 2

    @property
    def is_alone(self) -> bool:
        return len(self.synapses) == 1 and not self.has_real_part


def _one_to_one(term: Term, rank: int) -> PlannedOneToOne:
    source, window = term.source, term.window
    coefficient = window.kernel[..., 0, 0, 0, 0].permute(2, 0, 1)  # [C, R, Q]
    if not window.is_shared:
        rows, columns = (torch.tensor(index) for index in (window.rows, window.columns))
        coefficient = coefficient[:, rows][:, :, columns]
    if source.amplitude is not None:
        coefficient = coefficient * source.amplitude
    if source.flat and rank == 2:
        coefficient = coefficient.expand(source.shape).flatten()
    if (coefficient == coefficient.flatten()[0]).all():
        coefficient = coefficient.flatten()[:1]
    return PlannedOneToOne((source.step,), coefficient, window, rank, source.rank)
