"""Gather-accumulate layers: unshared and shared convolution, and linear, from one op."""

import math

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.conv_lif_functional import unshared_spike_conv_lif
from realspike_ops.nn import fold
from realspike_ops.nn.folded_lif import FoldedLIF
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.storage import check_memory, check_storage, stored, unshared
from realspike_ops.ops.unshared_conv import empty_weight

ALGORITHMS = ("gather", "matmul", "auto")


class _SpikeConv(nn.Module):
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


def _initial(
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
    weight = empty_weight(shape, dtype, device).uniform_(-bound, bound)
    return weight, bias, None


class UnsharedSpikeConv(_SpikeConv):
    """Convolution of binary spikes with a kernel of its own at every output position.

    Takes the place of ``nn.Conv2d`` at inference: 0/1 spikes in, float32 currents out, nothing
    multiplied. See `realspike_ops.unshared_spike_conv`.

    Args:
        input_size: (H, W) of the spike map; it fixes the output map and with it the weight.
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: As in
            ``nn.Conv2d``.
        dtype: Of the stored weights: float32, float16, bfloat16, or int8 with one scale per output
            channel. Sums are float32 (int32 for int8).
        storage: "materialized": one kernel per position, additions alone. "factored": one kernel
            and an amplitude per input element, multiplied at every spike; the same currents with
            the memory of a shared convolution, but not free of multiplications.
        fold_scale: Leave int8 currents in steps of the scale: the bias is divided by it here, the
            neurons' threshold is to be (`threshold`), and nothing is multiplied.
        algorithm, check_binary: See `realspike_ops.unshared_spike_conv`.

    Attributes:
        weight: [OH, OW, groups, KH, KW, Cin/groups, Cout/groups], or [1, 1, ...] where one kernel
            serves all positions; for int8 a buffer of uint8, 128 added.
        bias: [Cout] or [Cout, OH, OW] float32, or None.
        amplitude: [Cin, H, W] float32 in factored storage, else None.
        scale: [Cout] float32 of int8 weights, else None.

    Shape: [N, Cin, H, W] of 0 and 1 (or packed spikes) -> [N, Cout, OH, OW].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: "int | tuple[int, int]",
        input_size: "int | tuple[int, int]",
        stride: "int | tuple[int, int]" = 1,
        padding: "int | tuple[int, int] | str" = 0,
        dilation: "int | tuple[int, int]" = 1,
        groups: int = 1,
        bias: bool = True,
        device=None,
        *,
        dtype: torch.dtype = torch.float32,
        storage: str = "materialized",
        fold_scale: bool = False,
        algorithm: str = "gather",
        check_binary: bool | None = None,
    ):
        check_storage(storage, dtype)
        input_size = checks.pair("input_size", input_size, 1)
        _, output_size = functional.output_size(
            input_size, checks.pair("kernel_size", kernel_size, 1), stride, padding, dilation
        )
        factored = storage == "factored"
        weight, bias, scale = _initial(
            *((1, 1) if factored else output_size, in_channels, out_channels),
            *(kernel_size, groups, bias, device, dtype),
        )
        amplitude = weight.new_ones((in_channels, *input_size), dtype=torch.float32)
        super().__init__(
            *(weight, bias, stride, padding, dilation),
            amplitude=amplitude if factored else None,
            scale=scale,
            fold_scale=fold_scale and scale is not None,
            algorithm=algorithm,
            check_binary=check_binary,
        )
        self.input_size = input_size

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        amplitude: Tensor | None = None,  # [1], [C, 1, 1] or [C, H, W]
        input_size: "int | tuple[int, int] | None" = None,
        batch_norm: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        storage: str = "materialized",
        fold_scale: bool = False,
        algorithm: str = "gather",
        check_binary: bool | None = None,
    ) -> "UnsharedSpikeConv":
        """Fold an amplitude, and a batch norm behind it, into a convolution (Eq. 11 to 13).

        ``UnsharedSpikeConv.from_conv2d(conv, a, (H, W), bn)(o)`` equals ``bn(conv(a * o))`` in eval
        mode, up to the order of a float32 sum and the rounding of the weights to ``dtype``. An
        amplitude that is constant over space needs one kernel alone, whatever the storage.

        Args:
            conv: The trained convolution; zero padding.
            amplitude: Amplitude of the spikes that it reads; None: 1.
            input_size: (H, W) of its input; may be left out if the amplitude is [C, H, W].
            batch_norm: The batch norm that follows it, if any; its running statistics are used.
            dtype, storage, fold_scale, algorithm, check_binary: As in the constructor.

        Raises:
            TypeError: if ``conv`` is not an ``nn.Conv2d``.
            ValueError: for another padding mode, an amplitude that does not fit, a missing input
                size, a batch norm without running statistics, or more memory than there is.
        """
        check_storage(storage, dtype)
        fold.check_conv2d(conv)
        if amplitude is not None:
            checks.check_tensor("amplitude", amplitude)
        if input_size is None:
            if amplitude is None or amplitude.dim() != 3 or 1 in amplitude.shape[1:]:
                raise ValueError(
                    "input_size must be given as (H, W) unless amplitude has shape [C, H, W]"
                )
            input_size = tuple(amplitude.shape[1:])
        H, W = input_size = checks.pair("input_size", input_size, 1)
        geometry = fold.conv_geometry(conv)
        before, output_size = functional.output_size(input_size, conv.kernel_size, **geometry)
        if amplitude is None:
            amplitude = conv.weight.new_ones(1)
        fold.check_folded_amplitude(amplitude, conv.in_channels, input_size)
        amplitude = amplitude.detach().to(conv.weight.device).double()
        amplitude = amplitude.expand(conv.in_channels, H, W)
        weight, bias = fold.affine_conv2d(conv, batch_norm)
        kernel = fold.kernel_order(weight, conv.groups)
        scale = kept = None
        if bool((amplitude == amplitude[:, :1, :1]).all()):
            kernel = fold.scale_input_channels(kernel, amplitude[:, 0, 0])
            weight, scale = stored(kernel[None, None].contiguous(), dtype)
        elif storage == "factored":
            weight, kept = kernel[None, None].to(dtype).contiguous(), amplitude.float()
        else:
            weight, scale = unshared(
                kernel, amplitude, output_size, conv.stride, before, conv.dilation, dtype
            )
        folded = cls.__new__(cls)
        _SpikeConv.__init__(
            *(folded, weight, None if bias is None else bias.float()),
            **geometry,
            amplitude=kept,
            scale=scale,
            fold_scale=fold_scale and scale is not None,
            algorithm=algorithm,
            check_binary=check_binary,
        )
        folded.input_size = input_size
        return folded

    def _arguments(self, spikes: "Tensor | PackedSpikes") -> dict:
        # Another size can give the same output map (with a stride), but not the same borders.
        size = fold.map_size(spikes, self.in_channels)
        if size != self.input_size:
            raise ValueError(
                f"spikes must have a map of {self.input_size[0]} x {self.input_size[1]} "
                f"(input_size); got {size[0]} x {size[1]}"
            )
        return super()._arguments(spikes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_size={self.input_size}"


class SpikeConv2d(_SpikeConv):
    """Convolution of binary spikes with one kernel for all positions, by additions alone.

    What a re-parameterized convolution becomes when its amplitude is constant over space: the
    gather-accumulate of `UnsharedSpikeConv` with the weights of an ``nn.Conv2d``.

    Attributes:
        weight: [1, 1, groups, KH, KW, Cin/groups, Cout/groups] float32.
        bias: [Cout] float32, or None.

    Shape: [N, Cin, H, W] of 0 and 1 (or packed spikes) -> [N, Cout, OH, OW].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: "int | tuple[int, int]",
        stride: "int | tuple[int, int]" = 1,
        padding: "int | tuple[int, int] | str" = 0,
        dilation: "int | tuple[int, int]" = 1,
        groups: int = 1,
        bias: bool = True,
        device=None,
    ):
        weight, bias, _ = _initial(
            (1, 1), in_channels, out_channels, kernel_size, groups, bias, device
        )
        super().__init__(weight, bias, stride, padding, dilation)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        amplitude: Tensor | None = None,  # [1] or [C, 1, 1]
        batch_norm: nn.Module | None = None,
    ) -> "SpikeConv2d":
        """Fold a layer- or channel-wise amplitude, and a batch norm behind it, into a convolution.

        Raises:
            TypeError: if ``conv`` is not an ``nn.Conv2d``.
            ValueError: for another padding mode, or an amplitude that varies over space (use
                `UnsharedSpikeConv.from_conv2d`).
        """
        fold.check_conv2d(conv)
        weight, bias = fold.affine_conv2d(conv, batch_norm)
        kernel = fold.kernel_order(weight, conv.groups)
        if amplitude is not None:
            checks.check_tensor("amplitude", amplitude)
            if amplitude.dim() == 3 and 1 not in amplitude.shape[1:]:
                raise ValueError(
                    f"amplitude must have shape [1] or [{conv.in_channels}, 1, 1] for a shared "
                    f"kernel; got {checks.shape_text(amplitude)}: use UnsharedSpikeConv.from_conv2d"
                )
            fold.check_folded_amplitude(amplitude, conv.in_channels, (1, 1))
            kernel = fold.scale_input_channels(kernel, amplitude.detach().to(weight))
        folded = cls.__new__(cls)
        _SpikeConv.__init__(
            folded,
            kernel.float().contiguous()[None, None],
            None if bias is None else bias.float(),
            **fold.conv_geometry(conv),
        )
        return folded

    def forward(self, spikes: Tensor) -> Tensor:
        fold.map_size(spikes, self.in_channels)
        return super().forward(spikes)


