"""Convolution, linear layers, batch norm, pooling and interpolation of sums of spikes.

A rule takes the `Folding`, then the arguments of the torch function of its name, in which tensors
that depend on the input are `Value`s and all others are tensors. It returns a `Value`, or refuses.
"""

from dataclasses import replace

import torch
from torch import nn

from realspike_ops import _checks as checks
from realspike_ops.nn import SpikeMaxPool1d, SpikeMaxPool2d
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.reparam.algebra import layers
from realspike_ops.reparam.algebra import value as algebra
from realspike_ops.reparam.algebra.layout import (
    Layout,
    NoWindow,
    laid_out,
    layout_of,
    mapped,
    on_rows,
)
from realspike_ops.reparam.algebra.value import Term, Value
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.rules.elementwise import scaled_and_shifted
from realspike_ops.reparam.rules.shape import moved, or_by_matrix, through


def _of_maps(layer, rank: int, has_weights: bool = False):
    """Make a rule of layer(shape, *arguments) -> `Affine`, which reads the last rank - 1
    dimensions as maps."""

    @or_by_matrix
    def rule(folding, input, *args, **kwargs):
        if len(folding.shape_of(input)) < rank:
            raise NoWindow(f"it reads {rank - 1} dimensions without one of samples")
        result = through(folding, lambda shape: layer(shape, *args, **kwargs), input, rank)
        return replace(result, layer=folding.layer_name) if has_weights else result

    return rule


conv2d = _of_maps(layers.conv2d, 4, has_weights=True)
conv1d = _of_maps(layers.conv1d, 3, has_weights=True)
avg_pool2d, avg_pool1d = _of_maps(layers.avg_pool2d, 4), _of_maps(layers.avg_pool1d, 3)
adaptive_avg_pool2d = _of_maps(layers.adaptive_avg_pool2d, 4)
adaptive_avg_pool1d = _of_maps(layers.adaptive_avg_pool1d, 3)


@or_by_matrix
def linear(folding, input, weight, bias=None):
    """Fold a linear layer on the last dimension.

    One or two dimensions between it and the rows are positions of a 1 x 1 convolution.
    """
    try:
        read, rows = mapped(folding, input, 2)
    except ReparameterizationError:
        read = None
    if read is not None:
        layer = layers.linear(read.grid, weight, bias)
        result = on_rows(replace(algebra.apply(layer, read), rank=2), rows)
        return replace(result, layer=folding.layer_name)
    layout = layout_of(folding, input)
    for positions in (1, 2):
        if layout.tensor.dim() > positions + 1:
            try:
                return _linear_at(folding, input, weight, bias, positions)
            except ReparameterizationError:
                continue
    raise NoWindow("a linear layer reads features [N, F], or the last dimension of maps")


def _linear_at(folding, input: Value, weight, bias, positions: int) -> Value:
    """Fold a linear layer as a 1 x 1 convolution of [..., positions, F]."""
    last = positions + 1
    layout = layout_of(folding, input)
    to_front = layout.tensor.movedim(-1, -last)
    read, rows = mapped(folding, replace(input, layout=Layout(to_front, layout.rows)), last + 1)
    kernel = weight[:, :, None, None]
    result = algebra.apply(layers.conv2d(read.grid, kernel, bias), read)
    result = on_rows(replace(result, layer=folding.layer_name), rows)
    layout = layout_of(folding, result)
    return laid_out(result, Layout(layout.tensor.movedim(-last, -1), layout.rows))


def batch_norm(
    folding, input, running_mean, running_var, weight=None, bias=None, training=False,
    momentum=0.1, eps=1e-5,
):  # fmt: skip
    if training or running_mean is None:
        return folding.refuse(
            "it must use running statistics (track_running_stats=True, eval mode): those of a "
            "batch depend on all of its samples"
        )
    norm = nn.BatchNorm1d(len(running_mean), eps=eps)
    norm.running_mean, norm.running_var = running_mean, running_var
    affine = (None if p is None else nn.Parameter(p) for p in (weight, bias))
    norm.weight, norm.bias = affine  # pyright: ignore[reportAttributeAccessIssue]  # None: 1, 0
    shape = folding.shape_of(input)
    scale, shift = (t.detach() for t in fold_into_weight.batch_norm_affine(norm, shape[1]))
    shape = (-1, *(1 for _ in shape[2:]))
    return scaled_and_shifted(folding, input, scale.view(shape), shift.view(shape))


