"""Folded networks of PyTorch's own operators, which run where the library's are not registered."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from realspike_ops import nn as layers
from realspike_ops.functional import output_size
from realspike_ops.nn.packed_spikes import padded
from realspike_ops.nn.plain import check_plain
from realspike_ops.nn.synapses.spike_conv import SpikeConv
from realspike_ops.nn.time import split_time
from realspike_ops.reparam import FoldedNetwork
from realspike_ops.reparam.network import INPUT


def without_custom_ops(folded: FoldedNetwork) -> nn.Module:
    r"""Return a folded network as a module of PyTorch's own operators, for inference elsewhere.

    Kernels that all positions share become ``conv2d``, a kernel per position a product of matrices
    per position over the taps, LIF layers a loop over the timesteps, unrolled when it is exported.
    `torch.export`, AOTInductor packages that C++ loads without Python, and ONNX take it; with the
    folded network itself they call ``realspike::`` operators, which ``import realspike_ops``
    registers (docs/deployment.md).

    It multiplies, and weights are float32, also those that were stored narrower: this is the form
    that runs anywhere, not the one that is fast or small.

    Args:
        folded: The network that `reparameterize` returned.

    Returns:
        A module that takes what ``folded`` takes, in eval mode; its weights are buffers, on the
        same device.

    Raises:
        TypeError: if ``folded`` is not a `FoldedNetwork`.
        ValueError: by name, for a layer that folding does not make, or one with forward hooks or
            methods of its own, which PyTorch's operators in its place would not run.

    Rounding: neurons step as `realspike_ops.lif` does. Currents are sums in another order than the
    gather's, so that a potential within a rounding of the threshold may fire or not, except where
    sums are exact (``reparameterize(..., scales="power_of_two")``): outputs are then equal, bit for
    bit.
    """
    if not isinstance(folded, FoldedNetwork):
        raise TypeError(
            f"folded must be a FoldedNetwork, as reparameterize returns it; "
            f"got {type(folded).__name__}"
        )
    check_plain("folded", folded, FoldedNetwork)
    return _StockNetwork(copy.deepcopy(folded)).eval().requires_grad_(False)


class _StockNetwork(nn.Module):
    def __init__(self, folded: FoldedNetwork):
        super().__init__()
        self.steps, self.output, self.input_shape = folded.steps, folded.output, folded.input_shape
        for step in folded.steps:
            self.add_module(step.name, _stock(step.name, folded.get_submodule(step.name)))

    def forward(self, x: Tensor):
        if self.input_shape is not None and tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"x must have shape [N, {', '.join(map(str, self.input_shape))}]")
        values = {INPUT: x}
        for step in self.steps:
            values[step.name] = self.get_submodule(step.name)(*(values[n] for n in step.inputs))
        return pytree.tree_map_only(str, values.__getitem__, self.output)


def _stock(name: str, module: nn.Module) -> nn.Module:
    """Return what does the same with PyTorch's operators; others have no operators but these."""
    if isinstance(module, _REPLACED):
        check_plain(name, module, _REPLACED)
    if isinstance(module, layers.FoldedLIF):
        return _Neurons(module)
    if isinstance(module, SpikeConv):
        if module.amplitude is not None or module.scale is not None:
            raise ValueError(
                f"{name!r} has {'an amplitude' if module.scale is None else 'a scale'} of its own, "
                "which no folded layer has: fold the network with reparameterize"
            )
        if isinstance(module, layers.SpikeLinear):
            return _Linear(module)
        is_shared = module.weight.shape[:2] == (1, 1)
        maps = _Convolution(module) if is_shared else _Unshared(module)
        return _Lines(maps) if isinstance(module, layers.UnsharedSpikeConv1d) else maps
    if isinstance(module, layers.PiecewiseSpikeConv):
        return _Piecewise(module)
    if isinstance(module, layers.OneToOneSynapses):
        return _OneToOne(module)
    if isinstance(module, layers.Synapses):
        form = {key: getattr(module, key) for key in _OF_SYNAPSES}
        return layers.Synapses(_stock(name, module.layer), **form)
    if isinstance(module, layers.SynapticCurrent):
        inner = {key: _stock(name, one) for key, one in module.synapses.items()}
        return layers.SynapticCurrent(inner, module.bias)
    return module


