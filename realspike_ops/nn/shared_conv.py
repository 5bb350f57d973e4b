"""What channel-wise amplitudes fold to: one kernel for all positions, and the linear layer."""

import math

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn import fold
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.spike_conv import SpikeConv, initial


class SpikeConv2d(SpikeConv):
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
        weight, bias, _ = initial(
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
        SpikeConv.__init__(
            folded,
            kernel.float().contiguous()[None, None],
            None if bias is None else bias.float(),
            **fold.conv_geometry(conv),
        )
        return folded

    def forward(self, spikes: Tensor) -> Tensor:
        fold.map_size(spikes, self.in_channels)
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

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None):
        weight, bias, _ = initial((1, 1), in_features, out_features, 1, 1, bias, device)
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
        SpikeConv.__init__(folded, weight, None if bias is None else (bias * scale).float())
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
