"""Folding an amplitude, and a batch norm, into the weights of one layer (Eq. 11 to 13).

Computed in float64 and rounded to the stored type once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn.packed_spikes import PackedSpikes, padded
from realspike_ops.nn.plain import waits_for_weights, why_not_plain

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def read(
    name: str, layer: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...], *names: str
) -> list[Tensor | None]:
    """Return the tensors that a layer computes with in eval mode, in float64.

    The layer must do nothing else than its class. Parametrized weights have their present values.
    The mode of the layer stays as it is.

    Args:
        name: The name of the layer in messages.
        kinds: The torch classes whose computation is known.
        names: Parameters and buffers.

    Raises:
        TypeError: if the layer is of another class, or of numbers that are not real.
        ValueError: if it does anything else than its class (`why_not_plain`), is on "meta", or
            holds NaN or infinities.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(layer, kinds) or waits_for_weights(layer):
        wanted = " or ".join(f"nn.{kind.__name__}" for kind in kinds)
        raise TypeError(f"{name} must be an initialised {wanted}; got {type(layer).__name__}")
    reason = why_not_plain(layer, kinds)
    if reason is not None:
        raise ValueError(f"{name} must compute what its torch class does: {reason}")
    modes = {module: module.training for module in layer.modules()}
    try:
        layer.eval()
        if layer.training:
            raise ValueError(f"{name} must leave training mode at eval(); it does not")
        with torch.no_grad():
            return [_constant(f"{name}.{own}", layer, own) for own in names]
    finally:
        for module, training in modes.items():
            module.training = training


def _constant(name: str, layer: nn.Module, own: str) -> Tensor | None:
    tensor, again = getattr(layer, own), getattr(layer, own)
    if tensor is None:
        return None
    checks.check_tensor(name, tensor)
    checks.check_dtype(name, tensor, (*checks.FLOATS, torch.float64))
    if type(tensor) not in (Tensor, nn.Parameter):
        raise TypeError(f"{name} must be a plain tensor; got {type(tensor).__name__}")
    if tensor.is_meta:
        raise ValueError(f"{name} must hold numbers; it is on the meta device")
    checks.check_finite(name, tensor)
    if again is not tensor and not torch.equal(again, tensor):
        raise ValueError(f"{name} must be the same whenever it is read; it is computed anew")
    return tensor.detach().double()