_REPLACED = (
    *(layers.FoldedLIF, layers.SpikeConv2d, layers.UnsharedSpikeConv, layers.UnsharedSpikeConv1d),
    *(layers.SpikeLinear, layers.PiecewiseSpikeConv, layers.OneToOneSynapses, layers.Synapses),
    layers.SynapticCurrent,
)
_OF_SYNAPSES = ("maps", "signed", "pad", "channels", "flatten", "sums", "reads", "line")


class _Neurons(nn.Module):
    """LIF neurons as a loop over time, as in `realspike_ops.lif`."""

    decay: Tensor
    v_threshold: Tensor
    v_reset: Any  # a number, of a hard reset

    def __init__(self, lif: layers.FoldedLIF):
        super().__init__()
        self.timesteps, self.emission = lif.timesteps, lif.emission
        self.reset, self.v_reset = lif.reset, lif.v_reset
        for name in ("decay", "v_threshold"):
            value = torch.as_tensor(getattr(lif, name), dtype=torch.float32)
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:  # [T*B, ...]
        spikes, v = [], None
        for current in split_time(x, self.timesteps).unbind(0):  # [B, ...]
            v = torch.zeros_like(current, dtype=torch.float32) if v is None else v
            h = self.decay * v + current.float()
            if self.reset == "soft_delayed":
                h = h - self._spikes(v) * self.v_threshold
            fired = self._spikes(h)
            if self.reset == "hard":
                v = torch.where(fired == 0, h, self.v_reset)
            else:
                v = h - fired * self.v_threshold if self.reset == "soft" else h
            spikes.append(fired.to(x.dtype))
        return torch.cat(spikes)

    def _spikes(self, h: Tensor) -> Tensor:
        fires = (h >= self.v_threshold).to(h.dtype)
        return fires - (-h >= self.v_threshold).to(h.dtype) if self.emission == "ternary" else fires


class _Synapses(nn.Module):
    """Base of the synapses: float32 weights, and a bias per channel or per neuron."""

    weight: Tensor
    bias: Tensor | None  # [Cout, 1, 1] or [Cout, OH, OW]
    stride: tuple[int, int]
    padding: Any  # a pair, or "same" or "valid"
    dilation: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    in_channels: int

    def __init__(self, layer: SpikeConv | layers.PiecewiseSpikeConv | layers.OneToOneSynapses):
        super().__init__()
        weight = layer.weight.detach()
        steps = 128 if weight.dtype == torch.uint8 else 0
        self.register_buffer("weight", self.arranged(weight.float() - steps).contiguous())
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias = bias.detach().float()
            bias = bias[:, None, None] if bias.dim() == 1 else bias
        self.register_buffer("bias", bias)
        for name in ("stride", "padding", "dilation", "rows", "columns", "in_channels"):
            setattr(self, name, getattr(layer, name, None))

    @staticmethod
    def arranged(weight: Tensor) -> Tensor:
        return weight

    def current(self, spikes: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, spikes: Tensor) -> Tensor:
        current = self.current(spikes.float())
        return current if self.bias is None else current + self.bias


class _Convolution(_Synapses):
    @staticmethod
    def arranged(weight: Tensor) -> Tensor:  # [1, 1, G, KH, KW, Cin/G, Cout/G]
        return weight[0, 0].permute(0, 4, 3, 1, 2).flatten(0, 1)

    def current(self, spikes: Tensor) -> Tensor:
        groups = self.in_channels // self.weight.shape[1]
        return F.conv2d(spikes, self.weight, None, self.stride, self.padding, self.dilation, groups)