def adaptive_max_pool2d(folding, input, output_size, return_indices=False):
    wanted = checks.pair("output_size", output_size, 1)
    size = folding.shape_of(input)[2:]
    if any(n % w for n, w in zip(size, wanted, strict=True)):
        folding.refuse(f"its windows on a map of {size[0]} x {size[1]} differ in size")
    kernel = tuple(n // w for n, w in zip(size, wanted, strict=True))
    return max_pool2d(folding, input, kernel, return_indices=return_indices)


def max_pool2d(
    folding, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    """Pool the spikes alone.

    The largest a * o of a window is a times its largest spike (a < 0: its smallest), as long as one
    a holds for the whole window.
    """
    form = (kernel_size, stride or None, padding, dilation, ceil_mode)
    return _max_pool(folding, input, 4, SpikeMaxPool2d, form, return_indices)


def max_pool1d(
    folding, input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False,
    return_indices=False,
):  # fmt: skip
    form = [layers.on_a_line(a, outside) for a, outside in ((kernel_size, 1), (padding, 0))]
    stride = layers.on_a_line(stride or kernel_size, 1)
    form = (form[0], stride, form[1], layers.on_a_line(dilation, 1), ceil_mode)
    return _max_pool(folding, input, 3, SpikeMaxPool1d, form, return_indices)


def _max_pool(folding, input: Value, rank: int, kind: type, form: tuple, return_indices) -> Value:
    if return_indices:
        folding.refuse("it returns indices")
    try:
        value, rows = mapped(folding, input, rank)
    except NoWindow as reason:
        folding.refuse(f"it pools currents, not spikes: {reason}")
    _check_spikes_of_one_amplitude(folding, value)
    terms = tuple(_pooled(folding, term, kind, form) for term in value.terms)
    value = replace(value, grid=(value.grid[0], *terms[0].window.out_shape[1:]), terms=terms)
    return on_rows(value, rows)


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


def _pooled(folding, term: Term, kind: type, form: tuple) -> Term:
    source, window = term.source, term.window
    coefficient = window.kernel.reshape(-1)  # [C]
    if source.amplitude is not None:
        coefficient = coefficient * source.amplitude.reshape(-1)
    negative = coefficient < 0
    pool = kind(*form, negative=negative if negative.any() else None)
    C, H, W = source.shape
    pooled = pool(torch.zeros((1, C, W) if source.rank == 3 else (1, C, H, W)))
    if not pooled.isfinite().all():
        folding.refuse("it has windows outside of the map, whose largest value is -inf")
    shape = pooled.shape
    shape = (C, *(1 for _ in range(4 - len(shape))), *shape[2:])
    step = folding.spikes(folding.layer_name, pool, source.step)
    everywhere = {"rows": (0,) * shape[1], "columns": (0,) * shape[2]}
    return Term(
        replace(source, step=step, shape=shape), replace(window, in_shape=shape, **everywhere)
    )


# --- larger maps ----------------------------------------------------------------------------------


def _interleaved(folding, input: Value, rank: int, layer) -> Value:
    """Apply a layer whose channels hold the (a x b) phases of every pixel of a larger map:
    layer(shape) -> (`Affine`, phases, size of the larger map)."""
    value, rows = mapped(folding, input, rank)
    affine, (a, b), (height, width) = layer(value.grid)
    value = algebra.apply(affine, value)
    if (a, b) == (1, 1) and value.grid[1:] == (height, width):
        return on_rows(value, rows)
    C, H, W = value.grid
    elements = torch.arange(value.elements).view(C // (a * b), a, b, H, W)
    elements = elements.permute(0, 3, 1, 4, 2).reshape(-1, H * a, W * b)[:, :height, :width]
    elements = elements[:, 0] if rank == 3 else elements
    ids = rows.tensor[(...,) + (None,) * elements.dim()] * value.elements + elements + 1
    return laid_out(value, Layout(ids, rows.rows))


def _conv_transpose(rank: int):
    @or_by_matrix
    def rule(folding, input, *args, **kwargs):
        def layer(shape):
            of = layers.conv_transpose2d if rank == 4 else layers.conv_transpose1d
            return of(shape, *args, **kwargs)

        if len(folding.shape_of(input)) < rank:
            raise NoWindow(f"it reads {rank - 1} dimensions without one of samples")
        result = _interleaved(folding, input, rank, layer)
        return replace(result, layer=folding.layer_name)

    return rule


conv_transpose2d, conv_transpose1d = _conv_transpose(4), _conv_transpose(3)


@or_by_matrix
def interpolate(folding, input, *args, **kwargs):
    """Fold every axis by a matrix of its own; the nearest pixels by their numbers."""
    rank = len(folding.shape_of(input))
    if rank not in (3, 4):
        folding.refuse(f"it reads {rank} dimensions; only lines and maps can be folded")
    size = folding.shape_of(input)[2:]

    def along(axis: int):  # [OH, H] float64
        # Constant along the other axis: the weights of every pixel add up to 1.
        n = size[axis]
        lines = torch.eye(n, dtype=torch.float64)
        shape = [n if d == axis else 1 for d in range(len(size))]
        lines = lines.view(n, *shape).expand(n, *size)
        out = folding.rerun({input: lines[None]})[0]  # [H, OH, OW]
        return out.movedim(1 + axis, 1).flatten(2)[:, :, 0].T

    matrices = [along(axis) for axis in range(len(size))]
    if all(((m == 0) | (m == 1)).all() and (m.sum(1) == 1).all() for m in matrices):
        return moved(folding, input)
    matrices = matrices if rank == 4 else [torch.ones((1, 1), dtype=torch.float64), *matrices]
    return _interleaved(folding, input, rank, lambda shape: layers.separable(shape, *matrices))
