"""Folding an amplitude, and a batch norm, into the weights of one layer (Eq. 11 to 13).

Computed in float64 and rounded to float32 once.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.ops.huge_pages import empty_in_huge_pages


def check_conv2d(conv: nn.Conv2d) -> None:
    if not isinstance(conv, nn.Conv2d) or isinstance(conv, nn.LazyConv2d):
        raise TypeError(f"conv must be an initialised nn.Conv2d; got {type(conv).__name__}")
    if conv.padding_mode != "zeros":
        raise ValueError(
            f"conv: padding_mode must be 'zeros' (spikes outside the map are silent); "
            f"got {conv.padding_mode!r}"
        )


def conv_geometry(conv: nn.Conv2d) -> dict:
    return {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}


def batch_norm_affine(norm: nn.Module, channels: int) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Return (scale, shift) of a batch norm in eval mode, in float64."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"batch_norm must be a batch norm layer; got {type(norm).__name__}")
    if norm.running_mean is None:
        raise ValueError("batch_norm must track running statistics (track_running_stats=True)")
    if norm.num_features != channels:
        raise ValueError(
            f"batch_norm must have {channels} features to follow the convolution; "
            f"got {norm.num_features}"
        )
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def affine_conv2d(
    conv: nn.Conv2d, batch_norm: nn.Module | None
) -> tuple[Tensor, Tensor | None]:  # [Cout, Cin/G, KH, KW], [Cout]; float64
    """Return the weight and bias of the convolution followed by the batch norm."""
    weight = conv.weight.detach().double()
    bias = None if conv.bias is None else conv.bias.detach().double()
    if batch_norm is None:
        return weight, bias
    scale, shift = (t.detach() for t in batch_norm_affine(batch_norm, conv.out_channels))
    weight = weight * scale[:, None, None, None]
    return weight, shift if bias is None else bias * scale + shift


def kernel_order(weight: Tensor, groups: int) -> Tensor:
    """[Cout, Cin/G, KH, KW] -> [G, KH, KW, Cin/G, Cout/G]."""
    return weight.unflatten(0, (groups, -1)).permute(0, 3, 4, 2, 1)


def scale_input_channels(kernel: Tensor, amplitude: Tensor) -> Tensor:
    """Multiply [G, KH, KW, Cin/G, Cout/G] by one amplitude per layer [1] or channel [C, 1, 1]."""
    G, _, _, Cin_g, _ = kernel.shape
    amplitude = amplitude.reshape(-1)
    if amplitude.numel() > 1:
        amplitude = amplitude.view(G, 1, 1, Cin_g, 1)
    return kernel * amplitude


def unshare(
    kernel: Tensor,  # [G, KH, KW, Cin/G, Cout/G] float64
    amplitude: Tensor,  # [Cin, H, W] float64
    output_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
    """Give every output position its kernel: K~[k,l,i,j,m] = a[m, k*s-p+i*d, l*s-p+j*d] K[i,j,m].

    Taps outside the map get 0. Little more than the result is ever held.
    """
    out = empty_in_huge_pages((*output_size, *kernel.shape), dtype, kernel.device)
    indices = (0,) * output_size[0], (0,) * output_size[1]
    rows = unshared_rows(
        kernel[None, None], amplitude, output_size, stride, padding, dilation, *indices
    )
    for own, row in zip(out, rows, strict=True):
        own.copy_(row)
    return out


def unshared_rows(
    kernel: Tensor,  # [R, Q, G, KH, KW, Cin/G, Cout/G] float64
    amplitude: Tensor,  # [Cin, H, W] float64
    output_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
) -> Iterator[Tensor]:  # [OW, G, KH, KW, Cin/G, Cout/G] float64 each
    """Yield the kernels of one row of positions after the other; K is kernel[rows[k], columns[l]]
    at position (k, l)."""
    G, KH, KW, Cin_g, _ = kernel.shape[2:]
    columns = slice(0, 1) if kernel.shape[1] == 1 else list(columns)
    OH, OW = output_size
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    _, H, W = amplitude.shape
    rows_needed = (OH - 1) * sh + (KH - 1) * dh + 1
    columns_needed = (OW - 1) * sw + (KW - 1) * dw + 1
    padded = F.pad(
        amplitude, (pw, max(0, columns_needed - W - pw), ph, max(0, rows_needed - H - ph))
    )
    for oh in range(OH):
        lines = padded[:, oh * sh : oh * sh + (KH - 1) * dh + 1 : dh]  # [Cin, KH, W + padding]
        taps = [lines[:, :, j * dw : j * dw + (OW - 1) * sw + 1 : sw] for j in range(KW)]
        window = torch.stack(taps, dim=2).view(G, Cin_g, KH, KW, OW)
        yield window.permute(4, 0, 2, 3, 1).unsqueeze(-1) * kernel[rows[oh], columns]


def check_folded_amplitude(amplitude: Tensor, channels: int, input_size: tuple[int, int]) -> str:
    """Return the granularity ("layer", "channel" or "element") of an amplitude over a map."""
    checks.check_tensor("amplitude", amplitude)
    checks.check_dtype("amplitude", amplitude, (*checks.FLOATS, torch.float64))
    checks.check_parameter("amplitude", amplitude, (channels, *input_size))
    sizes = (1,) * (3 - amplitude.dim()) + tuple(amplitude.shape)
    if sizes[1] > 1 or sizes[2] > 1:
        return "element"
    return "channel" if sizes[0] > 1 else "layer"


def amplitude_of_features(amplitude: Tensor, features: int) -> Tensor:  # [features]
    """Return one amplitude for each feature of flattened maps."""
    checks.check_tensor("amplitude", amplitude)
    checks.check_dtype("amplitude", amplitude, (*checks.FLOATS, torch.float64))
    count = amplitude.numel()
    varying = [d for d, size in enumerate(amplitude.shape) if size != 1]
    # Only trailing 1s may stand for more: the maps that were flattened are not known here.
    over_maps = varying == list(range(len(varying))) and len(varying) < amplitude.dim()
    if count == 0 or features % count or not (count == features or over_maps):
        raise ValueError(
            f"amplitude must have shape [1], [{features}], or that of maps with {features} "
            f"elements, [C, H, W] or [C, 1, 1]; got {checks.shape_text(amplitude)}"
        )
    return amplitude.detach().reshape(-1).repeat_interleave(features // count)


def map_size(spikes: "Tensor | PackedSpikes", channels: int) -> tuple[int, int]:
    """Return (H, W) of dense [N, C, H, W] or packed [N, H, W, words] spikes."""
    if isinstance(spikes, PackedSpikes):
        spikes = spikes.binary_words(channels)
    checks.check_tensor("spikes", spikes)
    if spikes.dim() != 4:
        raise ValueError(
            f"spikes must have shape [N, {channels}, H, W], or packed [N, H, W, words] int32; "
            f"got {checks.shape_text(spikes)}"
        )
    packed = spikes.dtype == torch.int32
    return tuple(spikes.shape[1:3] if packed else spikes.shape[2:])
