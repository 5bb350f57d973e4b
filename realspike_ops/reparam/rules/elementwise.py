"""scale * x + shift by constants of the trained network, whichever way the tensor is written."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.reparam.algebra import layers
from realspike_ops.reparam.algebra import value as algebra
from realspike_ops.reparam.algebra.layout import NoWindow, layout_of, mapped, on_rows, side_by_side
from realspike_ops.reparam.algebra.value import Value
from realspike_ops.reparam.rules.shape import by_matrix


def scaled_and_shifted(folding, value: Value, scale: Tensor, shift: Tensor | None) -> Value:
    """Return scale * value + shift, both constants that broadcast against the tensor."""
    constants = [None if c is None else c.detach().double() for c in (scale, shift)]
    maps: list[Any] = [_of_map(c, value) for c in constants] if value.layout is None else [None]
    if all(given is None or c is not None for given, c in zip(constants, maps, strict=False)):
        return algebra.apply(layers.scale_and_shift(value.grid, *maps), value)
    layout = layout_of(folding, value)
    if not isinstance(layout.ids, Tensor):
        folding.refuse("it reads several tensors at once: read them one by one")
    shape = tuple(layout.tensor.shape)
    for constant in constants:
        if constant is None:
            continue
        if constant.dim() > len(shape) or torch.broadcast_shapes(constant.shape, shape) != shape:
            folding.refuse(
                f"a constant of shape {checks.shape_text(constant)} does not broadcast against "
                f"{checks.shape_text(shape)} alone"
            )
    if shift is not None and bool((layout.tensor == 0).any()):
        try:
            read, rows = mapped(folding, value, min(4, len(shape)))
        except NoWindow as reason:
            folding.refuse(f"it shifts zeros beside the spikes: {reason}")
        return scaled_and_shifted(folding, on_rows(read, rows), scale, shift)
    forms = [(value, layout)]
    if value.time == "steps":
        forms.append((algebra.unrolled(value), side_by_side(value, layout)))
    for form, at in forms:
        found: list[Any] = [None if c is None else _of_elements(c, at, form) for c in constants]
        if all(c is None or f is not None for c, f in zip(constants, found, strict=True)):
            affine = layers.scale_and_shift(form.grid, *found)
            return replace(algebra.apply(affine, replace(form, layout=None)), layout=at)
    # Elements that are there several times are scaled differently.
    try:
        read, rows = mapped(folding, value, min(4, len(shape)))
    except NoWindow:
        return by_matrix(folding, value)
    written = on_rows(read, rows)
    if written.layout is not None and torch.equal(written.layout.tensor, layout.tensor):
        return by_matrix(folding, value)
    return scaled_and_shifted(folding, written, scale, shift)


def _of_map(constant: Tensor | None, value: Value) -> Tensor | None:  # [C, 1, 1] or [C, H, W]
    """Return a constant as one map, None where it does not broadcast against one alone."""
    if constant is None:
        return None
    shape = value.shape
    if constant.dim() == len(shape) + 1 and constant.shape[0] == 1:
        constant = constant[0]
    if constant.dim() > len(shape) or torch.broadcast_shapes(constant.shape, shape) != shape:
        return None
    if value.rank == 2 and constant.numel() > 1:
        return algebra.compressed(constant.reshape(value.grid))
    constant = constant.reshape((1,) * (len(shape) - constant.dim()) + tuple(constant.shape))
    if value.rank == 3:
        constant = constant.unsqueeze(1)
    constant = constant.reshape((1,) * (3 - constant.dim()) + tuple(constant.shape))
    size = (1, 1) if tuple(constant.shape[1:]) == (1, 1) else value.grid[1:]
    return constant.expand(value.grid[0], *size)


def _of_elements(constant: Tensor, layout, value: Value) -> Tensor | None:
    """Return a constant for every element of the maps, None where it differs between their rows."""
    ids = layout.ids.flatten()
    numbers = constant.expand(layout.ids.shape).flatten()[ids > 0]
    elements = (ids[ids > 0] - 1) % value.elements
    # Elements that the tensor does not have are read by nobody.
    of_map = torch.ones(value.elements, dtype=torch.float64)
    of_map[elements] = numbers
    if not torch.equal(of_map[elements], numbers):
        return None
    return algebra.compressed(of_map.view(value.grid))
