"""Operations that move elements of sums of spikes, join them, or leave them as they are.

A rule takes the `Folding`, then the arguments of the torch function of its name, in which tensors
that depend on the input are `Value`s and all others are tensors. It returns a `Value`, or refuses.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.reparam.algebra import layers
from realspike_ops.reparam.algebra import value as algebra
from realspike_ops.reparam.algebra.layout import (
    Layout,
    NoWindow,
    arranged,
    laid_out,
    layout_of,
    mapped,
    on_rows,
    tensor_of,
)
from realspike_ops.reparam.algebra.value import Value
from realspike_ops.reparam.errors import ReparameterizationError

# The most features that a flattened map has where a matrix writes it.
MOST_FEATURES = 4096


def values_in(arguments) -> list[Value]:
    """Return the values among arguments, each once."""
    found: list[Value] = []
    for item in arguments:
        inner = values_in(item) if isinstance(item, (tuple, list)) else [item]
        found += [v for v in inner if isinstance(v, Value) and v not in found]
    return found


def moved(folding, *args, **kwargs):
    """Move elements about in any way: the operation is run on their numbers."""
    values = values_in([*args, *kwargs.values()])
    if len(values) > 1:
        return joined(folding, values)
    (value,) = values
    return laid_out(value, _moved_numbers(folding, value, values))


def _moved_numbers(folding, value: Value, values: list[Value]) -> Layout:
    """Return where the elements of one value are in the result; elements of others are 0."""
    layouts = {v: layout_of(folding, v) for v in values}
    zeros = {v: tensor_of(at, torch.zeros(at.rows, v.elements)) for v, at in layouts.items()}
    zeros = {v: _double(tensor) for v, tensor in zeros.items()}
    ids = layouts[value].ids
    numbers = folding.rerun(zeros | {value: _double(ids)})
    if any(t.any() for t in _tensors(folding.rerun(zeros))):
        folding.refuse("it writes other constants than zeros beside the spikes")
    whole = [t.long() for t in _tensors(numbers)]
    return Layout(whole[0] if isinstance(numbers, Tensor) else tuple(whole), layouts[value].rows)


def _double(tensors):
    if isinstance(tensors, Tensor):
        return tensors.double()
    return tuple(t.double() for t in tensors)


def _tensors(tensors) -> list[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def joined(folding, values: list[Value]) -> Value:
    """Join tensors to one: a sum in which each stands with zeros in the place of the others."""
    if not all(v.terms and v.real is None for v in values):
        folding.refuse("it joins spikes with real values")
    return summed(folding, [laid_out(v, _moved_numbers(folding, v, values)) for v in values])


def summed(folding, parts: list[Value]) -> Value:
    """Return the sum of values with terms, which are tensors of one shape."""
    parts = with_common_rows(parts)
    if len({(p.time, p.grid, p.rank) for p in parts}) == 1 and _same_layouts(parts):
        return _total(parts)
    shape = next((p.layout.tensor.shape for p in parts if p.layout is not None), None)
    dims = parts[0].rank if shape is None else len(shape)
    # The rows are in the first dimension, in the first two, or, in order, in another one.
    ways = [(0, 1, False, 3), (0, 2, False, 3), (0, 1, False, 1)]
    ways += [(d, 1, True, most) for d in range(dims) for most in (3, 1)]
    reasons = []
    for front, lead, every_row, most in ways:
        if lead < dims:
            try:
                return _summed_by_rows(folding, parts, front, lead, every_row, most)
            except ReparameterizationError as refusal:
                reasons.append(refusal)
    raise reasons[0]


def _summed_by_rows(folding, parts: list[Value], front, lead, every_row, most: int) -> Value:
    """Return the sum of values whose rows stand together.

    `front` is the dimension of the rows, `lead` their number of dimensions; `most` is how many
    dimensions of the maps are told apart.
    """
    read, shape = [], ()
    for part in parts:
        layout = layout_of(folding, part)
        ids = layout.tensor.movedim(front, 0)
        shape = ids.shape
        rank = min(len(shape) - lead, most) + 1
        ids = ids.reshape(*shape[:lead], -1, *shape[len(shape) - rank + 2 :])
        written = replace(part, layout=Layout(ids, layout.rows))
        try:
            read.append(mapped(folding, written, rank, every_row))
        except NoWindow as reason:
            if rank > 2 or part.elements > MOST_FEATURES:
                folding.refuse(str(reason))
            read.append(_chosen(folding, written, every_row))
    rows = read[0][1]
    if not all(torch.equal(rows.ids, other.ids) for _, other in read):
        folding.refuse("it adds tensors whose rows are in different orders")
    maps = _with_common_grids(folding, with_common_rows([value for value, _ in read]))
    total = on_rows(_total(maps), rows)
    ids = layout_of(folding, total).tensor.reshape(shape).movedim(0, front)
    return laid_out(total, Layout(ids, rows.rows))


def _chosen(folding, value: Value, every_row: bool) -> tuple[Value, Layout]:
    """`mapped`, for any choice of elements as features."""
    value, rows, elements, count = arranged(folding, value, 1, every_row)
    matrix = torch.eye(value.elements + 1, dtype=torch.float64)[elements, :-1]  # -1: no element
    value = algebra.apply(layers.linear(value.grid, matrix), replace(value, layout=None))
    return replace(value, rank=2), Layout(rows, count)


def _same_layouts(parts: list[Value]) -> bool:
    first = parts[0].layout
    if first is None or any(p.layout is None for p in parts):
        return all(p.layout is None for p in parts)
    return all(
        p.layout.rows == first.rows
        and isinstance(p.layout.ids, Tensor)
        and p.layout.ids.shape == first.tensor.shape
        and torch.equal(p.layout.ids, first.tensor)
        for p in parts
        if p.layout is not None
    )


def _total(parts: list[Value]) -> Value:
    total = parts[0]
    for part in parts[1:]:
        total = algebra.add(total, part, total.real or part.real)
    return total


def with_common_rows(values: list[Value]) -> list[Value]:
    """Write sums over time as sums of timesteps where others are."""
    return (
        [algebra.by_timestep(v) for v in values]
        if any(v.time == "single" for v in values)
        else values
    )


def _with_common_grids(folding, values: list[Value]) -> list[Value]:
    """Write flattened maps as features where their maps differ."""
    if len({v.time for v in values}) > 1:
        folding.refuse("it joins timesteps with an average over them")
    if len({v.grid for v in values}) == 1:
        return values
    if not all(v.flat for v in values):
        shapes = ", ".join(checks.shape_text(v.shape) for v in values)
        folding.refuse(f"it joins maps of different sizes: {shapes}")
    return [as_features(folding, v) for v in values]


def as_features(folding, value: Value) -> Value:
    features = value.elements
    if value.grid == (features, 1, 1):
        return value
    if features > MOST_FEATURES:
        folding.refuse(
            f"it joins maps of different sizes that were flattened to {features} features, more "
            f"than {MOST_FEATURES}: give each a linear layer of its own and add the results"
        )
    identity = torch.eye(features, dtype=torch.float64)
    return algebra.apply(layers.linear(value.grid, identity), value)


def cat(folding, tensors, dim=0):
    """Join plain maps along their channels as they are, and other tensors by their numbers."""
    values = [v for v in tensors if isinstance(v, Value)] if not isinstance(tensors, Value) else []
    plain = (
        not isinstance(tensors, Value)
        and 1 < len(values) == len(tensors)
        and all(v.terms and v.real is None and v.layout is None for v in values)
    )
    if not plain or dim % (values[0].rank) != 1 or len({v.time for v in values}) > 1:
        return moved(folding, tensors, dim)
    if len({v.grid[1:] for v in values}) > 1:
        values = [as_features(folding, v) for v in values]
    return algebra.concatenate(values)


def unchanged(folding, input, *args, **kwargs):
    return input


def cast(folding, input, *args, **kwargs):
    """Pass on a cast to the type that the tensor has; a cast to another type rounds."""
    if not isinstance(input, Value):
        # A constant, cast to the type of what depends on the input.
        like = {v: _zeros(folding, v) for v in values_in([*args, *kwargs.values()])}
        folding.node.meta["val"] = folding.rerun(like)
        return None
    dtype = folding.dtype_of(input)
    result = folding.rerun({input: _zeros(folding, input)})
    if not isinstance(result, Tensor) or result.dtype != dtype:
        kind = getattr(result, "dtype", "something else")
        folding.refuse(f"it casts {dtype} to {kind}: a folded network has one type")
    return input


def _zeros(folding, value: Value) -> Any:
    layout = layout_of(folding, value)
    numbers = torch.zeros((layout.rows, value.elements), dtype=folding.dtype_of(value))
    return tensor_of(layout, numbers)


def dropout(folding, input, p=0.5, training=True, inplace=False):
    # The function drops in eval mode too, unless it is told not to.
    return folding.refuse("training=True: it drops in eval mode too") if training else input


def by_matrix(folding, *args, **kwargs):
    """Fold any other linear operation on every sample: it is run on a basis."""
    values = values_in([*args, *kwargs.values()])
    if len(values) > 1:
        folding.refuse("a product of two values that depend on the input is not linear")
    (value,) = values
    layout = layout_of(folding, value)
    E, T = value.elements, value.timesteps if value.time == "steps" else 1
    B, dtype = layout.rows // T, folding.dtype_of(value)
    if T * E > MOST_FEATURES:
        folding.refuse(
            f"only up to {MOST_FEATURES} features (of all timesteps) can be told by their matrix; "
            f"got {T} x {E}"
        )

    def run(numbers: Tensor) -> Tensor:  # [rows, E] -> [the tensor's elements]
        return folding.rerun({value: tensor_of(layout, numbers.to(dtype))}).detach()

    probe = torch.randn((T, B, E), generator=torch.Generator().manual_seed(0)).to(dtype)
    shift = run(torch.zeros_like(probe))
    out = run(probe) - shift
    of_one = torch.eye(B, dtype=dtype)[..., None]
    samples = [(run(probe * only) != shift).flatten() for only in of_one]
    owners = torch.stack(samples).sum(0)
    if owners.amax() > 1:
        folding.refuse("it mixes the samples of a batch")
    if shift.flatten()[owners == 0].any():
        folding.refuse("it writes other constants than zeros beside the spikes")
    if owners.amax() == 0:
        folding.refuse("nothing of the spikes is left")
    places = [touched.nonzero()[:, 0] for touched in samples]
    if len({len(p) for p in places}) > 1:
        folding.refuse("it does not treat all samples alike")
    matrix = torch.zeros((len(places[0]), T, E), dtype=torch.float64)
    for t in range(T):
        for e in range(E):
            basis = torch.zeros_like(probe)
            basis[t, 0, e] = 1
            matrix[:, t, e] = (run(basis) - shift).flatten()[places[0]]
    told = torch.stack([torch.einsum("kte,te->k", matrix, probe[:, b].double()) for b in range(B)])
    got = torch.stack([out.flatten()[p].double() for p in places])
    shifts = torch.stack([shift.flatten()[p].double() for p in places])
    size = torch.einsum("kte,te->k", matrix.abs(), probe.double().abs().amax(1))
    wrong = (told - got).abs() > 1e-4 * (size + shifts.abs())
    if wrong.any() or (shifts != shifts[:1]).any():
        folding.refuse("it does not treat all samples alike, or is not linear")
    ids = torch.zeros(out.numel(), dtype=torch.int64)
    steps = _of_every_step(matrix) if T > 1 else None
    if T == 1:
        steps = matrix[:, 0], torch.arange(len(matrix))[None]
    elif steps is not None and (shifts[0, steps[1]] != shifts[0, steps[1][0]]).any():
        steps = None
    own, order = steps or (matrix.flatten(1), torch.arange(len(matrix))[None])
    value, rows = (value, T * B) if steps else (algebra.unrolled(value), B)
    K = len(own)
    for t, at in enumerate(order):
        for b, place in enumerate(places):
            ids[place[at]] = (t * B + b) * K + torch.arange(K) + 1
    bias = shifts[0, order[0]] if shifts.any() else None
    result = replace(algebra.apply(layers.linear(value.grid, own, bias), value), rank=2)
    return laid_out(result, Layout(ids.view(out.shape), rows))


def _of_every_step(matrix: Tensor) -> tuple[Tensor, Tensor] | None:  # [K, T, E]
    """Return the matrix of one timestep, and its rows at every timestep."""
    read = matrix.abs().amax(2) > 0  # [K, T]
    order = [r.nonzero()[:, 0] for r in read.T]
    if (read.sum(1) != 1).any() or len({len(o) for o in order}) > 1:
        return None
    blocks = [matrix[o, t] for t, o in enumerate(order)]
    same = all(torch.equal(block, blocks[0]) for block in blocks)
    return (blocks[0], torch.stack(order)) if same else None


def or_by_matrix(rule):
    """Fold by a matrix where no window of the maps that `rule` reads does."""

    def either(folding, input, *args, **kwargs):
        try:
            return rule(folding, input, *args, **kwargs)
        except NoWindow as reason:
            if input.elements > MOST_FEATURES:
                folding.refuse(
                    f"{reason}; where there are more than {MOST_FEATURES} features, "
                    "neurons must stand between"
                )
            return by_matrix(folding, input)

    return either


def through(folding, layer, value: Value, rank: int) -> Value:
    """Apply layer(shape) -> `Affine` to the maps of the last rank - 1 dimensions."""
    value, rows = mapped(folding, value, rank)
    return on_rows(replace(algebra.apply(layer(value.grid), value), rank=rank), rows)