class SpikeLinear(_SpikeConv):
    """Linear layer over binary spikes by additions alone: a convolution with one output position.

    Its kernel is as large as the map that it reads: 1 x 1 for features. Maps need not be flattened,
    so that their bits can be read as they lie.

    Attributes:
        weight: [1, 1, 1, 1, 1, in_features, out_features] float32, or, over whole maps,
            [1, 1, 1, H, W, C, out_features].
        bias: [out_features] float32, or None.

    Shape: [N, in_features] of 0 and 1 (or packed [N, words]), or maps [N, C, H, W] (or packed
    [N, H, W, words]) -> [N, out_features].
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None):
        weight, bias, _ = _initial((1, 1), in_features, out_features, 1, 1, bias, device)
        super().__init__(weight, bias)

    @property
    def in_features(self) -> int:
        return self.in_channels * math.prod(self.kernel_size)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        amplitude: Tensor | None = None,  # [1], [in_features], [C, H, W] or [C, 1, 1]
        batch_norm: nn.Module | None = None,
        scale: float = 1.0,
    ) -> "SpikeLinear":
        """Fold the amplitude of the spikes, a batch norm and a scale of the output into a linear
        layer.

        A channel-wise amplitude [C, 1, 1] stands for C maps of equal size that were flattened.

        Raises:
            TypeError: if ``linear`` is not an ``nn.Linear``, or the amplitude not a tensor.
            ValueError: if the amplitude does not fit the features.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be an nn.Linear; got {type(linear).__name__}")
        weight = linear.weight.detach().double().t()  # [in, out]
        bias = None if linear.bias is None else linear.bias.detach().double()
        if amplitude is not None:
            per_feature = fold.amplitude_of_features(amplitude, linear.in_features)
            weight = weight * per_feature.to(weight)[:, None]
        if batch_norm is not None:
            factor, shift = (
                t.detach() for t in fold.batch_norm_affine(batch_norm, linear.out_features)
            )
            weight = weight * factor
            bias = shift if bias is None else bias * factor + shift
        weight = (weight * scale).float().contiguous()[(None,) * 5]
        folded = cls.__new__(cls)
        _SpikeConv.__init__(folded, weight, None if bias is None else (bias * scale).float())
        return folded

    def forward(self, spikes: "Tensor | PackedSpikes") -> Tensor:
        if isinstance(spikes, PackedSpikes):
            words = spikes.binary_words(self.in_channels)
            if words.dim() == 2:
                spikes = PackedSpikes(words[:, None, None], self.in_channels)
        else:
            checks.check_tensor("spikes", spikes)
            packed = spikes.dtype == torch.int32
            if spikes.dim() == 2 and packed:
                spikes = spikes[:, None, None]
            elif spikes.dim() == 2 and spikes.shape[1] == self.in_features:
                spikes = spikes.unflatten(1, (self.in_channels, *self.kernel_size))
        size = fold.map_size(spikes, self.in_channels) if self._is_map(spikes) else None
        if size != self.kernel_size:
            raise ValueError(
                f"spikes must have shape [N, {self.in_features}]{self._map_text()}; "
                f"got {checks.shape_text(getattr(spikes, 'words', spikes))}"
            )
        return super().forward(spikes).flatten(1)

    @staticmethod
    def _is_map(spikes) -> bool:
        return isinstance(spikes, PackedSpikes) or spikes.dim() == 4

    def _map_text(self) -> str:
        if self.kernel_size == (1, 1):
            return ""
        H, W = self.kernel_size
        return f" or [N, {self.in_channels}, {H}, {W}]"

    def extra_repr(self) -> str:
        size = "" if self.kernel_size == (1, 1) else f", map_size={self.kernel_size}"
        return (
            f"{self.in_features}, {self.out_channels}{size}, "
            f"bias={self.bias is not None}{self._storage_repr()}"
        )
