"""From a tensor that moves the elements of a value about to the maps that a layer reads.

An operation that only moves elements is run on their numbers, and the result is its `Layout`. The
layout matters once a layer reads the result. Then the operation becomes part of the windows, or a
step moves the spikes, or, in front of neurons, the currents.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.nn import Rearrange
from realspike_ops.reparam.algebra import layers
from realspike_ops.reparam.algebra import value as algebra
from realspike_ops.reparam.algebra.value import Layout, Source, Term, Value
from realspike_ops.reparam.algebra.window import identity_window


class NoWindow(Exception):
    """Maps that no window makes of the spikes; the reason is its text."""


def layout_of(folding, value: Value) -> Layout:
    if value.layout is not None:
        return value.layout
    rows = rows_of(folding, value)
    ids = torch.arange(1, rows * value.elements + 1)
    return Layout(ids.view(rows, *value.shape), rows)


def rows_of(folding, value: Value) -> int:
    return folding.small_batch * (value.timesteps if value.time == "steps" else 1)


def tensor_of(layout: Layout, numbers: Tensor) -> Tensor | tuple[Tensor, ...]:  # [rows, E]
    """Write a number for every element where the layout has it."""
    numbers = torch.cat((numbers.new_zeros(1), numbers.flatten()))
    if isinstance(layout.ids, tuple):
        return tuple(numbers[ids] for ids in layout.ids)
    return numbers[layout.ids]


def laid_out(value: Value, layout: Layout) -> Value:
    """Return the value written as the layout says, without one where it is the plain one."""
    ids, rows = layout.ids, layout.rows
    if isinstance(ids, Tensor):
        size = rows * value.elements
        plain = ids.numel() == size and torch.equal(ids.flatten(), torch.arange(1, size + 1))
        for rank in (4, 3, 2):
            candidate = replace(value, rank=rank, layout=None)
            lines = rank != 3 or value.grid[1] == 1
            if plain and lines and tuple(ids.shape) == (rows, *candidate.shape):
                return candidate
    return replace(value, layout=layout)


def arranged(
    folding, value: Value, dims: int, every_row: bool = False
) -> tuple[Value, Tensor, Tensor, int]:
    """Return (value, rows, elements, count of the rows of a small batch).

    The last `dims` dimensions of the tensor hold these elements of the value's maps; -1 is a zero.
    The dimensions before them hold these rows. The value has its timesteps side by side as one row
    where they do not stay apart. With `every_row` it also has them so where the rows are not all
    there, in order.
    """
    layout = layout_of(folding, value)
    ids = layout.ids
    if not isinstance(ids, Tensor):
        return folding.refuse("it reads several tensors at once: read them one by one")
    lead = ids.shape[: ids.dim() - dims]
    ids = ids.reshape(math.prod(lead), -1)
    forms: list[tuple[Value | None, Tensor, int]] = [(value, ids, layout.rows)]
    if value.time == "steps":
        unrolled = side_by_side(value, Layout(ids, layout.rows))
        forms.append((None, unrolled.tensor, unrolled.rows))
    for form, ids, rows in forms:
        elements = (form or value).elements * (1 if form else value.timesteps)
        found = _aligned(ids, elements, rows)
        if found is None or (every_row and not torch.equal(found[0], torch.arange(rows))):
            continue
        return form or algebra.unrolled(value), found[0].view(lead), found[1], rows
    return folding.refuse(
        "its rows are not those of single samples, the same elements in every row: "
        "tensors must be [T*B, ...], timestep outermost, or [T, B, ...]"
    )


def side_by_side(value: Value, layout: Layout) -> Layout:
    """Return where the elements of `unrolled(value)` stand."""
    ids, T, E = layout.tensor, value.timesteps, value.elements
    B = layout.rows // T
    row, element = (ids - 1) // E, (ids - 1) % E
    t, b = row // B, row % B
    return Layout(torch.where(ids > 0, b * T * E + t * E + element + 1, 0), B)


def _aligned(ids: Tensor, elements: int, rows: int) -> tuple[Tensor, Tensor] | None:  # [N, E']
    read = ids > 0
    if len(ids) == rows and not read.any():
        return torch.arange(rows), torch.full_like(ids[0], -1)
    row = torch.where(read, (ids - 1) // elements, -1)
    element = torch.where(read, (ids - 1) % elements, -1)
    of_row = row.amax(1, keepdim=True) if ids.numel() else row[:, :1]
    same = ((row == of_row) | ~read).all() and read.any(1).all() and (element == element[:1]).all()
    return (of_row[:, 0], element[0]) if same and len(ids) else None


def mapped(folding, value: Value, rank: int, every_row: bool = False) -> tuple[Value, Layout]:
    """Return the maps in the last rank - 1 dimensions of a tensor, and how it writes the rows."""
    if value.layout is None and value.rank == rank:
        rows = rows_of(folding, value)
        return value, Layout(torch.arange(rows), rows)
    shape = tuple(layout_of(folding, value).tensor.shape[1 - rank :])
    value, lead, elements, rows = arranged(folding, value, rank - 1, every_row)
    return as_map(folding, value, elements, shape), Layout(lead, rows)


def on_rows(value: Value, rows: Layout) -> Value:
    """Return the value, which a layer made of the maps of `mapped`, for the rows of the tensor."""
    elements = torch.arange(value.elements).view(value.shape)
    ids = rows.tensor[(...,) + (None,) * elements.dim()] * value.elements + elements + 1
    return laid_out(value, Layout(ids, rows.rows))


def as_map(folding, value: Value, elements: Tensor, shape, for_neurons: bool = False) -> Value:
    """Return the value with maps of `shape`, [F], [C, L] or [C, H, W], made of these elements.

    Raises:
        NoWindow: if neither windows nor moved spikes make them.
    """
    rank = len(shape) + 1
    value = replace(value, layout=None)
    everything = torch.equal(elements, torch.arange(value.elements))
    grid = {2: lambda: (shape[0], 1, 1), 3: lambda: (shape[0], 1, shape[1]), 4: lambda: shape}
    grid = tuple(grid[rank]())
    if everything and (rank == 2 or grid == value.grid):
        return replace(value, rank=rank)
    if (elements < 0).all():
        size = value.grid[1:]
        value = _strided(value, [(1, -n) for n in size], grid[1:])  # from behind the map
        channels = [c if c < value.grid[0] else -1 for c in range(grid[0])]
        return replace(algebra.of_channels(value, channels), rank=rank)
    if rank == 2 and (channels := _whole_channels(elements, value.grid)) is not None:
        return replace(algebra.of_channels(value, channels), rank=2)
    separate = _separate(elements.view(grid), value.grid)
    spikes = _are_spikes(value)
    if separate is not None:
        channels, *pixels = separate
        strides = [_stride(p, size) for p, size in zip(pixels, value.grid[1:], strict=True)]
        own = [c for c in channels if c >= 0]
        whole = own == list(range(value.grid[0]))
        first = channels.index(own[0])
        whole = whole and channels[first : first + len(own)] == own
        grows = any(t.window.groups > 1 for t in value.terms) and not _are_runs(value, channels)
        if None not in strides and (whole or not (spikes or (for_neurons and grows))):
            value = _strided(value, strides, grid[1:])
            if channels != list(range(value.grid[0])):
                value = algebra.of_channels(value, channels)
            return replace(value, rank=rank)
    if spikes and not for_neurons:
        return _moved_spikes(folding, value, elements, grid, rank)
    raise NoWindow(
        f"maps {checks.shape_text(shape)} are not a part of maps {checks.shape_text(value.grid)}"
    )


def _whole_channels(elements: Tensor, grid) -> list[int] | None:
    """Return the channels that features are, one flattened behind the other."""
    pixels = grid[1] * grid[2]
    if pixels == 1 or len(elements) % pixels:
        return None
    elements = elements.view(-1, pixels)
    whole = elements[:, :1] + torch.arange(pixels)
    whole[elements[:, 0] < 0] = -1
    starts = (elements[:, 0] < 0) | (elements[:, 0] % pixels == 0)
    if not (torch.equal(whole, elements) and starts.all()):
        return None
    return (elements[:, 0] // pixels).tolist()


def _separate(elements: Tensor, grid) -> tuple[list[int], list[int], list[int]] | None:
    """Return the channel, row and column of every channel, row and column, -1 where it is zero;
    None where they depend on each other."""
    _, H, W = grid
    read = elements >= 0
    parts = (elements // (H * W), elements // W % H, elements % W)
    found = []
    for axis, part in enumerate(parts):
        others = tuple(d for d in range(3) if d != axis)
        found.append(torch.where(read, part, -1).amax(others))
    c, y, x = (f.view([-1 if d == axis else 1 for d in range(3)]) for axis, f in enumerate(found))
    told = torch.where((c >= 0) & (y >= 0) & (x >= 0), (c * H + y) * W + x, -1)
    return tuple(f.tolist() for f in found) if torch.equal(told, elements) else None


def _stride(pixels: list[int], size: int) -> tuple[int, int] | None:
    """Return (stride, padding) with pixels[y] = y * stride - padding inside the map, -1 outside."""
    inside = [(y, p) for y, p in enumerate(pixels) if p >= 0]
    if not inside:
        return None
    (y, p), (last_y, last_p) = inside[0], inside[-1]
    strides = [(last_p - p) // (last_y - y)] if last_y > y else [1, size]
    for stride in strides:
        told = [n * stride - (y * stride - p) for n in range(len(pixels))]
        if stride > 0 and pixels == [t if 0 <= t < size else -1 for t in told]:
            return stride, y * stride - p
    return None


def _are_runs(value: Value, channels: list[int]) -> bool:
    """Whether every term's channels stay side by side, or are not there at all."""
    for term in value.terms:
        own = list(term.window.own_range)
        read = [c for c in channels if c in term.window.own_range]
        if read:
            first = channels.index(read[0])
            if read != own or channels[first : first + len(own)] != own:
                return False
    return True


