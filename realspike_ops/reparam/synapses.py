"""From a linear operator on a map of spikes to a layer of synapses: first its size, then itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realspike_ops.nn import (
    OneToOneSynapses,
    PiecewiseSpikeConv,
    SpikeConv2d,
    SpikeLinear,
    Synapses,
    UnsharedSpikeConv,
    fold,
)
from realspike_ops.nn.unshared_conv import _SpikeConv
from realspike_ops.reparam.value import Term
from realspike_ops.reparam.window import Window, block_diagonal


@dataclass(frozen=True)
class PlannedSynapses:
    """A layer that is not allocated yet."""

    source: str
    kind: type
    shape: tuple[int, ...]  # of the weight
    shared_weights: int  # what it would hold with an amplitude that does not vary over space
    flattens_spikes: bool  # whether it reads a map as features
    build: "Callable[[torch.dtype, Tensor | None], Synapses]"

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


def plan(term: Term, flat: bool) -> PlannedSynapses:
    """Choose the layer that computes a term, whose output is [N, F] where `flat`."""
    source, window = term.source, term.window
    if window.is_one_to_one:
        return _one_to_one(term, flat)
    if window.averages_the_whole_map and not source.varies_over_space:
        return _average(term, flat)
    if flat and window.reads_the_whole_map:
        return _linear(term)
    dense = window.kernel.shape[2:]
    if source.varies_over_space:
        shape = (*window.out_shape[1:], *dense)
        return _convolution(term, flat, UnsharedSpikeConv, shape, unshared)
    if window.is_shared:
        return _convolution(term, flat, SpikeConv2d, (1, 1, *dense), shared)
    return _convolution(term, flat, PiecewiseSpikeConv, window.kernel.shape, shared)


def shared(window: Window, amplitude: "Tensor | None", dtype: torch.dtype) -> Tensor:
    """Return the kernels times the amplitude [1, 1, 1] or [C, 1, 1] of what they read."""
    kernel = window.kernel
    if amplitude is not None:
        per_channel = amplitude.expand(window.in_shape[0], 1, 1)
        kernel = kernel * per_channel.reshape(window.groups, 1, 1, -1, 1)
    return kernel.to(dtype).contiguous()


def unshared(window: Window, amplitude: Tensor, dtype: torch.dtype) -> Tensor:
    """Give every output position its kernel times the amplitudes that it reads."""
    return fold.unshare(
        window.kernel,
        amplitude.expand(window.in_shape),
        window.out_shape[1:],
        *(window.stride, window.padding, window.dilation),
        rows=window.rows,
        columns=window.columns,
        dtype=dtype,
    )


def _channels(window: Window) -> "tuple[int, int] | None":
    everything = (window.first_channel, window.own_channels) == (0, window.channels)
    return None if everything else (window.first_channel, window.channels)


def _plain(bias: "Tensor | None", dtype) -> "Tensor | None":  # [C, 1, 1] -> [C]
    if bias is None:
        return None
    bias = bias.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return bias[:, 0, 0].contiguous() if tuple(bias.shape[1:]) == (1, 1) else bias.contiguous()


def _convolution(term: Term, flat: bool, kind, shape, weight) -> PlannedSynapses:
    source, window = term.source, term.window
    geometry = {"stride": window.stride, "dilation": window.dilation}
    out = window.out_shape[1:]
    pad = (0, 0, 0, 0)
    padding = window.padding
    if kind is not PiecewiseSpikeConv:
        after = [
            (n - 1) * s + (k - 1) * d + 1 - size - p
            for n, s, k, d, size, p in zip(
                out, window.stride, window.kernel_size, window.dilation, window.in_shape[1:],
                padding, strict=True,
            )
        ]  # fmt: skip
        # The layers pad both sides alike; a window that ends elsewhere pads or cuts by itself.
        regular = all(
            p >= 0 and (size + 2 * p - (k - 1) * d - 1) // s + 1 == n
            for n, s, k, d, size, p in zip(
                out, window.stride, window.kernel_size, window.dilation, window.in_shape[1:],
                padding, strict=True,
            )
        )  # fmt: skip
        if not regular:
            (top, left), (bottom, right) = padding, after
            pad, padding = (left, right, top, bottom), (0, 0)

    def build(dtype, bias):
        values = weight(window, source.amplitude, dtype)
        if kind is PiecewiseSpikeConv:
            layer = kind(values, window.rows, window.columns, padding=padding, **geometry)
        else:
            layer = kind.__new__(kind)
            _SpikeConv.__init__(layer, values, _plain(bias, dtype), padding=padding, **geometry)
            if kind is UnsharedSpikeConv:
                H, W = window.in_shape[1:]
                layer.input_size = (H + pad[2] + pad[3], W + pad[0] + pad[1])
        return Synapses(
            layer,
            signed=source.signed,
            pad=pad,
            channels=_channels(window),
            flatten="current" if flat else None,
        )

    return PlannedSynapses(source.step, kind, tuple(shape), window.kernel.numel(), False, build)


def _linear(term: Term) -> PlannedSynapses:
    source, window = term.source, term.window
    F = window.own_channels
    shape = (1, 1, 1, 1, 1, math.prod(source.shape), F)

    def build(dtype, bias):
        kernel = block_diagonal(window.kernel, 1)[0, 0, 0].permute(2, 0, 1, 3)  # [C, H, W, F]
        if source.amplitude is not None:
            kernel = kernel * source.amplitude.unsqueeze(-1)
        layer = SpikeLinear.__new__(SpikeLinear)
        _SpikeConv.__init__(layer, kernel.reshape(shape).to(dtype), _plain(bias, dtype))
        flatten = None if source.flat else "spikes"
        channels = _channels(window)
        return Synapses(layer, signed=source.signed, channels=channels, flatten=flatten)

    return PlannedSynapses(
        source.step, SpikeLinear, shape, math.prod(shape), not source.flat, build
    )


def _average(term: Term, flat: bool) -> PlannedSynapses:
    """An average over the map and what follows it: a 1 x 1 kernel, whose currents are added up."""
    source, window = term.source, term.window
    kernel = window.kernel[:, :, :, :1, :1]
    shape = tuple(kernel.shape)

    def build(dtype, bias):
        layer = SpikeConv2d.__new__(SpikeConv2d)
        pixel = replace(window, kernel=kernel)
        _SpikeConv.__init__(layer, shared(pixel, source.amplitude, dtype), None)
        return Synapses(
            layer,
            signed=source.signed,
            channels=_channels(window),
            flatten="current" if flat else None,
            sums=math.prod(source.shape[1:]),
        )

    return PlannedSynapses(source.step, SpikeConv2d, shape, math.prod(shape), False, build)


def _one_to_one(term: Term, flat: bool) -> PlannedSynapses:
    source, window = term.source, term.window
    coefficient = window.kernel[..., 0, 0, 0, 0].permute(2, 0, 1)  # [C, R, Q]
    if not window.is_shared:
        rows, columns = (torch.tensor(index) for index in (window.rows, window.columns))
        coefficient = coefficient[:, rows][:, :, columns]
    if source.amplitude is not None:
        coefficient = coefficient * source.amplitude
    if flat:
        coefficient = coefficient.expand(source.shape).flatten()
    if (coefficient == coefficient.flatten()[0]).all():
        coefficient = coefficient.flatten()[:1]

    def build(dtype, bias):
        # They tell the signs of ternary spikes apart by themselves.
        layer = OneToOneSynapses(coefficient.to(dtype).contiguous())
        flatten = "spikes" if flat and not source.flat else None
        return Synapses(layer, channels=_channels(window), flatten=flatten)

    shape = tuple(coefficient.shape)
    flattens = flat and not source.flat
    return PlannedSynapses(source.step, OneToOneSynapses, shape, source.shape[0], flattens, build)
