"""Sums, scaling by constants, and averages over maps and over time.

A rule takes the `Folding`, then the arguments of the torch function of its name, in which tensors
that depend on the input are `Value`s and all others are tensors. It returns a `Value`, or refuses.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.reparam import layers
from realspike_ops.reparam import value as algebra
from realspike_ops.reparam.layer_rules import adaptive_avg_pool2d
from realspike_ops.reparam.shape_rules import with_common_maps
from realspike_ops.reparam.value import Value


def _constant_map(folding, constant, value: Value) -> Tensor:  # -> [C, 1, 1] or [C, H, W]
    """Return a number or a tensor of the trained network as one map that broadcasts."""
    constant = torch.as_tensor(constant).detach().double()
    shape = value.shape
    if constant.dim() > len(shape) and constant.shape[0] == 1:
        constant = constant[0]
    fits = value.time != "split" and constant.dim() <= len(shape)
    if not fits or torch.broadcast_shapes(constant.shape, shape) != shape:
        folding.refuse(
            f"a constant of shape {checks.shape_text(constant)} does not broadcast against a map "
            f"{checks.shape_text(shape)}"
        )
    if value.flat and constant.dim() == 1 and constant.numel() > 1:
        return constant.reshape(value.grid)
    constant = constant.reshape((1,) * (3 - constant.dim()) + tuple(constant.shape))
    size = (1, 1) if tuple(constant.shape[1:]) == (1, 1) else value.grid[1:]
    return constant.expand(value.grid[0], *size)


def add(folding, input, other, *, alpha=1):
    if not isinstance(other, Value):
        shift = _constant_map(folding, other, input) * alpha
        return replace(input, constant=algebra.add_constants(input.constant, shift))
    if not isinstance(input, Value):
        return add(folding, _times(folding, other, alpha), input)
    shapes = [folding.shape_of(v) for v in (input, other)]
    if shapes[0] != shapes[1]:
        shown = " and ".join(checks.shape_text(shape) for shape in shapes)
        folding.refuse(f"it adds maps of different sizes, {shown}")
    a, b = input, other if alpha == 1 else _times(folding, other, alpha)
    if a.terms and b.terms:
        a, b = with_common_maps(folding, [a, b])
        if a.timesteps != b.timesteps:
            folding.refuse(f"it adds spikes of {a.timesteps} and of {b.timesteps} timesteps")
    elif a.is_real:
        a, b = b, a
    real = a.real or b.real
    if a.real and b.real:
        real = folding.encode(torch.add, (a.real, b.real))
    return algebra.add(a, b, real)


def sub(folding, input, other, *, alpha=1):
    return add(folding, input, other, alpha=-alpha)


def rsub(folding, input, other, *, alpha=1):
    return add(folding, other, input, alpha=-alpha)


def _times(folding, value: Value, factor) -> Value:
    if value.is_real:
        return replace(value, real=_scaled_real(folding, value, factor))
    return replace(algebra.scale(value, float(factor)), real=_scaled_real(folding, value, factor))


def _scaled_real(folding, value: Value, factor) -> "str | None":
    return value.real and folding.encode(torch.mul, (value.real,), factor)


def neg(folding, input):
    return _times(folding, input, -1)


def mul(folding, input, other):
    if isinstance(input, Value) and isinstance(other, Value):
        folding.refuse("a product of two values that depend on the input is not linear")
    value, factor = (input, other) if isinstance(input, Value) else (other, input)
    scale = _constant_map(folding, factor, value)
    result = algebra.apply(layers.scale_and_shift(value.grid, scale), value)
    return replace(result, real=_scaled_real(folding, value, factor))


def truediv(folding, input, other, *, rounding_mode=None):
    if isinstance(other, Value) or rounding_mode is not None:
        folding.refuse("only a division by a constant is linear")
    scale = 1 / _constant_map(folding, other, input)
    result = algebra.apply(layers.scale_and_shift(input.grid, scale), input)
    real = input.real and folding.encode(torch.div, (input.real,), other)
    return replace(result, real=real)


def _over_time(folding, value: Value, timesteps: int, is_mean: bool) -> Value:
    if value.real is not None:
        folding.refuse("it averages real values and spikes over time")
    if timesteps != value.timesteps or value.time == "averaged":
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


def over_time(is_mean):
    def rule(folding, input, module):
        return _over_time(folding, input, module.timesteps, is_mean)

    return rule


def reduction(is_mean):
    def rule(folding, input, dim=None, keepdim=False, **kwargs):
        dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
        rank = len(folding.shape_of(input))
        dims = {d % rank for d in dims}
        if input.time == "split" and dims == {0} and not keepdim:
            return _over_time(folding, input, input.timesteps, is_mean)
        if dims == {2, 3} and rank == 4 and not input.flat and input.time != "split":
            pooled = adaptive_avg_pool2d(folding, input, 1)
            if not is_mean:
                factor = float(math.prod(input.grid[1:]))
                pooled = mul(folding, pooled, factor)
            return pooled if keepdim else replace(pooled, flat=True)
        return folding.refuse(f"dim={dim}: only over the map (2, 3), or over split timesteps (0)")

    return rule
