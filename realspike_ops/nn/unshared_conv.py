"""Convolution of spikes with a kernel of its own at every output position."""

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn import fold
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.spike_conv import SpikeConv, initial
from realspike_ops.nn.storage import check_storage, stored, unshared


class UnsharedSpikeConv(SpikeConv):
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
        weight, bias, scale = initial(
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
        SpikeConv.__init__(
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
