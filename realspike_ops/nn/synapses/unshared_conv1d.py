"""Unshared spike convolution of sequences."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.types import Device

from realspike_ops import _checks as checks
from realspike_ops.functional.leaving import matmul_is_auto
from realspike_ops.nn.packed_spikes import PackedSpikes, as_map
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.nn.synapses.spike_conv import Held, reading_of
from realspike_ops.nn.synapses.storage import check_storage
from realspike_ops.nn.synapses.unshared_conv import UnsharedSpikeConv, input_size_fourth

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from realspike_ops.nn.synapses.settings import Reading, StorageSettings, WeightSettings


class UnsharedSpikeConv1d(UnsharedSpikeConv):
    """Convolution of binary spikes along one dimension, with a kernel for every output position.

    `UnsharedSpikeConv` of a map with one row; weight, bias and amplitude keep its shapes, with
    OH = KH = H = 1.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As in ``nn.Conv1d``, in
            its order.
        groups, bias, padding_mode, device: As well; ``padding_mode`` is "zeros".
        input_size: Length L of the sequence. By keyword; as the fourth argument it is deprecated.
        dtype, storage, fold_scale, check_binary, algorithm: As in `UnsharedSpikeConv`.

    Shape: [N, Cin, L] of 0 and 1 (or packed [N, L, words]) -> [N, Cout, OL].
    """

    @matmul_is_auto
    @input_size_fourth
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        input_size: int,
        held: Held | None = None,  # see from_weight
        **settings: "Unpack[StorageSettings]",
    ):
        reading = _reading_of(stride, padding, dilation)
        super().__init__(
            in_channels,
            out_channels,
            (1, _one("kernel_size", kernel_size, 1)),
            stride=reading["stride"],
            padding=reading["padding"],
            dilation=reading["dilation"],
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
            input_size=(1, _one("input_size", input_size, 1)),
            held=held,
            **settings,
        )

    @classmethod
    @matmul_is_auto
    def from_weight(
        cls, weight: Tensor, bias: Tensor | None = None, **settings: "Unpack[WeightSettings]"
    ) -> "Self":
        """Make a layer of a weight; `SpikeConv.from_weight`, with the pairs of a map of one row."""
        given: dict[str, Any] = {**settings}
        for name in ("stride", "padding", "dilation", "input_size"):
            if isinstance(given.get(name), (tuple, list)):
                given[name] = given[name][-1:]
        return super().from_weight(weight, bias, **given)

    @staticmethod
    def _sizes(weight: Tensor) -> dict[str, Any]:
        sizes = UnsharedSpikeConv._sizes(weight)
        return sizes | {"kernel_size": sizes["kernel_size"][1]}

    @classmethod
    @matmul_is_auto
    def from_conv1d(
        cls,
        conv: nn.Conv1d,
        amplitude: Tensor | None = None,  # [1], [C, 1] or [C, L]
        input_size: int | None = None,
        batch_norm: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        storage: str = "materialized",
        fold_scale: bool = False,
        check_binary: bool | None = None,
        algorithm: str = "gather",
    ) -> "Self":
        """Fold an amplitude, and a batch norm behind it, into a convolution (Eq. 11 to 13).

        Args:
            conv: The trained convolution; zero padding.
            amplitude: Amplitude of the spikes that it reads; None: 1.
            input_size: Length of its input; may be left out if the amplitude is [C, L].
            batch_norm: The batch norm that follows it, if any; its running statistics are used.
            dtype, storage, fold_scale, check_binary, algorithm: As in the constructor.

        Raises:
            TypeError: if ``conv`` is not an ``nn.Conv1d``.
            ValueError: as `UnsharedSpikeConv.from_conv2d`.
        """
        check_storage(storage, dtype)
        weight, bias = fold_into_weight.affine("conv", conv, nn.Conv1d, batch_norm)
        if amplitude is not None:
            checks.check_tensor("amplitude", amplitude)
            if amplitude.dim() > 1:
                amplitude = amplitude.unsqueeze(-2)  # [C, 1, L]
        if input_size is None:
            if amplitude is None or amplitude.shape[-1] == 1:
                raise ValueError("input_size must be given unless amplitude has shape [C, L]")
            input_size = amplitude.shape[-1]
        return cls._folded(
            weight.unsqueeze(2), bias, conv.groups, amplitude,
            (1, _one("input_size", input_size, 1)), dtype, storage, fold_scale,
            _reading_of(conv.stride, conv.padding, conv.dilation, check_binary, algorithm),
        )  # fmt: skip

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        if isinstance(spikes, PackedSpikes):
            return super().forward(as_map(spikes, 3)).squeeze(2)
        checks.check_tensor("spikes", spikes)
        if spikes.dim() != 3:
            raise ValueError(
                f"spikes must have shape [N, {self.in_channels}, L], or packed [N, L, words] "
                f"int32; got {checks.shape_text(spikes)}"
            )
        packed = spikes.dtype == torch.int32
        return super().forward(spikes.unsqueeze(1 if packed else 2)).squeeze(2)


def _reading_of(
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    check_binary: bool | None = None,
    algorithm: str = "gather",
) -> "Reading":
    """Return how a map of one row is read."""
    return reading_of(
        (1, _one("stride", stride, 1)),
        padding if isinstance(padding, str) else (0, _one("padding", padding, 0)),
        (1, _one("dilation", dilation, 1)),
        check_binary,
        algorithm,
    )


def _one(name: str, value: object, low: int) -> int:
    """Accept an int, or a tuple of one as nn.Conv1d has them."""
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}; got {value}")
    return value
