"""One kernel for all positions: the layers that channel-wise amplitudes fold to."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.types import Device

from realspike_ops import _checks as checks
from realspike_ops.functional.leaving import matmul_is_auto
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.nn.synapses.spike_conv import Held, SpikeConv, allocate, reading_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from realspike_ops.nn.synapses.settings import ConvArguments, Switches


class SpikeConv2d(SpikeConv):
    """Convolution of binary spikes with one kernel for all positions, by additions alone.

    A re-parameterized convolution becomes this layer when its amplitude is constant over space: the
    gather-accumulate of `UnsharedSpikeConv` with the weights of an ``nn.Conv2d``.

    Args:
        in_channels, out_channels, kernel_size, stride: As in `UnsharedSpikeConv`.
        padding, dilation, groups, bias, padding_mode, device, dtype: As in `UnsharedSpikeConv`.
        settings: ``fold_scale``, ``check_binary`` and ``algorithm`` of `UnsharedSpikeConv`.

    Attributes:
        weight: [1, 1, groups, KH, KW, Cin/groups, Cout/groups] float32.
        bias: [Cout] float32, or None.

    Shape: [N, Cin, H, W] of 0 and 1 (or packed spikes) -> [N, Cout, OH, OW].
    """

    @matmul_is_auto
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        held: Held | None = None,  # see from_weight
        **settings: "Unpack[Switches]",
    ):
        held = held or allocate(
            (1, 1), in_channels, out_channels, kernel_size, groups, bias, padding_mode, device,
            dtype,
        )  # fmt: skip
        super().__init__(held, stride, padding, dilation, **settings)

    @classmethod
    @matmul_is_auto
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        amplitude: Tensor | None = None,  # [1] or [C, 1, 1]
        batch_norm: nn.Module | None = None,
        *,
        algorithm: str = "gather",
    ) -> "Self":
        """Fold a layer- or channel-wise amplitude, and a batch norm behind it, into a convolution.

        Raises:
            TypeError: if ``conv`` is not an ``nn.Conv2d``.
            ValueError: as `UnsharedSpikeConv.from_conv2d`, and for an amplitude that varies over
                space (use `UnsharedSpikeConv.from_conv2d`).
        """
        weight, bias = fold_into_weight.affine("conv", conv, nn.Conv2d, batch_norm)
        kernel = fold_into_weight.kernel_order(weight, conv.groups)
        if amplitude is not None:
            amplitude = fold_into_weight.check_amplitude(amplitude, weight)
            in_channels = weight.shape[1] * conv.groups
            if amplitude.dim() == 3 and 1 not in amplitude.shape[1:]:
                raise ValueError(
                    f"amplitude must have shape [1] or [{in_channels}, 1, 1] for a shared "
                    f"kernel; got {checks.shape_text(amplitude)}: use UnsharedSpikeConv.from_conv2d"
                )
            checks.check_parameter("amplitude", amplitude, (in_channels, 1, 1))
            kernel = fold_into_weight.scale_input_channels(kernel, amplitude)
        return cls.from_weight(
            kernel.float().contiguous()[None, None],
            None if bias is None else bias.float(),
            **reading_of(conv.stride, conv.padding, conv.dilation, algorithm=algorithm),
        )

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        fold_into_weight.map_size(spikes, self.in_channels)
        return super().forward(spikes)


class SpikeLinear(SpikeConv):
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

    current_dims = 2

    @matmul_is_auto
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        held: Held | None = None,  # see from_weight
        **settings: "Unpack[Switches]",
    ):
        for name, count in (("in_features", in_features), ("out_features", out_features)):
            checks.check_positive_int(name, count)
        held = held or allocate(
            (1, 1), in_features, out_features, bias=bias, device=device, dtype=dtype
        )
        super().__init__(held, **settings)

    @staticmethod
    def _sizes(weight: Tensor) -> dict[str, Any]:  # [1, 1, 1, H, W, C, F]
        return {
            "in_features": math.prod(weight.shape[2:6]),
            "out_features": weight.shape[2] * weight.shape[6],
        }

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
    ) -> "Self":
        """Fold the amplitude of the spikes, a batch norm and a scale of the output into a linear
        layer.

        A channel-wise amplitude [C, 1, 1] stands for C maps of equal size that were flattened.

        Raises:
            TypeError: if ``linear`` is not an ``nn.Linear``, or the amplitude not a tensor.
            ValueError: if the amplitude does not fit the features, or as
                `UnsharedSpikeConv.from_conv2d`.
        """
        scale = checks.check_number("scale", scale)
        weight, bias = fold_into_weight.affine("linear", linear, nn.Linear, batch_norm)
        weight = weight.t() * scale  # [in, out]
        if amplitude is not None:
            amplitude = fold_into_weight.check_amplitude(amplitude, weight)
            weight = (
                weight * fold_into_weight.amplitude_of_features(amplitude, weight.shape[0])[:, None]
            )
        return cls.from_weight(
            weight.float().contiguous()[(None,) * 5],
            None if bias is None else (bias * scale).float(),
        )

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        return super().forward(spikes).flatten(1)

    def _arguments(self, spikes: Tensor | PackedSpikes) -> "ConvArguments":
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
                spikes = torch.unflatten(spikes, 1, (self.in_channels, *self.kernel_size))
        is_map = isinstance(spikes, PackedSpikes) or spikes.dim() == 4
        size = fold_into_weight.map_size(spikes, self.in_channels) if is_map else None
        if size != self.kernel_size:
            given = spikes.words if isinstance(spikes, PackedSpikes) else spikes
            raise ValueError(
                f"spikes must have shape [N, {self.in_features}]{self._map_text()}; "
                f"got {checks.shape_text(given)}"
            )
        return super()._arguments(spikes)

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
