"""The gather-accumulate layer: the parameters that all of them have, and the call of the op."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.functional.leaving import matmul_is_auto
from realspike_ops.functional.quantize_weight import in_steps
from realspike_ops.functional.unshared_conv_lif import Added, unshared_spike_conv_lif
from realspike_ops.nn.neurons.folded_lif import FoldedLIF
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.synapses.storage import (
    Stored,
    check_memory,
    check_storage,
    initialise,
    parameter,
)
from realspike_ops.ops.huge_pages import empty_in_huge_pages
from realspike_ops.ops.unshared_matmul import ALGORITHMS

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from realspike_ops.nn.synapses.settings import ConvArguments, LayerSettings, Reading

# The arguments of a layer that its weight does not tell.
SETTINGS = (
    "stride", "padding", "dilation", "fold_scale", "check_binary", "algorithm", "input_size",
)  # fmt: skip


class Held(NamedTuple):
    """The tensors of a layer; `SpikeConv.from_weight` says what each of them is."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    amplitude: Tensor | None = None
    is_drawn: bool = False  # whether the numbers are still to be drawn


class SpikeConv(Stored):
    """Base of the layers. `weight` is in kernel order: a spike selects one contiguous row."""

    weight: Tensor
    bias: nn.Parameter | None
    amplitude: nn.Parameter | None
    scale: Tensor | None
    algorithm: str = "gather"  # also of a layer that was pickled without
    current_dims = 4  # [N, C, H, W]; 2: [N, F]

    def __init__(
        self,
        held: Held,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        fold_scale: bool = False,
        check_binary: bool | None = None,
        algorithm: str = "gather",
    ):
        super().__init__()
        weight, bias, scale, amplitude, is_drawn = held
        self.stride = checks.pair("stride", stride, 1)
        self.dilation = checks.pair("dilation", dilation, 1)
        self.padding = _padding(padding)
        self.groups = weight.shape[2]
        self.kernel_size = (weight.shape[3], weight.shape[4])
        self.in_channels = self.groups * weight.shape[5]
        self.out_channels = self.groups * weight.shape[6]
        self.fold_scale = checks.check_flag("fold_scale", fold_scale) and scale is not None
        if check_binary is not None:
            checks.check_flag("check_binary", check_binary)
        self.check_binary = check_binary
        self.algorithm = checks.check_choice("algorithm", algorithm, ALGORITHMS)
        self.register_buffer("scale", scale)
        bias = None if bias is None else self._in_steps(bias)
        if weight.dtype == torch.uint8:
            self.register_buffer("weight", weight)
        else:
            self.weight = parameter(weight)
        self.bias = None if bias is None else parameter(bias)
        self.amplitude = None if amplitude is None else parameter(amplitude)
        if is_drawn:
            self.reset_parameters()

    @classmethod
    @matmul_is_auto
    def from_weight(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scale: Tensor | None = None,
        amplitude: Tensor | None = None,
        **settings: "Unpack[LayerSettings]",
    ) -> "Self":
        """Make a layer that holds a weight in kernel order, and a bias, as they are.

        Args:
            weight: [OH, OW, groups, KH, KW, Cin/groups, Cout/groups], or [1, 1, ...] where one
                kernel serves all positions; uint8: int8 plus 128 (`quantize_weight`).
            bias: [Cout] or [Cout, OH, OW] float32, or None.
            scale: [Cout] float32, of a uint8 weight alone.
            amplitude: [Cin, H, W] float32, of factored storage alone.
            settings: stride, padding, dilation, fold_scale, check_binary, algorithm and, for
                unshared weights, input_size.

        Raises:
            ValueError: if the weight has other dimensions, or a number is not finite.
        """
        checks.check_tensor("weight", weight)
        if weight.dim() != 7 or 0 in weight.shape:
            raise ValueError(
                "weight must have shape [OH, OW, groups, KH, KW, Cin/groups, Cout/groups], all at "
                f"least 1; got {checks.shape_text(weight)}"
            )
        if unknown := [name for name in settings if name not in SETTINGS]:
            accepted = ", ".join(SETTINGS)
            raise TypeError(f"from_weight() has no argument {unknown[0]!r}; it has {accepted}")
        arguments: dict[str, Any] = {
            **cls._sizes(weight),
            **settings,
            "held": Held(weight, bias, scale, amplitude),
        }
        layer = cls(**arguments)
        layer.check_finite()
        return layer

    @staticmethod
    def _sizes(weight: Tensor) -> dict[str, Any]:  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
        """Return the arguments of the constructor that a weight tells."""
        G, KH, KW, Cin_g, Cout_g = weight.shape[2:]
        return {
            "in_channels": G * Cin_g,
            "out_channels": G * Cout_g,
            "kernel_size": (KH, KW),
            "groups": G,
        }

    def reset_parameters(self) -> None:
        """Initialise weight and bias as nn.Conv2d does, int8 weights over all steps; a = 1."""
        bound = initialise(self.weight)
        with torch.no_grad():
            if self.scale is not None:
                self.scale.fill_(bound / 127)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)
                self.bias.copy_(self._in_steps(self.bias))
            if self.amplitude is not None:
                self.amplitude.fill_(1)

    def _in_steps(self, bias: Tensor) -> Tensor:  # [Cout] or [Cout, OH, OW]
        """Return a bias in what the currents are in."""
        if self.scale is None or not self.fold_scale:
            return bias
        scale = self.scale if bias.dim() == 1 else self.scale[:, None, None]
        return in_steps(bias, scale).to(torch.promote_types(bias.dtype, scale.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        scale = self.scale
        super()._apply(fn, recurse)
        cast = self.scale
        if scale is not None and cast is not None and cast.dtype in (torch.float16, torch.bfloat16):
            # Rounding it would round all weights once more.
            self.scale = scale.to(cast.device, torch.float32)
        return self

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        return functional.unshared_spike_conv(**self._arguments(spikes))

    def fire(
        self,
        spikes: Tensor | PackedSpikes,
        neurons: FoldedLIF,
        *,
        maps: int = 1,
        signed: bool = False,
        added: Sequence[Added] = (),
        dims: int | None = None,
    ) -> PackedSpikes:
        """Run ``neurons(self(spikes) + ..., packed=True)`` as one op, in inference.

        ``maps``, ``signed`` and ``added`` are those of `realspike_ops.unshared_spike_conv_lif`;
        ``dims`` the dimensions of the current: 4 of maps, 3 of lines, 2 of features.
        """
        dims = self.current_dims if dims is None else dims
        dynamics: Any = {**neurons.dynamics}
        for name in ("decay", "v_threshold"):
            if isinstance(value := dynamics[name], Tensor):
                dynamics[name] = of_maps(value, dims)
        words = unshared_spike_conv_lif(
            **self._arguments(spikes),
            timesteps=neurons.timesteps,
            maps=maps,
            signed=signed,
            added=added,
            **dynamics,
        )
        for dim in (-3, -2)[: 4 - dims]:
            words = words.squeeze(dim)
        return PackedSpikes(words, self.out_channels, neurons.emission == "ternary")

    def _arguments(self, spikes: Tensor | PackedSpikes) -> "ConvArguments":
        check_binary = self.check_binary
        if isinstance(spikes, PackedSpikes):
            # A LIF layer made the words: they need no check.
            spikes, check_binary = spikes.binary_words(self.in_channels), False
        # .half() and .bfloat16() change how weights are stored. Bias and amplitude stay float32.
        return {
            "spikes": spikes,
            "weight": self.weight,
            "bias": _float32(self.bias),
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "amplitude": _float32(self.amplitude),
            "scale": None if self.fold_scale else self.scale,
            "check_binary": check_binary,
            "algorithm": self.algorithm,
        }

    def threshold(self, v_threshold: float = 0.5) -> float | Tensor:  # [Cout, 1, 1]
        """Return the threshold, also a reset potential, for neurons that read this layer.

        It is ``v_threshold`` divided by the scale where that is folded (``fold_scale=True``): the
        currents are then in steps of the scale.
        """
        if self.scale is None or not self.fold_scale:
            return v_threshold
        return v_threshold / self.scale[:, None, None]

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bias is not None}{self._storage_repr()}"
        )

    def _storage_repr(self) -> str:
        """Return what differs from the default."""
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


