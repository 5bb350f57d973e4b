"""The documented convolution of spikes, which adds the rows of weights that they select."""

from typing import NamedTuple

import torch
from torch import Tensor

import realspike_ops.ops.pack_spikes
from realspike_ops import _checks as checks
from realspike_ops.functional.conv_geometry import geometry_of
from realspike_ops.functional.leaving import matmul_is_auto
from realspike_ops.functional.pack_spikes import check_words
from realspike_ops.ops import unshared_conv, unshared_matmul
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.unshared_conv_factored import factored_conv2d

WEIGHT_DTYPES = (*checks.FLOATS, torch.uint8)


@matmul_is_auto
def unshared_spike_conv(
    spikes: Tensor,  # [N, Cin, H, W], or packed [N, H, W, ceil(Cin / 32)]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or [1, 1, ...] for all positions
    bias: Tensor | None = None,  # [Cout] or [Cout, OH, OW]
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    amplitude: Tensor | None = None,  # [Cin, H, W]
    scale: Tensor | None = None,  # [Cout]
    check_binary: bool | None = None,
    algorithm: str = "gather",
) -> Tensor:  # [N, Cout, OH, OW]
    r"""Convolve binary spikes with a kernel for every output position, by additions alone.

    .. math::
        out[n, :, k, l] = bias + \sum_{i, j, m} W[k, l, i, j, m, :]\;
            o[n, m, k s - p + i d, l s - p + j d]

    A spike selects one contiguous row of weights, which is added: nothing is multiplied. Equal to
    ``realspike_ops.reference.unshared_spike_conv`` up to the order of a float32 sum, and to
    ``F.conv2d`` when all positions hold the same kernel.

    Args:
        spikes: 0 or 1, dense in any dtype that `pack_spikes` takes, or already packed (int32).
        weight: In kernel order; float32, float16 or bfloat16, added in float32; or uint8, which
            holds an int8 weight plus 128 (`quantize_weight`), added in int32. The first two sizes
            are the output map; 1 x 1, or expanded, is one kernel that all positions share.
        bias: float32, one per output channel or one per output element.
        stride, padding, dilation: As in ``F.conv2d``, padding "same" and "valid" included.
        amplitude: float32. Factored storage: the weight is one kernel for all positions, and the
            row that a spike selects is multiplied by the spike's amplitude; equal to the unshared
            weight ``amplitude * kernel``, in a fraction of its memory, but not free of
            multiplications. Not with uint8 weights.
        scale: float32, with uint8 weights alone: multiplies their sums, once per output. None
            leaves the currents in steps of the scale, so that bias and threshold are to be divided
            by it instead, and nothing is multiplied.
        check_binary: Raise if a dense spike is neither 0 nor 1, or a packed word has bits beyond
            the last channel. Default: on the CPU, where it costs next to nothing; on a GPU it makes
            the host wait for the result, so there it is on request.
        algorithm: "gather" adds the rows of weights that spikes select, and nothing else. "auto"
            may multiply: on a GPU with matrix units (compute capability 8.0 and newer), and with
            int8 weights on a CPU that has one (AMX), the bits of many samples are multiplied with
            the weights, which are to be finite, where that should be faster
            (docs/unshared_conv.md); elsewhere it is the gather. int8 weights give the same bits
            either way, others the same sums in another order.

    Returns:
        float32 currents; channels_last if the spikes are channels_last or packed.

    Raises:
        TypeError: if a dtype is not accepted.
        ValueError: if the channels, the words or the output size do not fit the weight, spikes are
            not binary, or the devices differ.

    Note:
        Deterministic. Every output is one float32 sum; on the CPU in ascending (i, j, m), the same
        bits for any number of threads. Differentiable with respect to weight, bias, amplitude and
        dense spikes (for a surrogate upstream), not to uint8 weights; backward keeps one bit per
        spike.

    Reference:
        Guo et al., "Real Spike", ECCV 2022, equations (11) to (13).
    """
    checks.check_choice("algorithm", algorithm, unshared_matmul.ALGORITHMS)
    conv = check_convolution(
        spikes, weight, bias, stride, padding, dilation, amplitude, scale, check_binary
    )
    if scale is not None and scale.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "scale must not require a gradient: the sums that it multiplies are not kept; detach it"
        )
    if amplitude is not None and spikes.device.type == "cuda":
        if conv.check_binary and (not conv.packed or is_plain_eager(spikes)):
            channels = weight.shape[2] * weight.shape[5]
            realspike_ops.ops.pack_spikes.packed_words(spikes.detach(), channels, True)
        return factored_conv2d(spikes, weight, bias, amplitude, conv.output_size, conv.geometry)
    checks.check_not_differentiated_by_functorch("unshared_spike_conv")
    arguments = (*conv.tensors, conv.output_size, *conv.geometry)
    multiplies = conv.multiplies(algorithm)
    op = unshared_matmul.unshared_matmul if multiplies else unshared_conv.unshared_conv
    return op(*arguments, conv.channels_last, conv.check_binary)