def batch_norm_affine(norm: BatchNorm, channels: int) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Return (scale, shift) of a batch norm in eval mode, in float64."""
    mean, var, weight, bias = read(
        "batch_norm", norm, BATCH_NORMS, "running_mean", "running_var", "weight", "bias"
    )
    if mean is None or var is None:
        raise ValueError("batch_norm must track running statistics (track_running_stats=True)")
    if len(mean) != channels:
        raise ValueError(
            f"batch_norm must have {channels} features to follow the layer before it; "
            f"got {len(mean)}"
        )
    scale = torch.rsqrt(var + norm.eps)
    checks.check_finite("batch_norm: 1 / sqrt(running_var + eps)", scale)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def affine(
    name: str,
    layer: nn.Conv1d | nn.Conv2d | nn.Linear,
    kind: type[nn.Module],
    batch_norm: nn.Module | None,
) -> tuple[Tensor, Tensor | None]:  # [Cout, ...], [Cout]; float64
    """Return the weight and bias of a layer followed by the batch norm."""
    weight, bias = read(name, layer, kind, "weight", "bias")
    if weight is None:
        raise ValueError(f"{name} must have a weight; got None")
    if (padding_mode := getattr(layer, "padding_mode", "zeros")) != "zeros":
        raise ValueError(
            f"{name}: padding_mode must be 'zeros' (spikes outside the map are silent); "
            f"got {padding_mode!r}"
        )
    if batch_norm is None:
        return weight, bias
    if not isinstance(batch_norm, BATCH_NORMS):
        raise TypeError(f"batch_norm must be a batch norm layer; got {type(batch_norm).__name__}")
    scale, shift = batch_norm_affine(batch_norm, weight.shape[0])
    checks.check_device("batch_norm", scale, f"{name}.weight", weight)
    own = layer.weight.dtype
    accepted = (own, torch.float32) if own in (torch.float16, torch.bfloat16) else (own,)
    mean = batch_norm.running_mean
    assert mean is not None  # or its scale would have been refused
    checks.check_dtype("batch_norm", mean, accepted, f" (behind {own} weights)")
    weight = weight * scale.view(-1, *(1,) * (weight.dim() - 1))
    return weight, shift if bias is None else bias * scale + shift


def kernel_order(weight: Tensor, groups: int) -> Tensor:
    """[Cout, Cin/G, KH, KW] -> [G, KH, KW, Cin/G, Cout/G]."""
    grouped: Tensor = weight.unflatten(0, (groups, -1))  # [G, Cout/G, Cin/G, KH, KW]
    return grouped.permute(0, 3, 4, 2, 1)


def scale_input_channels(kernel: Tensor, amplitude: Tensor) -> Tensor:
    """Multiply [G, KH, KW, Cin/G, Cout/G] by one amplitude per layer [1] or channel [C, 1, 1]."""
    G, _, _, Cin_g, _ = kernel.shape
    amplitude = amplitude.reshape(-1)
    if amplitude.numel() > 1:
        amplitude = amplitude.view(G, 1, 1, Cin_g, 1)
    return kernel * amplitude


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
    """Give every output position its kernel: K~[k,l,i,j,m] = a[m, k*s-p+i*d, l*s-p+j*d] K[i,j,m].

    Yields one row of positions after the other; K is kernel[rows[k], columns[l]] at position
    (k, l). Taps outside the map get 0.
    """
    G, KH, KW, Cin_g, _ = kernel.shape[2:]
    chosen = slice(0, 1) if kernel.shape[1] == 1 else list(columns)
    OH, OW = output_size
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    _, H, W = amplitude.shape
    rows_needed = (OH - 1) * sh + (KH - 1) * dh + 1
    columns_needed = (OW - 1) * sw + (KW - 1) * dw + 1
    behind = max(0, columns_needed - W - pw), max(0, rows_needed - H - ph)
    framed = padded(amplitude, (pw, behind[0], ph, behind[1]))
    for oh in range(OH):
        lines = framed[:, oh * sh : oh * sh + (KH - 1) * dh + 1 : dh]  # [Cin, KH, W + padding]
        taps = [lines[:, :, j * dw : j * dw + (OW - 1) * sw + 1 : sw] for j in range(KW)]
        window = torch.stack(taps, dim=2).view(G, Cin_g, KH, KW, OW)
        yield window.permute(4, 0, 2, 3, 1).unsqueeze(-1) * kernel[rows[oh], chosen]


def check_amplitude(amplitude: Tensor, weight: Tensor) -> Tensor:  # float64
    """Return the amplitude of the spikes that a weight reads, in float64."""
    checks.check_tensor("amplitude", amplitude)
    checks.check_dtype("amplitude", amplitude, (*checks.FLOATS, torch.float64))
    checks.check_device("amplitude", amplitude, "the layer's weight", weight)
    checks.check_finite("amplitude", amplitude)
    return amplitude.detach().double()


def amplitude_of_features(amplitude: Tensor, features: int) -> Tensor:  # [features]
    """Return one amplitude for each feature of flattened maps."""
    count = amplitude.numel()
    varying = [d for d, size in enumerate(amplitude.shape) if size != 1]
    # Only trailing 1s may stand for more: the maps that were flattened are not known here.
    over_maps = varying == list(range(len(varying))) and len(varying) < amplitude.dim()
    if count == 0 or features % count or not (count == features or over_maps):
        raise ValueError(
            f"amplitude must have shape [1], [{features}], or that of maps with {features} "
            f"elements, [C, H, W] or [C, 1, 1]; got {checks.shape_text(amplitude)}"
        )
    return amplitude.reshape(-1).repeat_interleave(features // count)


def map_size(spikes: Tensor | PackedSpikes, channels: int) -> tuple[int, int]:
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
    H, W = spikes.shape[1:3] if packed else spikes.shape[2:]
    return H, W
