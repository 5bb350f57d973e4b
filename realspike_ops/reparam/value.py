"""What a tensor between two LIF layers is: a sum of linear operators on maps of spikes.

    value = sum over terms of window(amplitude * spikes) + constant + real

`real` is a part that the image reaches without passing a LIF layer: a step of the encoding.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realspike_ops.reparam.layers import Affine
from realspike_ops.reparam.window import Window, compose, identity_window, merge, placed, scaled

# Differences of a constant over space that are float64 rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True)
class Source:
    """A map of spikes in the folded network; in the trained one it was amplitude * spikes."""

    step: str
    shape: tuple[int, int, int]  # features are [F, 1, 1]
    flat: bool  # whether the spikes come as [N, F]
    amplitude: "Tensor | None"  # three dimensions, each 1 or full; float64
    signed: bool  # ternary
    timesteps: int

    @property
    def varies_over_space(self) -> bool:
        return self.amplitude is not None and tuple(self.amplitude.shape[1:]) != (1, 1)


@dataclass(frozen=True)
class Term:
    source: Source
    window: Window


@dataclass(frozen=True)
class Value:
    """The value of a tensor [N, C, H, W], or [N, F] where `flat`: then `grid` is the map that was
    flattened.

    `time` tells the leading dimensions: "steps" [T*B], "split" [T, B] or "averaged" [B].
    """

    grid: "tuple[int, int, int] | None"
    terms: tuple[Term, ...] = ()
    constant: "Tensor | None" = None  # [C, 1, 1] or [C, H, W] float64
    real: "str | None" = None
    flat: bool = False
    time: str = "steps"
    layer: "str | None" = None  # the last layer with weights on the way
    average: "str | None" = None  # what averages over time

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
            and source.flat == self.flat
            and window.is_one_to_one
            and window.own_channels == window.channels
            and bool((window.kernel == 1).all())
        )

    @property
    def shape(self) -> tuple[int, ...]:
        C, H, W = self.grid
        return (C * H * W,) if self.flat else self.grid

    @property
    def timesteps(self) -> int:
        return self.terms[0].source.timesteps


def of_source(source: Source) -> Value:
    window = identity_window(source.shape)
    return Value(source.shape, (Term(source, window),), flat=source.flat)


def compressed(constant: "Tensor | None") -> "Tensor | None":
    """Store a constant once per channel where it does not vary inside the maps."""
    if constant is None or tuple(constant.shape[1:]) == (1, 1):
        return constant
    smallest, largest = constant.amin((1, 2), True), constant.amax((1, 2), True)
    if (largest - smallest <= _ROUNDING * largest.abs()).all():
        return constant[:, :1, :1].clone()
    return constant


def apply(layer: Affine, value: Value) -> Value:
    """Return layer(value). Where there is a real part, the layer's shift is part of that."""
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
            same = other.source is term.source
            joined = merge(other.window, term.window) if same else None
            if joined is not None:
                kept[n] = Term(term.source, joined)
                break
        else:
            kept.append(term)
    return tuple(kept)


def add_constants(a: "Tensor | None", b: "Tensor | None") -> "Tensor | None":
    return a if b is None else b if a is None else a + b


def add(a: Value, b: Value, real: "str | None") -> Value:
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
