"""Sums, scaling by constants, and averages over maps and over time.

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
from realspike_ops.reparam.algebra.layout import Layout, laid_out, layout_of, side_by_side
from realspike_ops.reparam.algebra.value import Value
from realspike_ops.reparam.rules.elementwise import scaled_and_shifted
from realspike_ops.reparam.rules.shape import MOST_FEATURES, summed


def _tensor(constant) -> Tensor:
    # A number of Python is not rounded to float32 on the way.
    return torch.as_tensor(constant, dtype=torch.float64).detach()


def add(folding, input, other, *, alpha=1):
    if not isinstance(other, Value):
        shift = _tensor(other) * alpha
        one = torch.ones((), dtype=torch.float64)
        return input if not shift.any() else _affine(folding, input, one, shift)
    if not isinstance(input, Value):
        return add(folding, _times(folding, other, alpha), input)
    shapes = [folding.shape_of(v) for v in (input, other)]
    if shapes[0] != shapes[1]:
        shown = " and ".join(checks.shape_text(shape) for shape in shapes)
        folding.refuse(f"it adds maps of different sizes, {shown}")
    a, b = input, other if alpha == 1 else _times(folding, other, alpha)
    real = a.real or b.real
    if a.real and b.real:
        real = folding.encode(torch.add, (a.real, b.real))
    if not (a.terms and b.terms):
        a, b = (b, a) if a.is_real else (a, b)
        return algebra.add(a, b, real)
    total = replace(summed(folding, [a, b]), real=real)
    folding.sums[id(total)] = total, a, b
    return total


def _affine(folding, value: Value, scale: Tensor, shift: Tensor | None) -> Value:
    """Scale and shift the spikes' part; the shift is added once, and not to the real part."""
    spiking = value if value.real is None else replace(value, real=None)
    result = scaled_and_shifted(folding, spiking, scale, shift)
    return replace(result, real=value.real)


def sub(folding, input, other, *, alpha=1):
    return add(folding, input, other, alpha=-alpha)


def rsub(folding, input, other, *, alpha=1):
    return add(folding, other, input, alpha=-alpha)


def _times(folding, value: Value, factor) -> Value:
    if value.is_real:
        return replace(value, real=_scaled_real(folding, value, factor))
    return replace(algebra.scale(value, float(factor)), real=_scaled_real(folding, value, factor))


def _scaled_real(folding, value: Value, factor) -> str | None:
    return value.real and folding.encode(torch.mul, (value.real,), factor)


def neg(folding, input):
    return _times(folding, input, -1)


def mul(folding, input, other):
    if isinstance(input, Value) and isinstance(other, Value):
        folding.refuse("a product of two values that depend on the input is not linear")
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    result = _affine(folding, value, _tensor(factor), None)
    return replace(result, real=_scaled_real(folding, value, factor))


def truediv(folding, input, other, *, rounding_mode=None):
    if isinstance(other, Value) or rounding_mode is not None:
        folding.refuse("only a division by a constant is linear")
    result = _affine(folding, input, 1 / _tensor(other), None)
    real = input.real and folding.encode(torch.div, (input.real,), other)
    return replace(result, real=real)


def _over_time(folding, value: Value, timesteps: int, is_mean: bool) -> Value:
    """Add up the timesteps of every element; the rows of the result are B."""
    if value.time != "steps" or timesteps != value.timesteps:
        folding.refuse(f"it averages {timesteps} timesteps of {value.timesteps}")
    terms = value.terms
    constant = value.constant
    if is_mean:
        terms = algebra.scale(value, 1 / timesteps).terms
    elif constant is not None:
        constant = constant * timesteps
    return replace(
        value, terms=terms, constant=constant, time="averaged", average=folding.layer_name
    )


def _one_tensor(folding, value: Value) -> Layout:
    layout = layout_of(folding, value)
    if not isinstance(layout.ids, Tensor):
        folding.refuse("it reads several tensors at once: read them one by one")
    return layout


def over_time(is_mean):
    def rule(folding, input, module):
        timesteps = module.timesteps
        layout = _one_tensor(folding, input)
        split = Layout(layout.tensor.unflatten(0, (timesteps, -1)), layout.rows)
        result = _sum_of_timesteps(folding, input, split, {0}, is_mean)
        if result is None:
            return folding.refuse(f"it averages {timesteps} timesteps of {input.timesteps}")
        return laid_out(*result)

    return rule


def reduction(is_mean):
    def rule(folding, input, dim=None, keepdim=False, **kwargs):
        if kwargs.get("dtype") is not None:
            folding.refuse("dtype=: folded currents are added in one type")
        layout = _one_tensor(folding, input)
        rank = layout.tensor.dim()
        dims = {d % rank for d in ((dim,) if isinstance(dim, int) else dim or range(rank))}
        shape = [1 if d in dims else n for d, n in enumerate(layout.tensor.shape)]
        shape = shape if keepdim else [n for d, n in enumerate(shape) if d not in dims]
        result, layout = _reduced(folding, input, layout, dims, is_mean)
        return laid_out(result, Layout(layout.tensor.reshape(shape), layout.rows))

    return rule