def reading_of(
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    check_binary: bool | None = None,
    algorithm: str = "gather",
) -> "Reading":
    """Return how a layer reads its map, with the window of a convolution."""
    return {
        "stride": checks.pair("stride", stride, 1),
        "padding": _padding(padding),
        "dilation": checks.pair("dilation", dilation, 1),
        "check_binary": check_binary,
        "algorithm": algorithm,
    }


def of_maps(parameter: Tensor, dims: int) -> Tensor:
    """Write what broadcasts against lines [C, L] (`dims` 3) or features [F] (2) for [C, H, W]."""
    for _ in range(dims, 4) if parameter.dim() == dims - 1 else ():
        parameter = parameter.unsqueeze(1)
    return parameter


def _padding(padding: int | tuple[int, ...] | str) -> tuple[int, int] | str:
    return padding if isinstance(padding, str) else checks.pair("padding", padding, 0)


def _float32(tensor: Tensor | None) -> Tensor | None:
    # float64 stays: a kernel refuses it, the reference computes in it.
    if tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.float()
    return tensor


def allocate(
    positions: tuple[int, int],
    in_channels: int,
    out_channels: int,
    kernel_size: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> Held:
    """Allocate a weight, a bias and the scale of an int8 weight; their numbers are to be drawn."""
    # The kernels take these types whatever the default one is.
    dtype = torch.float32 if dtype is None else dtype
    check_storage("materialized", dtype)
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        checks.check_positive_int(name, value)
        if value % checks.check_positive_int("groups", groups):
            raise ValueError(f"{name} must be divisible by groups ({groups}); got {value}")
    checks.check_choice("padding_mode", padding_mode, ("zeros",))
    checks.check_flag("bias", bias)
    KH, KW = checks.pair("kernel_size", kernel_size, 1)
    shape = (*positions, groups, KH, KW, in_channels // groups, out_channels // groups)
    device = torch.empty(0, device=device).device
    check_memory(shape, dtype, device, positions[0] * positions[1])
    is_int8 = dtype == torch.int8
    weight = empty_in_huge_pages(shape, torch.uint8 if is_int8 else dtype, device)

    def by_channel() -> Tensor:
        return torch.empty(out_channels, dtype=torch.float32, device=device)

    own_bias, scale = by_channel() if bias else None, by_channel() if is_int8 else None
    return Held(weight, own_bias, scale, is_drawn=True)
