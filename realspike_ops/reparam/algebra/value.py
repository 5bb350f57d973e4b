"""The value of a tensor between two LIF layers: a sum of linear operators on maps of spikes.

    value = sum over terms of window(amplitude * spikes) + constant + real

`real` is a step of the encoding: the part of the value that the image reaches past all LIF layers.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realspike_ops.reparam.algebra.layers import Affine
from realspike_ops.reparam.algebra.window import (
    Window,
    compose,
    identity_window,
    merge,
    placed,
    reindexed,
    scaled,
)

# Differences of a constant over space that are float64 rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Source:
    """A map of spikes in the folded network; in the trained one it was amplitude * spikes."""

    step: str
    shape: tuple[int, int, int]  # features are [F, 1, 1], lines [C, 1, L]
    rank: int  # of the spikes: [N, F], [N, C, L] or [N, C, H, W]
    amplitude: Tensor | None  # three dimensions, each 1 or full; float64
    signed: bool  # ternary
    timesteps: int
    at: int | None = None  # one timestep alone: [B, ...]

    @property
    def flat(self) -> bool:
        return self.rank == 2

    @property
    def varies_over_space(self) -> bool:
        return self.amplitude is not None and tuple(self.amplitude.shape[1:]) != (1, 1)


@dataclass(frozen=True)
class Term:
    source: Source
    window: Window


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the elements of a value stand in a tensor, for a small batch.

    `ids` has the shape of the tensor. It is 0 where the tensor is 0, and elsewhere
    1 + row * elements + element of the value's grid. Several tensors have several `ids`.
    """

    ids: Tensor | tuple[Tensor, ...]  # int64
    rows: int  # of the small batch: T*B, or B

    @property
    def tensor(self) -> Tensor:
        """The ids of one tensor. What reads several at once is refused: a rule's TypeError is."""
        if not isinstance(self.ids, Tensor):
            raise TypeError("it reads several tensors at once: read them one by one")
        return self.ids


@dataclass(frozen=True, eq=False)
class Value:
    """The value of a tensor: maps of `grid`, one per row, and how the tensor writes them.

    Without a layout the tensor is [N, C, H, W], [N, C, L] (`rank` 3; H = 1) or [N, F] (`rank` 2;
    `grid` is the map that was flattened). `time` tells the rows: "steps" T*B; "averaged" B, sums
    over the timesteps; "single" B, of sources at one timestep each.
    """

    grid: tuple[int, int, int]
    terms: tuple[Term, ...] = ()
    constant: Tensor | None = None  # [C, 1, 1] or [C, H, W] float64
    real: str | None = None
    rank: int = 4
    time: str = "steps"
    layer: str | None = None  # the last layer with weights on the way
    average: str | None = None  # the layer that averages over time
    layout: Layout | None = None

    @property
    def is_real(self) -> bool:
        return not self.terms

    @property
    def is_spikes(self) -> bool:
        """Whether it is one map of spikes as it was emitted."""
        if len(self.terms) != 1 or self.constant is not None or self.real is not None:
            return False
        source, window = self.terms[0].source, self.terms[0].window
        return (
            source.amplitude is None
            and source.rank == self.rank
            and source.at is None
            and window.is_one_to_one
            and window.own_channels == window.channels
            and bool((window.kernel == 1).all())
        )

    @property
    def flat(self) -> bool:
        return self.rank == 2

    @property
    def elements(self) -> int:
        return math.prod(self.grid)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's without its rows, if it has no layout."""
        C, H, W = self.grid
        return {2: (C * H * W,), 3: (C, W), 4: (C, H, W)}[self.rank]

    @property
    def timesteps(self) -> int:
        return self.terms[0].source.timesteps


def of_source(source: Source) -> Value:
    window = identity_window(source.shape)
    return Value(source.shape, (Term(source, window),), rank=source.rank)


def compressed(constant: Tensor | None) -> Tensor | None:
    """Store a constant once per channel where it does not vary inside the maps."""
    if constant is None or tuple(constant.shape[1:]) == (1, 1):
        return constant
    smallest, largest = constant.amin((1, 2), True), constant.amax((1, 2), True)
    if (largest - smallest <= _ROUNDING * largest.abs()).all():
        return constant[:, :1, :1].clone()
    return constant