class _Linear(_Synapses):
    @staticmethod
    def arranged(weight: Tensor) -> Tensor:  # [1, 1, 1, H, W, C, F]
        return weight[0, 0, 0].permute(3, 2, 0, 1).flatten(1)

    def forward(self, spikes: Tensor) -> Tensor:  # [N, C, H, W] or [N, C*H*W]
        bias = None if self.bias is None else self.bias.flatten()
        current = F.linear(spikes.float().flatten(1), self.weight)
        return current if bias is None else current + bias


class _Unshared(_Synapses):
    def current(self, spikes: Tensor) -> Tensor:  # [N, Cin, H, W]
        OH, OW, G, KH, KW, Ci = self.weight.shape[:6]
        geometry = self.stride, self.padding, self.dilation
        before, _ = output_size(tuple(spikes.shape[2:]), (KH, KW), *geometry)
        spikes = _framed(spikes, (OH, OW), (KH, KW), self.stride, before, self.dilation)
        (sh, sw), (dh, dw) = self.stride, self.dilation
        taps = [
            spikes[:, :, y : y + (OH - 1) * sh + 1 : sh, x : x + (OW - 1) * sw + 1 : sw]
            for y in range(0, KH * dh, dh)
            for x in range(0, KW * dw, dw)
        ]
        unfolded = torch.unflatten(torch.stack(taps, 1), 2, (G, Ci))  # [N, KH*KW, G, Ci, OH, OW]
        unfolded = unfolded.permute(4, 5, 2, 0, 1, 3).flatten(4).flatten(0, 2)  # [OH*OW*G, N, K]
        currents = torch.bmm(unfolded, self.weight.flatten(3, 5).flatten(0, 2))  # [.., N, Co]
        return torch.unflatten(currents, 0, (OH, OW, G)).permute(3, 2, 4, 0, 1).flatten(1, 2)


class _Lines(nn.Module):
    def __init__(self, maps: nn.Module):
        super().__init__()
        self.maps = maps

    def forward(self, spikes: Tensor) -> Tensor:  # [N, C, L]
        return self.maps(spikes.unsqueeze(2)).squeeze(2)


class _Piecewise(_Synapses):
    at_rows: Tensor  # [OH] int64
    at_columns: Tensor  # [OW] int64

    def __init__(self, layer: layers.PiecewiseSpikeConv):
        super().__init__(layer)
        for name in ("rows", "columns"):
            self.register_buffer(f"at_{name}", torch.tensor(getattr(layer, name)))

    def current(self, spikes: Tensor) -> Tensor:
        R, Q, G, KH, KW = self.weight.shape[:5]
        size = len(self.rows), len(self.columns)
        spikes = _framed(spikes, size, (KH, KW), self.stride, self.padding, self.dilation)
        total = None
        for r in range(R):
            for q in range(Q):
                kernel = _Convolution.arranged(self.weight[r : r + 1, q : q + 1])
                current = F.conv2d(spikes, kernel, None, self.stride, 0, self.dilation, G)
                here = (self.at_rows[:, None] == r) & (self.at_columns == q)  # [OH, OW]
                total = current if total is None else torch.where(here, current, total)
        assert total is not None  # there is a kernel
        return total


class _OneToOne(_Synapses):
    def current(self, spikes: Tensor) -> Tensor:
        return spikes * self.weight


def _framed(spikes: Tensor, size, kernel_size, stride, padding, dilation) -> Tensor:
    """Pad (or cut) maps so that a convolution without padding gives an output of `size`."""
    behind = (
        (n - 1) * s + (k - 1) * d + 1 - have - p
        for n, k, s, p, d, have in zip(
            size, kernel_size, stride, padding, dilation, spikes.shape[2:], strict=True
        )
    )
    bottom, right = behind
    return padded(spikes, (padding[1], right, padding[0], bottom))
