"""Reshaping, joining and dropping of sums of spikes.

A rule takes the `Folding`, then the arguments of the torch function of its name, in which tensors
that depend on the input are `Value`s and all others are tensors. It returns a `Value`, or refuses.
"""

import math
from dataclasses import replace

import torch

from realspike_ops import _checks as checks
from realspike_ops.reparam import layers
from realspike_ops.reparam import value as algebra
from realspike_ops.reparam.value import Value

# Of a flattened map that is written as features of its own, by an identity matrix.
MOST_FEATURES = 4096


def reshaped(folding, input, *args, **kwargs):
    """Any way to write a reshape; what it does is told by the shapes before and after."""
    before, after = folding.shape_of(input), folding.result_shape
    N, features = before[0], before[1:]
    if after == before:
        return input
    if input.time == "split":
        if after == (before[0] * before[1], *before[2:]):
            return replace(input, time="steps")
    elif after == (N, math.prod(features)):
        return replace(input, flat=True)
    elif after == (N, *input.grid):
        return replace(input, flat=False)
    elif (
        input.time == "steps"
        and folding.operation != "unsqueeze"
        and after[0] == input.timesteps
        and after[2:] == features
    ):
        return replace(input, time="split")
    return folding.refuse(
        f"it turns {checks.shape_text(before)} into {checks.shape_text(after)}; only flatten(1), "
        "its inverse and the split of the leading T*B into (T, B) can be folded"
    )


def unchanged(folding, input, *args, **kwargs):
    return input


def dropout(folding, input, p=0.5, training=True, inplace=False):
    # The function drops in eval mode too, unless it is told not to.
    return folding.refuse("training=True: it drops in eval mode too") if training else input


def cat(folding, tensors, dim=0):
    values = list(tensors)
    if not all(isinstance(v, Value) and v.terms and v.real is None for v in values):
        folding.refuse("it joins spikes with real values")
    rank = len(folding.result_shape)
    if dim % rank != 1 or any(v.time == "split" for v in values):
        folding.refuse(f"dim={dim}: only channels (dim=1) can be joined")
    return algebra.concatenate(with_common_maps(folding, values, channels=True))


def with_common_maps(folding, values: list[Value], channels: bool = False) -> list[Value]:
    """Write flattened maps as features where their maps differ."""
    if len({v.time for v in values}) > 1:
        folding.refuse("it joins timesteps with an average over them")
    if len({v.grid[1:] if channels else v.grid for v in values}) == 1:
        return values
    if not all(v.flat for v in values):
        shapes = ", ".join(checks.shape_text(v.shape) for v in values)
        folding.refuse(f"it joins maps of different sizes: {shapes}")
    return [_as_features(folding, v) for v in values]


def _as_features(folding, value: Value) -> Value:
    features = math.prod(value.grid)
    if value.grid == (features, 1, 1):
        return value
    if features > MOST_FEATURES:
        folding.refuse(
            f"it joins maps of different sizes that were flattened to {features} features, more "
            f"than {MOST_FEATURES}: give each a linear layer of its own and add the results"
        )
    identity = torch.eye(features, dtype=torch.float64)
    return algebra.apply(layers.linear(value.grid, identity), value)
