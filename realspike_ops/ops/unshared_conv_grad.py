"""Gradients of realspike::unshared_conv."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gradients(
    grad_out: Tensor,  # [N, Cout, OH, OW]
    packed: Tensor,  # [N, H, W, words]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or of one position for all
    amplitude: Tensor | None,  # [Cin, H, W]
    scale: Tensor | None,  # [Cout]
    geometry,  # (stride, padding, dilation)
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the spikes, the weight and the amplitude, those that are wanted."""
    if not any(wanted):
        return None, None, None
    needs_spikes, needs_weight, _ = wanted
    if scale is not None:
        grad_out = grad_out * scale[:, None, None]
    if amplitude is not None or tuple(weight.shape[:2]) != tuple(grad_out.shape[2:]):
        return _of_one_kernel(grad_out, packed, weight, amplitude, geometry, wanted)
    OH, OW, G, _, _, _, Cout_g = weight.shape
    N = packed.shape[0]
    by_position = grad_out.reshape(N, G, Cout_g, OH * OW).permute(3, 1, 0, 2)  # [P, G, N, Cout/G]
    padded, window = window_of(packed.shape[1:3], weight.shape, *geometry)
    grad_spikes = grad_weight = None
    if needs_weight:
        grad_weight = _of_weight(by_position, packed, weight, padded, window)
    if needs_spikes:
        grad_spikes = _of_spikes(by_position, packed, weight, padded, window)
    return grad_spikes, grad_weight, None


def _of_weight(by_position, packed, weight, padded, window) -> Tensor:
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    positions, taps = OH * OW, Cin_g * KH * KW
    spikes = torch.ops.realspike.unpack_spikes(packed, G * Cin_g, False)
    patches = F.unfold(F.pad(spikes, padded), **window)  # [N, Cin * KH * KW, P]
    patches = patches.view(packed.shape[0], G, taps, positions).permute(3, 1, 2, 0)
    grad = torch.matmul(patches, by_position)  # [P, G, Cin/G * KH * KW, Cout/G]
    grad = grad.view(OH, OW, G, Cin_g, KH, KW, Cout_g).permute(0, 1, 2, 4, 5, 3, 6)
    return grad.contiguous().to(weight.dtype)


def _of_spikes(by_position, packed, weight, padded, window) -> Tensor:
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    positions, taps = OH * OW, Cin_g * KH * KW
    (N, H, W, _), (left, right, top, bottom) = packed.shape, padded
    rows = as_float(weight).permute(0, 1, 2, 5, 3, 4, 6).reshape(positions, G, taps, Cout_g)
    patches = torch.matmul(by_position, rows.transpose(2, 3))  # [P, G, N, Cin/G * KH * KW]
    patches = patches.permute(2, 1, 3, 0).reshape(N, G * taps, positions)
    folded = F.fold(patches, (H + top + bottom, W + left + right), **window)
    return F.pad(folded, [-p for p in padded])


def _of_one_kernel(grad_out, packed, weight, amplitude, geometry, wanted):
    """The gradients of a shared convolution of the spikes, or of amplitude * spikes."""
    needs_spikes, needs_weight, needs_amplitude = wanted
    _, _, G, KH, KW, Cin_g, Cout_g = weight.shape
    stride, _, dilation = geometry
    kernel = as_float(weight)[0, 0].permute(0, 4, 3, 1, 2).reshape(-1, Cin_g, KH, KW)
    spikes = torch.ops.realspike.unpack_spikes(packed, G * Cin_g, False)
    shape = (*grad_out.shape[2:], *weight.shape[2:])
    padded, _ = window_of(packed.shape[1:3], shape, *geometry)
    x = F.pad(spikes if amplitude is None else amplitude * spikes, padded)
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        *(grad_out, x, kernel, None, stride, (0, 0), dilation, False, (0, 0), G),
        [needs_spikes or needs_amplitude, needs_weight, False],
    )
    grad_spikes = grad_weight = grad_amplitude = None
    if grad_x is not None:
        grad_x = F.pad(grad_x, [-p for p in padded])
    if needs_spikes:
        grad_spikes = grad_x if amplitude is None else amplitude * grad_x
    if needs_amplitude:
        grad_amplitude = (spikes * grad_x).sum(0)
    if needs_weight:
        by_row = grad_kernel.view(G, Cout_g, Cin_g, KH, KW).permute(0, 3, 4, 2, 1)
        grad_weight = by_row.contiguous()[None, None].to(weight.dtype)
    return grad_spikes, grad_weight, grad_amplitude


def as_float(weight: Tensor) -> Tensor:
    return weight.float() - 128 if weight.dtype == torch.uint8 else weight.float()


def window_of(size, weight_shape, stride, padding, dilation):
    """Return the padding (left, right, top, bottom; negative cuts) and the arguments of unfold."""
    before_after = []
    for n, out, k, s, p, d in zip(
        size, weight_shape[:2], weight_shape[3:5], stride, padding, dilation, strict=True
    ):
        before_after.append((p, (out - 1) * s + (k - 1) * d + 1 - n - p))
    (top, bottom), (left, right) = before_after
    window = {"kernel_size": tuple(weight_shape[3:5]), "dilation": dilation, "stride": stride}
    return (left, right, top, bottom), window