class _Convolution(NamedTuple):
    """The arguments of a convolution of spikes, checked."""

    # spikes, weight, bias, amplitude, scale
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
    output_size: tuple[int, int]
    geometry: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # stride, padding, dilation
    packed: bool
    channels_last: bool
    check_binary: bool

    def multiplies(self, algorithm: str) -> bool:
        """Whether it runs on matrix units."""
        spikes, weight, _, amplitude, _ = self.tensors
        sizes = (spikes, weight, amplitude, self.output_size)
        return unshared_matmul.multiplies(algorithm, *sizes)


def check_convolution(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    amplitude: Tensor | None,
    scale: Tensor | None,
    check_binary: bool | None,
) -> _Convolution:
    """Check the arguments of `unshared_spike_conv`."""
    checks.check_tensor("spikes", spikes)
    checks.check_supported_device("spikes", spikes)
    checks.check_tensor("weight", weight)
    checks.check_device("weight", weight, "spikes", spikes)
    checks.check_dtype("weight", weight, WEIGHT_DTYPES, _hint_for_int8(weight))
    if weight.dim() != 7 or 0 in weight.shape:
        raise ValueError(
            "weight must have shape [OH, OW, groups, KH, KW, Cin/groups, Cout/groups], all at "
            f"least 1; got {checks.shape_text(weight)}"
        )
    if spikes.dim() != 4:
        raise ValueError(
            "spikes must have shape [N, Cin, H, W], or packed [N, H, W, ceil(Cin / 32)] int32; "
            f"got {checks.shape_text(spikes)}"
        )
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    packed = spikes.dtype == torch.int32
    if packed:
        check_words("spikes", spikes, G * Cin_g, low=4)
    elif spikes.shape[1] != G * Cin_g:
        raise ValueError(
            f"spikes must have {G * Cin_g} channels to fit weight {checks.shape_text(weight)}; "
            f"got {spikes.shape[1]}"
        )
    H, W = spikes.shape[1:3] if packed else spikes.shape[2:]
    geometry, expected = geometry_of(H, W, KH, KW, stride, padding, dilation)
    if not (checks.same_sizes((OH, OW), expected) or OH == OW == 1):
        raise ValueError(
            f"weight is for an output map of {OH} x {OW}; spikes of {H} x {W} with stride "
            f"{stride}, padding {padding}, dilation {dilation} give {expected[0]} x {expected[1]}"
        )
    if bias is not None:
        checks.check_tensor("bias", bias)
        checks.check_device("bias", bias, "spikes", spikes)
        checks.check_dtype("bias", bias, (torch.float32,))
        channels = (G * Cout_g,)
        if not any(checks.same_sizes(bias.shape, s) for s in (channels, (*channels, *expected))):
            raise ValueError(
                f"bias must have shape [{G * Cout_g}] or [{G * Cout_g}, {expected[0]}, "
                f"{expected[1]}]; got {checks.shape_text(bias)}"
            )
    if amplitude is not None:
        _check_amplitude(amplitude, spikes, weight, (G * Cin_g, H, W))
        weight = weight[:1, :1]
    if scale is not None:
        _check_scale(scale, spikes, weight, G * Cout_g)
    checks.check_no_tangent(spikes=spikes, weight=weight, bias=bias, amplitude=amplitude)
    channels_last = packed or (
        not spikes.is_contiguous() and spikes.is_contiguous(memory_format=torch.channels_last)
    )
    if not packed:
        checks.check_dtype("spikes", spikes, realspike_ops.ops.pack_spikes.DTYPES)
    if check_binary is None:
        check_binary = spikes.device.type == "cpu"
    return _Convolution(
        (spikes, weight, bias, amplitude, scale), expected, geometry, packed, channels_last,
        checks.check_flag("check_binary", check_binary),
    )  # fmt: skip


def _hint_for_int8(weight: Tensor) -> str:
    if weight.dtype != torch.int8:
        return ""
    return ": an int8 weight is held as uint8, 128 added (quantize_weight makes such weights)"


def _check_amplitude(
    amplitude: Tensor, spikes: Tensor, weight: Tensor, shape: tuple[int, ...]
) -> None:
    checks.check_tensor("amplitude", amplitude)
    checks.check_device("amplitude", amplitude, "spikes", spikes)
    checks.check_dtype("amplitude", amplitude, (torch.float32,))
    checks.check_shape("amplitude", amplitude, shape, "[Cin, H, W]")
    if weight.dtype == torch.uint8:
        raise ValueError("amplitude: factored storage needs a floating weight; got uint8")
    if not unshared_conv.is_shared(weight):
        raise ValueError(
            "amplitude: factored storage has one kernel for all positions, a weight of shape "
            f"[1, 1, ...]; got {checks.shape_text(weight)}"
        )


def _check_scale(scale: Tensor, spikes: Tensor, weight: Tensor, channels: int) -> None:
    checks.check_tensor("scale", scale)
    checks.check_device("scale", scale, "spikes", spikes)
    checks.check_dtype("scale", scale, (torch.float32,))
    checks.check_shape("scale", scale, (channels,), "[Cout]")
    if weight.dtype != torch.uint8:
        name = str(weight.dtype).removeprefix("torch.")
        raise ValueError(f"scale is for uint8 weights; got a weight of {name}")
