"""Convolution, linear layers, batch norm and pooling of sums of spikes.

A rule takes the `Folding`, then the arguments of the torch function of its name, in which tensors
that depend on the input are `Value`s and all others are tensors. It returns a `Value`, or refuses.
"""

from dataclasses import replace

import torch
from torch import nn

from realspike_ops import _checks as checks
from realspike_ops.nn import SpikeMaxPool2d, fold
from realspike_ops.reparam import layers
from realspike_ops.reparam import value as algebra
from realspike_ops.reparam.value import Term, Value


def _map(folding, value: Value) -> Value:
    if value.flat or value.time == "split":
        folding.refuse("it needs maps [T*B, C, H, W]")
    return value


def conv2d(folding, input, *args, **kwargs):
    value = _map(folding, input)
    layer = layers.conv2d(value.grid, *args, **kwargs)
    return replace(algebra.apply(layer, value), layer=folding.layer_name)


def linear(folding, input, weight, bias=None):
    if not input.flat:
        folding.refuse(f"it reads {len(input.shape)} dimensions: flatten them first")
    layer = layers.linear(input.grid, weight, bias)
    return replace(algebra.apply(layer, input), layer=folding.layer_name)


def batch_norm(
    folding, input, running_mean, running_var, weight=None, bias=None, training=False,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if training or running_mean is None:
        folding.refuse(
            "it must use running statistics (track_running_stats=True, eval mode): those of a "
            "batch depend on all of its samples"
        )
    norm = nn.BatchNorm1d(len(running_mean), eps=eps)
    norm.running_mean, norm.running_var = running_mean, running_var
    norm.weight, norm.bias = (None if p is None else nn.Parameter(p) for p in (weight, bias))
    channels = input.shape[0]
    scale, shift = (t.detach() for t in fold.batch_norm_affine(norm, channels))
    shape = input.grid if input.flat else (-1, 1, 1)
    return algebra.apply(
        layers.scale_and_shift(input.grid, scale.view(shape), shift.view(shape)), input
    )


def pad(folding, input, *args, **kwargs):
    value = _map(folding, input)
    return algebra.apply(layers.pad(value.grid, *args, **kwargs), value)


def avg_pool2d(folding, input, *args, **kwargs):
    value = _map(folding, input)
    return algebra.apply(layers.avg_pool2d(value.grid, *args, **kwargs), value)


def adaptive_avg_pool2d(folding, input, output_size):
    value = _map(folding, input)
    return algebra.apply(layers.adaptive_avg_pool2d(value.grid, output_size), value)


def adaptive_max_pool2d(folding, input, output_size, return_indices=False):
    wanted = checks.pair("output_size", output_size, 1)
    size = input.grid[1:]
    if any(n % w for n, w in zip(size, wanted, strict=True)):
        folding.refuse(f"its windows on a map of {size[0]} x {size[1]} differ in size")
    kernel = tuple(n // w for n, w in zip(size, wanted, strict=True))
    return max_pool2d(folding, input, kernel, return_indices=return_indices)


def max_pool2d(
    folding, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    """The largest a * o of a window is a times its largest spike (a < 0: its smallest), as long as
    one a holds for the whole window."""
    value = _map(folding, input)
    if return_indices:
        folding.refuse("it returns indices")
    _check_spikes_of_one_amplitude(folding, value)
    form = (kernel_size, stride or None, padding, dilation, ceil_mode)
    terms = tuple(_pooled(folding, term, form) for term in value.terms)
    return replace(value, grid=(value.grid[0], *terms[0].window.out_shape[1:]), terms=terms)


def _check_spikes_of_one_amplitude(folding, value: Value) -> None:
    """Refuse all but one map of spikes in every channel, scaled and shifted by constants of the
    channel."""
    if value.real is not None or value.time != "steps":
        folding.refuse("it pools currents, not spikes")
    windows = [term.window for term in value.terms]
    written = sum(window.own_channels for window in windows)
    overlap = written > len(set().union(*(window.own_range for window in windows)))
    if overlap or not all(window.is_one_to_one for window in windows):
        folding.refuse(
            "the largest of sums of spikes is not a sum of spikes: pool before they are added, or "
            "pool by averages"
        )
    varying = [
        repr(term.source.step)
        for term in value.terms
        if term.source.varies_over_space or not term.window.is_shared
    ]
    shift = value.constant
    if varying or (shift is not None and shift.shape[1:] != (1, 1)):
        names = ", ".join(varying) or "a shift before it"
        folding.refuse(
            f"{names} scales the spikes of a map by different amplitudes, whose largest is not a "
            "spike: give that layer granularity 'channel' (or 'layer'), or pool by averages"
        )


def _pooled(folding, term: Term, form: tuple) -> Term:
    source, window = term.source, term.window
    coefficient = window.kernel.reshape(-1)  # [C]
    if source.amplitude is not None:
        coefficient = coefficient * source.amplitude.reshape(-1)
    negative = coefficient < 0
    pool = SpikeMaxPool2d(*form, negative=negative if negative.any() else None)
    shape = tuple(pool(torch.zeros((1, *source.shape))).shape[1:])
    step = folding.spikes(folding.layer_name, pool, source.step)
    everywhere = {"rows": (0,) * shape[1], "columns": (0,) * shape[2]}
    return Term(
        replace(source, step=step, shape=shape), replace(window, in_shape=shape, **everywhere)
    )