def apply(layer: Affine, value: Value) -> Value:
    """Return layer(value). The shift of the layer belongs to the real part, if there is one."""
    constant = value.constant
    shifts = layer.shifts and value.real is None
    if constant is not None or shifts:
        device = layer.window.kernel.device
        full = torch.zeros(value.grid, dtype=torch.float64, device=device)
        shifted = layer.of(full if constant is None else full + constant)
        if layer.shifts and not shifts:
            shifted = shifted - layer.of(full)
        constant = compressed(shifted)
    terms = merged([Term(t.source, compose(layer.window, t.window)) for t in value.terms])
    return replace(value, grid=layer.window.out_shape, terms=terms, constant=constant)


def merged(terms: list[Term]) -> tuple[Term, ...]:
    """Join the terms of one source where that stores no more weights."""
    kept: list[Term] = []
    for term in terms:
        for n, other in enumerate(kept):
            same = (other.source.step, other.source.at) == (term.source.step, term.source.at)
            joined = merge(other.window, term.window) if same else None
            if joined is not None:
                kept[n] = Term(term.source, joined)
                break
        else:
            kept.append(term)
    return tuple(kept)


def add_constants(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def add(a: Value, b: Value, real: str | None) -> Value:
    """Return a + b, whose real part is `real`."""
    return replace(
        a,
        terms=merged([*a.terms, *b.terms]),
        constant=add_constants(a.constant, b.constant),
        real=real,
        layer=a.layer or b.layer,
        average=a.average or b.average,
    )


def scale(value: Value, factor: float) -> Value:
    """Return factor * value, without its real part."""
    terms = tuple(Term(t.source, scaled(t.window, factor)) for t in value.terms)
    constant = None if value.constant is None else value.constant * factor
    return replace(value, terms=terms, constant=constant)


def concatenate(values: list[Value]) -> Value:
    """Return the values side by side along the channels; their maps have the same size."""
    channels = sum(value.grid[0] for value in values)
    size = values[0].grid[1:]
    terms, first = [], 0
    constant = None
    for value in values:
        terms += [Term(t.source, placed(t.window, first, channels)) for t in value.terms]
        if value.constant is not None:
            if constant is None:
                constant = value.constant.new_zeros((channels, *size))
            constant[first : first + value.grid[0]] += value.constant
        first += value.grid[0]
    return replace(
        values[0],
        grid=(channels, *size),
        terms=merged(terms),
        constant=_per_channel(constant, values),
    )


def _per_channel(constant, values):
    varies = any(v.constant is not None and v.constant.shape[1:] != (1, 1) for v in values)
    return constant if constant is None or varies else constant[:, :1, :1].clone()


def by_timestep(value: Value) -> Value:
    """Return a sum over the timesteps with every timestep's spikes as sources of their own."""
    if value.time != "averaged":
        return value
    terms = merged([_at(t, term) for t in range(value.timesteps) for term in value.terms])
    return replace(value, terms=terms, time="single")


def unrolled(value: Value) -> Value:  # grid [C, H, W] -> [T*C, H, W]
    """Return a value with a row for every timestep as one with the timesteps side by side."""
    T, C = value.timesteps, value.grid[0]
    terms = []
    for t in range(T):
        placed_terms = (_at(t, term) for term in value.terms)
        terms += [Term(p.source, placed(p.window, t * C, T * C)) for p in placed_terms]
    constant = value.constant
    if constant is not None:
        constant = constant.repeat(T, 1, 1)
    grid = (T * C, *value.grid[1:])
    return replace(value, grid=grid, terms=tuple(terms), constant=constant, time="single")


def _at(t: int, term: Term) -> Term:
    return Term(replace(term.source, at=t), term.window)


def of_channels(value: Value, channels: list[int]) -> Value:
    """Return the value with `channels` of its own as channels; -1: zeros."""
    terms = []
    for term in value.terms:
        window = reindexed(term.window, channels)
        if window is not None:
            terms.append(Term(term.source, window))
    constant = value.constant
    if constant is not None:
        constant = torch.cat((constant, torch.zeros_like(constant[:1])))[channels]
    grid = (len(channels), *value.grid[1:])
    return replace(value, grid=grid, terms=tuple(terms), constant=constant)
