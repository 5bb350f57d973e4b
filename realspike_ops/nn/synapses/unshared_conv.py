"""Convolution of spikes with a kernel of its own at every output position."""

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
from torch import Tensor, nn
from torch.types import Device

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.functional.leaving import matmul_is_auto
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.nn.synapses.spike_conv import Held, SpikeConv, allocate, reading_of
from realspike_ops.nn.synapses.storage import check_storage, stored, unshared

if TYPE_CHECKING:
    from typing_extensions import Self

    from realspike_ops.nn.synapses.settings import ConvArguments, Reading

_P = ParamSpec("_P")


def input_size_fourth(init: Callable[_P, None]) -> Callable[_P, None]:
    """Let a constructor take ``input_size`` behind ``kernel_size``, its place before 1.0.

    Without the keyword a fourth argument can be nothing else: every layer needs an input size.
    """

    @functools.wraps(init)
    def accepting(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > 3 and "input_size" not in kwargs:
            warnings.warn(
                f"{type(self).__name__}: input_size as the fourth argument is deprecated, and "
                "becomes the stride of nn.Conv2d; pass input_size=... by keyword",
                DeprecationWarning,
                stacklevel=2,
            )
            *given, device = args if len(args) == 10 else (*args, kwargs.pop("device", None))
            kwargs |= {"input_size": given.pop(3), "device": device}
            args = tuple(given)
        init(self, *args, **kwargs)  # pyright: ignore[reportCallIssue]  # in its order, or the old

    return accepting


class UnsharedSpikeConv(SpikeConv):
    """Convolution of binary spikes with a kernel of its own at every output position.

    Takes the place of ``nn.Conv2d`` at inference: 0/1 spikes in, float32 currents out, nothing
    multiplied. See `realspike_ops.unshared_spike_conv`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation: As in ``nn.Conv2d``, in
            its order.
        groups, bias, padding_mode, device: As well; ``padding_mode`` is "zeros".
        dtype: Of the stored weights: float32 (None, whatever torch's default), float16, bfloat16,
            or int8 with one scale per output channel. Sums are float32 (int32 for int8).
        input_size: (H, W) of the spike map; it fixes the output map and with it the weight. By
            keyword. Deprecated: without it, a fourth argument is the input size, and the stride
            and the others follow it.
        storage: "materialized": one kernel per position, additions alone. "factored": one kernel
            and an amplitude per input element, multiplied at every spike; the same currents with
            the memory of a shared convolution, but not free of multiplications.
        fold_scale: Leave int8 currents in steps of the scale: the bias is divided by it here, the
            neurons' threshold is to be (`threshold`), and nothing is multiplied.
        check_binary, algorithm: See `realspike_ops.unshared_spike_conv`.

    Attributes:
        weight: [OH, OW, groups, KH, KW, Cin/groups, Cout/groups], or [1, 1, ...] where one kernel
            serves all positions; for int8 a buffer of uint8, 128 added.
        bias: [Cout] or [Cout, OH, OW] float32, or None.
        amplitude: [Cin, H, W] float32 in factored storage, else None.
        scale: [Cout] float32 of int8 weights, else None.

    Shape: [N, Cin, H, W] of 0 and 1 (or packed spikes) -> [N, Cout, OH, OW].
    """

    @matmul_is_auto
    @input_size_fourth
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
        input_size: int | tuple[int, int],
        storage: str = "materialized",
        fold_scale: bool = False,
        check_binary: bool | None = None,
        algorithm: str = "gather",
        held: Held | None = None,  # see from_weight
    ):
        input_size = checks.pair("input_size", input_size, 1)
        if held is None:
            check_storage(storage, torch.float32 if dtype is None else dtype)
            _, positions = functional.output_size(
                input_size, checks.pair("kernel_size", kernel_size, 1), stride, padding, dilation
            )
            factored = storage == "factored"
            held = allocate(
                (1, 1) if factored else positions, in_channels, out_channels, kernel_size, groups,
                bias, padding_mode, device, dtype,
            )  # fmt: skip
            if factored:
                shape = (in_channels, *input_size)
                amplitude = held.weight.new_empty(shape, dtype=torch.float32)
                held = held._replace(amplitude=amplitude)
        super().__init__(
            held, stride, padding, dilation, fold_scale=fold_scale, check_binary=check_binary,
            algorithm=algorithm,
        )  # fmt: skip
        self.input_size = input_size

    @classmethod
    @matmul_is_auto
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        amplitude: Tensor | None = None,  # [1], [C, 1, 1] or [C, H, W]
        input_size: int | tuple[int, int] | None = None,
        batch_norm: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        storage: str = "materialized",
        fold_scale: bool = False,
        check_binary: bool | None = None,
        algorithm: str = "gather",
    ) -> "Self":
        """Fold an amplitude, and a batch norm behind it, into a convolution (Eq. 11 to 13).

        ``UnsharedSpikeConv.from_conv2d(conv, a, (H, W), bn)(o)`` equals ``bn(conv(a * o))`` in eval
        mode, whatever mode they are in, up to the order of a float32 sum and the rounding of the
        weights to ``dtype``. An amplitude that is constant over space needs one kernel alone,
        whatever the storage.

        Args:
            conv: The trained convolution; zero padding. Weights that are computed (parametrized)
                are taken as they are.
            amplitude: Amplitude of the spikes that it reads; None: 1.
            input_size: (H, W) of its input; may be left out if the amplitude is [C, H, W].
            batch_norm: The batch norm that follows it, if any; its running statistics are used.
            dtype, storage, fold_scale, check_binary, algorithm: As in the constructor.

        Raises:
            TypeError: if ``conv`` is not an ``nn.Conv2d``.
            ValueError: if ``conv`` or ``batch_norm`` does anything else than its torch class
                (forward hooks, those of ``prune`` and the old ``weight_norm`` included; a
                ``forward`` of its own); for another padding mode, an amplitude that does not fit,
                a missing input size, a batch norm without running statistics, numbers that are not
                finite or that ``dtype`` does not hold, or more memory than there is.
        """
        check_storage(storage, dtype)
        weight, bias = fold_into_weight.affine("conv", conv, nn.Conv2d, batch_norm)
        if input_size is None:
            if amplitude is not None:
                checks.check_tensor("amplitude", amplitude)
            if amplitude is None or amplitude.dim() != 3 or 1 in amplitude.shape[1:]:
                raise ValueError(
                    "input_size must be given as (H, W) unless amplitude has shape [C, H, W]"
                )
            input_size = (amplitude.shape[1], amplitude.shape[2])
        return cls._folded(
            weight, bias, conv.groups, amplitude, input_size, dtype, storage, fold_scale,
            reading_of(conv.stride, conv.padding, conv.dilation, check_binary, algorithm),
        )  # fmt: skip

    @classmethod
    def _folded(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        amplitude: Tensor | None,
        input_size: int | tuple[int, int],
        dtype: torch.dtype,
        storage: str,
        fold_scale: bool,
        reading: "Reading",
    ) -> "Self":
        """Fold an amplitude into the weight [Cout, Cin/G, KH, KW] float64 of a convolution."""
        H, W = input_size = checks.pair("input_size", input_size, 1)
        stride, dilation = reading["stride"], reading["dilation"]
        before, output_size = functional.output_size(
            input_size, tuple(weight.shape[2:]), stride, reading["padding"], dilation
        )
        in_channels = weight.shape[1] * groups
        amplitude = weight.new_ones(1) if amplitude is None else amplitude
        amplitude = fold_into_weight.check_amplitude(amplitude, weight)
        checks.check_parameter("amplitude", amplitude, (in_channels, H, W))
        amplitude = amplitude.expand(in_channels, H, W)
        kernel = fold_into_weight.kernel_order(weight, groups)
        scale = kept = None
        if bool((amplitude == amplitude[:, :1, :1]).all()):
            kernel = fold_into_weight.scale_input_channels(kernel, amplitude[:, 0, 0])
            weight, scale = stored(kernel[None, None].contiguous(), dtype)
        elif storage == "factored":
            weight, kept = kernel[None, None].to(dtype).contiguous(), amplitude.float()
        else:
            weight, scale = unshared(
                kernel, amplitude, output_size, stride, before, dilation, dtype
            )
        return cls.from_weight(
            weight,
            None if bias is None else bias.float(),
            input_size=input_size,
            amplitude=kept,
            scale=scale,
            fold_scale=fold_scale,
            **reading,
        )

    def _arguments(self, spikes: Tensor | PackedSpikes) -> "ConvArguments":
        # Another size can give the same output map (with a stride), but not the same borders.
        size = fold_into_weight.map_size(spikes, self.in_channels)
        if size != self.input_size:
            raise ValueError(
                f"spikes must have a map of {self.input_size[0]} x {self.input_size[1]} "
                f"(input_size); got {size[0]} x {size[1]}"
            )
        return super()._arguments(spikes)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_size={self.input_size}"
