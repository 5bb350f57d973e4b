"""What the gather-accumulate layers share: their parameters, and the call of the op."""

import math

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.conv_lif_functional import unshared_spike_conv_lif
from realspike_ops.nn.folded_lif import FoldedLIF
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.storage import check_memory
from realspike_ops.ops.huge_pages import empty_in_huge_pages

ALGORITHMS = ("gather", "matmul", "auto")


class SpikeConv(nn.Module):
    """What the layers share. `weight` is in kernel order: a spike selects one contiguous row."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride=1,
        padding=0,
        dilation=1,
        *,
        amplitude: Tensor | None = None,
        scale: Tensor | None = None,
        fold_scale: bool = False,
        algorithm: str = "gather",
        check_binary: bool | None = None,
    ):
        super().__init__()
        self.stride = checks.pair("stride", stride, 1)
        self.dilation = checks.pair("dilation", dilation, 1)
        self.padding = padding if isinstance(padding, str) else checks.pair("padding", padding, 0)
        self.groups = weight.shape[2]
        self.kernel_size = tuple(weight.shape[3:5])
        self.in_channels = self.groups * weight.shape[5]
        self.out_channels = self.groups * weight.shape[6]
        self.fold_scale = fold_scale
        self.algorithm = checks.check_choice("algorithm", algorithm, ALGORITHMS)
        self.check_binary = check_binary
        if bias is not None and scale is not None and fold_scale:
            bias = bias / (scale if bias.dim() == 1 else scale[:, None, None])
        if weight.dtype == torch.uint8:
            self.register_buffer("weight", weight)
        else:
            self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.amplitude = None if amplitude is None else nn.Parameter(amplitude)
        self.register_buffer("scale", scale)

    def forward(self, spikes: "Tensor | PackedSpikes") -> Tensor:
        return functional.unshared_spike_conv(**self._arguments(spikes), algorithm=self.algorithm)

    def fire(self, spikes: "Tensor | PackedSpikes", neurons: FoldedLIF) -> PackedSpikes:
        """Run ``neurons(self(spikes), packed=True)`` as one op, in inference."""
        words = unshared_spike_conv_lif(
            **self._arguments(spikes), timesteps=neurons.timesteps, **neurons.dynamics
        )
        return PackedSpikes(words, self.out_channels, neurons.emission == "ternary")

    def _arguments(self, spikes: "Tensor | PackedSpikes") -> dict:
        check_binary = self.check_binary
        if isinstance(spikes, PackedSpikes):
            # A LIF layer made the words: they need no check.
            spikes, check_binary = spikes.binary_words(self.in_channels), False
        # What .half() and .bfloat16() make of the weights is storage; the rest is float32.
        return {
            "spikes": spikes,
            "weight": self.weight,
            "bias": _float32(self.bias),
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "amplitude": _float32(self.amplitude),
            "scale": None if self.fold_scale else _float32(self.scale),
            "check_binary": check_binary,
        }

    def threshold(self, v_threshold: float = 0.5) -> "float | Tensor":  # [Cout, 1, 1]
        """Return the threshold, also a reset potential, for neurons that read this layer.

        It is ``v_threshold`` divided by the scale where that is folded (``fold_scale=True``): the
        currents are then in steps of the scale.
        """
        return v_threshold / self.scale[:, None, None] if self.fold_scale else v_threshold

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}{self._storage_repr()}"
        )

    def _storage_repr(self) -> str:
        """What differs from the default."""
        text = ""
        if self.weight.dtype != torch.float32:
            int8 = self.weight.dtype == torch.uint8
            text += f", dtype={torch.int8 if int8 else self.weight.dtype}".replace("torch.", "")
        if self.amplitude is not None:
            text += ", storage='factored'"
        if self.fold_scale:
            text += ", fold_scale=True"
        if self.algorithm != "gather":
            text += f", algorithm={self.algorithm!r}"
        return text


def _float32(tensor: Tensor | None) -> Tensor | None:
    # float64 stays: a kernel refuses it, the reference computes in it.
    half = tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


def initial(
    position: tuple[int, int],
    in_channels,
    out_channels,
    kernel_size,
    groups,
    bias,
    device,
    dtype=torch.float32,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Kaiming-uniform weights and bias, as nn.Conv2d's, and the scale of int8 weights."""
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        checks.check_positive_int(name, value)
        if value % checks.check_positive_int("groups", groups):
            raise ValueError(f"{name} must be divisible by groups ({groups}); got {value}")
    KH, KW = checks.pair("kernel_size", kernel_size, 1)
    shape = (*position, groups, KH, KW, in_channels // groups, out_channels // groups)
    bound = 1 / math.sqrt(KH * KW * in_channels // groups)
    device = torch.empty(0, device=device).device
    check_memory(shape, dtype, device, position[0] * position[1])
    bias = torch.empty(out_channels, device=device).uniform_(-bound, bound) if bias else None
    if dtype == torch.int8:
        weight = torch.randint(1, 256, shape, dtype=torch.uint8, device=device)
        return weight, bias, torch.full((out_channels,), bound / 127, device=device)
    weight = empty_in_huge_pages(shape, dtype, device).uniform_(-bound, bound)
    return weight, bias, None