def _strided(value: Value, strides, size) -> Value:
    (sh, ph), (sw, pw) = strides
    if (sh, sw, ph, pw) == (1, 1, 0, 0) and tuple(size) == tuple(value.grid[1:]):
        return value
    return algebra.apply(layers.strided(value.grid, size, (sh, sw), (ph, pw)), value)


def _are_spikes(value: Value) -> bool:
    """Whether every element is a sum of spikes, scaled and shifted."""
    return value.time == "steps" and all(
        t.window.is_one_to_one and t.window.own_channels == t.source.shape[0] for t in value.terms
    )


def _moved_spikes(folding, value: Value, elements: Tensor, grid, rank: int) -> Value:
    terms = []
    for term in value.terms:
        source, window = term.source, term.window
        C, H, W = source.shape
        pixels = elements % (H * W)
        channel = elements // (H * W) - window.first_channel
        own = torch.where((channel >= 0) & (channel < C) & (elements >= 0), channel, -1)
        own = torch.where(own >= 0, own * H * W + pixels, -1)
        if (own < 0).all():
            continue
        shape = {2: grid[:1], 3: (grid[0], grid[2]), 4: grid}[rank]
        step = folding.spikes(f"{folding.layer_name}_moved", Rearrange(own, shape), source.step)
        amplitude = _moved_amplitude(term, own, grid)
        moved = Source(step, grid, rank, amplitude, source.signed, source.timesteps)
        terms.append(Term(moved, identity_window(grid)))
    constant = value.constant
    if constant is not None:
        constant = _picked(constant.expand(value.grid), elements, 0.0).view(grid)
        constant = algebra.compressed(constant)
    if not terms:
        folding.refuse("nothing of the spikes is left")
    return replace(value, grid=grid, terms=tuple(terms), constant=constant, rank=rank)


def _picked(numbers: Tensor, elements: Tensor, other: float) -> Tensor:
    return torch.cat((numbers.flatten(), numbers.new_full((1,), other)))[elements]


def _moved_amplitude(term: Term, elements: Tensor, grid) -> Tensor | None:
    source, kernel = term.source, term.window.kernel
    if source.amplitude is None and bool((kernel == 1).all()):
        return None
    rows, columns = (torch.tensor(index) for index in (term.window.rows, term.window.columns))
    factor = kernel[..., 0, 0, 0, 0].permute(2, 0, 1)[:, rows][:, :, columns]  # [C, H, W]
    if source.amplitude is not None:
        factor = factor * source.amplitude
    amplitude = _picked(factor.expand(source.shape), elements, math.nan).view(grid)
    low, high = (
        torch.nan_to_num(amplitude, nan=fill, posinf=fill, neginf=fill)
        for fill in (math.inf, -math.inf)
    )
    low, high = low.amin((1, 2), True), high.amax((1, 2), True)
    if (low >= high).all():
        return torch.where(low.isfinite(), low, 1.0)
    return torch.nan_to_num(amplitude, nan=0.0)