def _reduced(folding, value: Value, layout: Layout, dims: set[int], is_mean: bool):
    """Return the sum over dimensions, and its layout: first over timesteps, then elements."""
    for time in [dims, *({d} for d in sorted(dims))]:
        result = _sum_of_timesteps(folding, value, layout, time, is_mean)
        if result is not None:
            rest = {d - sum(t < d for t in time) for d in dims - time}
            return _reduced(folding, *result, rest, is_mean) if rest else result
    return _over_elements(folding, value, layout, dims, is_mean)


def _grouped(ids: Tensor, dims) -> Tensor:  # [..., n]
    kept = [d for d in range(ids.dim()) if d not in dims]
    return ids.permute(*kept, *sorted(dims)).flatten(len(kept))


def _sum_of_timesteps(folding, value: Value, layout: Layout, dims, is_mean: bool):
    """Return the sum over these dimensions where they are all timesteps of every element."""
    if value.time != "steps":
        return None
    T, E, ids = value.timesteps, value.elements, _grouped(layout.tensor, dims)
    if ids.shape[-1] != T:
        return None
    row, element = (ids - 1) // E, (ids - 1) % E
    B = layout.rows // T
    t, b = row // B, row % B
    all_of_one = (b == b[..., :1]).all(-1) & (element == element[..., :1]).all(-1)
    zero = (ids == 0).all(-1)
    whole = (t.sort(-1).values == torch.arange(T)).all(-1) & (ids > 0).all(-1)
    if not (zero | (all_of_one & whole)).all():
        return None
    ids = torch.where(zero, 0, b[..., 0] * E + element[..., 0] + 1)
    return _over_time(folding, replace(value, layout=None), T, is_mean), Layout(ids, B)


def _over_elements(folding, value: Value, layout: Layout, dims, is_mean: bool):
    """Return the sum over elements of single rows: of whole maps, or rows of them, by pooling."""
    for form, at in _forms(value, layout):
        ids = _grouped(at.tensor, dims)
        shape, n = ids.shape[:-1], ids.shape[-1]
        ids = ids.reshape(-1, n)
        row = torch.where(ids > 0, (ids - 1) // form.elements, -1)
        element = torch.where(ids > 0, (ids - 1) % form.elements, -1)
        own = row.amax(1, keepdim=True)
        if ((row == own) | (row < 0)).all():
            break
    else:
        folding.refuse(
            "it adds up rows of a batch: only the map, features, or the T of split timesteps "
            "[T, B, ...] can be"
        )
    elements = element.sort(1).values
    sets, index = torch.unique(elements, dim=0, return_inverse=True)
    form = replace(form, layout=None)
    pooled = _pooled(form, sets)
    if pooled is None:
        if form.elements * len(sets) > MOST_FEATURES**2:
            folding.refuse(f"it adds up {form.elements} elements in {len(sets)} different ways")
        matrix = torch.zeros((len(sets), form.elements + 1), dtype=torch.float64)
        matrix.scatter_add_(1, sets % (form.elements + 1), torch.ones_like(sets).double())
        layer, scale = layers.linear(form.grid, matrix[:, :-1]), 1 / n if is_mean else 1.0
        pooled = replace(algebra.apply(layer, form), rank=2), torch.arange(len(sets)), scale
    scale: Any
    result, order, scale = pooled
    if scale == "mean":
        scale = 1.0 if is_mean else float(n)
    result = result if scale == 1 else algebra.scale(result, scale)
    ids = torch.where(own[:, 0] >= 0, own[:, 0] * result.elements + order[index] + 1, 0)
    return result, Layout(ids.view(shape), at.rows)


def _forms(value: Value, layout: Layout):
    yield value, layout
    if value.time == "steps":
        yield algebra.unrolled(value), side_by_side(value, layout)


def _pooled(value: Value, sets: Tensor):  # [K, n]
    """Average the maps where the sets of elements are whole maps, or rows, or columns of them."""
    C, H, W = value.grid
    places = torch.arange(value.elements).view(C, H, W)
    for size, parts in (
        ((1, 1), places.flatten(1)),
        ((H, 1), places.flatten(0, 1)),
        ((1, W), places.transpose(1, 2).flatten(0, 1)),
    ):
        if parts.shape[1] == sets.shape[1] and parts.shape[1] > 1:
            which = torch.searchsorted(parts[:, 0].contiguous(), sets[:, 0].contiguous())
            which = which.clamp(max=len(parts) - 1)
            if torch.equal(parts[which], sets):
                layer = layers.adaptive_avg_pool2d(value.grid, size)
                return replace(algebra.apply(layer, value), rank=4), which, "mean"
    return None
