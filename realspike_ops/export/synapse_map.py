"""A layer of synapses as an operator on maps of spikes: one convolution, or a matrix."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from realspike_ops import functional
from realspike_ops import nn as layers
from realspike_ops.nn.synapses.spike_conv import SpikeConv


@dataclass(frozen=True)
class SynapseMap:
    """A linear operator from maps [C, H, W] to maps: a kernel at every position.

    At output row y and column x it is ``weight[rows[y], columns[x]]``.
    """

    weight: Tensor  # [R, Q, groups, KH, KW, Cin/groups, Cout/groups] float32
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]  # before the map; negative ones cut
    in_shape: tuple[int, int, int]
    first_channel: int  # of the channels that it writes
    channels: int  # of all, the others get nothing
    bias: Tensor | None  # [Cout] or [Cout, OH, OW] of its own channels

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return (self.channels, len(self.rows), len(self.columns))

    @property
    def own_channels(self) -> slice:
        G, Cout_g = self.weight.shape[2], self.weight.shape[6]
        return slice(self.first_channel, self.first_channel + G * Cout_g)

    @property
    def is_shared(self) -> bool:
        return tuple(self.weight.shape[:2]) == (1, 1)

    def scaled(self, factor: Tensor) -> "SynapseMap":  # [channels] float64
        """Return the operator with its weights times a factor of their channel, rounded once."""
        own = factor[self.own_channels].view(self.weight.shape[2], 1, 1, 1, -1)
        return replace(self, weight=(self.weight.double() * own).float())

    def square(self) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
        """Return a square kernel's size, where in it the kernel begins, and its padding.

        NIR infers both sizes of a kernel from its rows and pads both sides of a map alike. So the
        kernel is framed by taps of weight 0; None: no frame gives the map its size.
        """
        if not self.is_shared:
            return None
        axes = self._axes(self.weight.shape[3:5])
        largest = max(self.weight.shape[3:5])
        for K in range(largest, 2 * largest + 2 * max(0, *(-p for p in self.padding)) + 3):
            top, left = (_start_in(K, *axis) for axis in axes)
            if top is not None and left is not None:
                ph, pw = (
                    self.padding[0] + top * self.dilation[0],
                    self.padding[1] + left * self.dilation[1],
                )
                return K, (top, left), (ph, pw)
        return None

    def conv_weight(self) -> Tensor:  # [channels, Cin, K, K]
        """Return the kernel in its square frame, with groups as zeros."""
        square = self.square()
        assert square is not None
        K, (top, left), _ = square
        KH, KW = self.weight.shape[3:5]
        out = torch.zeros(self.channels, self.in_shape[0], K, K)
        kernel = self.weight[0, 0].permute(0, 4, 3, 1, 2)  # [G, Cout/G, Cin/G, KH, KW]
        for g, (outputs, inputs) in enumerate(self._groups()):
            out[outputs, inputs, top : top + KH, left : left + KW] = kernel[g]
        return out

    def matrix(self) -> Tensor:  # [channels*OH*OW, Cin*H*W]
        """Return the operator on flattened maps; taps outside the map are left out."""
        KH, KW = self.weight.shape[3:5]
        out = torch.zeros(*self.out_shape, *self.in_shape)
        rows, columns = torch.tensor(self.rows), torch.tensor(self.columns)
        for kh, kw in itertools.product(range(KH), range(KW)):
            (oh, y), (ow, x) = (_taps(*axis) for axis in self._axes((kh, kw)))
            kernels = self.weight[:, :, :, kh, kw][rows[oh]][:, columns[ow]].transpose(3, 4)
            for g, (outputs, inputs) in enumerate(self._groups()):
                out[outputs, oh[:, None], ow, inputs, y[:, None], x] = kernels[:, :, g]
        return out.view(math.prod(self.out_shape), math.prod(self.in_shape))

    def _axes(self, taps) -> list:
        """Return (taps, stride, dilation, padding, input size, output size) for both axes."""
        sizes = self.in_shape[1:], self.out_shape[1:]
        return list(zip(taps, self.stride, self.dilation, self.padding, *sizes, strict=True))

    def _groups(self) -> Iterator[tuple[slice, slice]]:
        """Yield the channels that a group writes, and those that it reads."""
        G, Cin_g, Cout_g = (self.weight.shape[n] for n in (2, 5, 6))
        for g in range(G):
            first = self.first_channel + g * Cout_g
            yield slice(first, first + Cout_g), slice(g * Cin_g, (g + 1) * Cin_g)

    def full_bias(self) -> Tensor:  # [channels, 1, 1] or [channels, OH, OW]
        if self.bias is None:
            return torch.zeros(self.channels, 1, 1)
        bias = self.bias.view(-1, *(self.bias.shape[1:] or (1, 1)))
        out = torch.zeros(self.channels, *bias.shape[1:])
        out[self.own_channels] = bias
        return out


def _start_in(
    K: int, size: int, stride: int, dilation: int, padding: int, length: int, positions: int
) -> int | None:
    """Return at which of K taps a kernel begins, None where no padding of both sides fits."""
    for start in range(K - size + 1):
        both = padding + start * dilation
        reach = length + 2 * both - dilation * (K - 1) - 1
        if both >= 0 and reach >= 0 and reach // stride + 1 == positions:
            return start
    return None


def _taps(
    k: int, stride: int, dilation: int, padding: int, length: int, positions: int
) -> tuple[Tensor, Tensor]:
    """Return the outputs whose k-th tap lies on the map, and where."""
    outputs = torch.arange(positions)
    at = outputs * stride - padding + k * dilation
    on_the_map = (at >= 0) & (at < length)
    return outputs[on_the_map], at[on_the_map]


_SPIKE_CONVS = (
    layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.UnsharedSpikeConv1d, layers.SpikeLinear,
)  # fmt: skip


# --- from layers ----------------------------------------------------------------------------------


def synapse_map(name: str, layer: nn.Module, shape: tuple[int, ...]) -> SynapseMap:
    """Read a layer of synapses that reads maps of ``shape``, [C, H, W], [F] or, lines, [C, L].

    Raises:
        ValueError: for a layer, or a way to store it, that has no equal in NIR; it is named.
    """
    if len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    if type(layer) is layers.Synapses:
        return _of_synapses(name, layer, shape)
    features = (math.prod(shape), 1, 1)
    in_shape = (shape[0], shape[1], shape[2]) if len(shape) == 3 else features
    if type(layer) is layers.OneToOneSynapses:
        return _of_one_to_one(name, layer, in_shape)
    if type(layer) is layers.PiecewiseSpikeConv:
        weight = _float32(name, layer.weight)
        rows, columns, padding = layer.rows, layer.columns, layer.padding
        bias = None
    elif isinstance(layer, _SPIKE_CONVS) and type(layer) in _SPIKE_CONVS:
        weight, bias = _of_spike_conv(name, layer)
        if type(layer) is layers.SpikeLinear:
            in_shape = (layer.in_channels, *layer.kernel_size)
        padding, (OH, OW) = functional.output_size(
            in_shape[1:], layer.kernel_size, layer.stride, layer.padding, layer.dilation
        )
        is_shared = tuple(weight.shape[:2]) == (1, 1)
        rows, columns = ((0,) * OH, (0,) * OW) if is_shared else (range(OH), range(OW))
    else:
        raise ValueError(f"{name!r} is a {type(layer).__name__}, which NIR has no node for")
    return SynapseMap(
        weight, tuple(rows), tuple(columns), layer.stride, layer.dilation, padding,
        in_shape, 0, layer.out_channels, bias,
    )  # fmt: skip


def _of_synapses(name: str, synapses: layers.Synapses, shape: tuple[int, ...]) -> SynapseMap:
    if synapses.signed:
        raise ValueError(
            f"{name!r} reads ternary spikes, which NIR's neurons do not emit: train with "
            "emission='binary'"
        )
    left, right, top, bottom = synapses.pad
    if any(synapses.pad):
        C, H, W = shape
        read = synapse_map(name, synapses.layer, (C, H + top + bottom, W + left + right))
        padding = (read.padding[0] + top, read.padding[1] + left)
        read = replace(read, in_shape=(C, H, W), padding=padding)
    else:
        read = synapse_map(name, synapses.layer, shape)
    if synapses.sums:
        R, Q, G, _, _, Cin_g, Cout_g = read.weight.shape
        weight = read.weight.expand(R, Q, G, *read.in_shape[1:], Cin_g, Cout_g)
        read = replace(read, weight=weight, rows=(0,), columns=(0,))
    if synapses.channels is not None:
        first, channels = synapses.channels
        read = replace(read, first_channel=first, channels=channels)
    return read


def _of_one_to_one(
    name: str, layer: layers.OneToOneSynapses, in_shape: tuple[int, int, int]
) -> SynapseMap:
    C, H, W = in_shape
    weight = _float32(name, layer.weight)
    if weight.dim() == 1 and weight.numel() > 1:  # of features
        weight = weight.view(in_shape)
    if weight.dim() == 2:  # of lines
        weight = weight.unsqueeze(1)
    weight = weight.expand(C, *(weight.shape[1:] if weight.dim() == 3 else (1, 1)))
    shared = bool((weight == weight[:, :1, :1]).all())
    weight = weight[:, :1, :1] if shared else weight.expand(in_shape)
    weight = weight.permute(1, 2, 0)[:, :, :, None, None, None, None]
    rows, columns = ((0,) * H, (0,) * W) if shared else (range(H), range(W))
    rows, columns = tuple(rows), tuple(columns)
    return SynapseMap(weight, rows, columns, (1, 1), (1, 1), (0, 0), in_shape, 0, C, None)


def _of_spike_conv(name: str, layer: SpikeConv) -> tuple[Tensor, Tensor | None]:
    if layer.amplitude is not None:
        raise ValueError(
            f"{name!r} multiplies by amplitudes (storage='factored'), which a weight of NIR does "
            "not: use storage='materialized'"
        )
    weight = _float32(name, layer.weight)
    bias = None if layer.bias is None else _float32(name, layer.bias)
    if layer.scale is not None and not layer.fold_scale:
        scale = powers_of_two(name, layer.scale)
        weight = weight * scale.view(layer.groups, 1, 1, 1, -1)
    return weight, bias


def _float32(name: str, weight: Tensor) -> Tensor:
    """Return stored weights as float32, which holds all of the narrower types."""
    if weight.dtype == torch.float64:
        raise ValueError(
            f"{name!r} has weights in float64, which every reader of NIR rounds to float32: fold "
            "with weight_dtype=torch.float32"
        )
    values = weight.detach().cpu().float()
    return values - 128 if weight.dtype == torch.uint8 else values


def powers_of_two(name: str, scale: Tensor) -> Tensor:
    """Return the scale of int8 weights where a multiplication by it is exact."""
    scale = scale.detach().cpu().float()
    if not (torch.frexp(scale).mantissa == 0.5).all():
        raise ValueError(
            f"{name!r} has int8 weights in steps of scales that are not powers of two: with them "
            "its thresholds differ from channel to channel, which readers of NIR refuse, and "
            "without them weights are rounded anew; fold with scales='power_of_two', or with "
            "weight_dtype=torch.float32"
        )
    return scale
