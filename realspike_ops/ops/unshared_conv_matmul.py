"""The dense form of the unshared convolution: bits expanded, one matrix product per position.

For comparison, and for many samples on a GPU; it multiplies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops.ops.unshared_conv import is_shared
from realspike_ops.ops.unshared_conv_grad import as_float, window_of

# From these sizes on, the products are faster than the additions on a GPU (docs/unshared_conv.md).
# Every output channel costs an addition per spike; the windows are copied once for all channels.
GPU_CHANNELS_FOR_MATMUL = 256
GPU_SUMS_FOR_MATMUL = 64 * 512  # samples x channels


def choose_algorithm(device_type: str, samples: int, weight: Tensor) -> str:
    """Return what "auto" stands for: "gather" or "matmul"."""
    if device_type != "cuda":
        return "gather"
    half = weight.dtype in (torch.float16, torch.bfloat16)
    channels = weight.shape[6]
    many = channels >= GPU_CHANNELS_FOR_MATMUL and samples * channels >= GPU_SUMS_FOR_MATMUL
    # One kernel for all positions is an ordinary convolution.
    return "matmul" if is_shared(weight) or (half and many) else "gather"


def unshared_conv_matmul(
    spikes: Tensor,  # [N, Cin, H, W], or packed [N, H, W, words]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or of one position for all
    bias: Tensor | None,  # [Cout] or [Cout, OH, OW]
    amplitude: Tensor | None,  # [Cin, H, W]
    scale: Tensor | None,  # [Cout]
    output_size: tuple[int, int],
    *geometry: tuple[int, int],  # stride, padding, dilation
) -> Tensor:  # [N, Cout, OH, OW] float32
    """Multiply in the dtype of the weight, which also rounds the products.

    int8 weights, and weights with an amplitude, are multiplied in float32.
    """
    _, _, G, KH, KW, Cin_g, Cout_g = weight.shape
    OH, OW = output_size
    if spikes.dtype == torch.int32:
        spikes = torch.ops.realspike.unpack_spikes(spikes, G * Cin_g, False)
    if weight.dtype == torch.uint8:
        weight = as_float(weight)
    if amplitude is not None:
        weight = weight.float()
    x = (spikes if amplitude is None else amplitude * spikes).to(weight.dtype)
    padded, _ = window_of(x.shape[2:], (OH, OW, *weight.shape[2:]), *geometry)
    x = F.pad(x, padded)
    if is_shared(weight):
        kernel = weight[0, 0].permute(0, 4, 3, 1, 2).reshape(G * Cout_g, Cin_g, KH, KW)
        out = F.conv2d(x, kernel, None, geometry[0], 0, geometry[2], G)
    else:
        x = x.unflatten(1, (G, Cin_g))
        for dim, size, stride, dilation in zip((3, 4), (KH, KW), *geometry[::2], strict=True):
            x = x.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
        # Windows [N, G, Cin/G, OH, OW, KH, KW], copied once into the order of the weight.
        patches = x.permute(3, 4, 1, 0, 5, 6, 2).flatten(4).flatten(0, 1)
        out = torch.matmul(patches, weight.flatten(3, 5).flatten(0, 1))  # [P, G, N, Cout/G]
        out = out.permute(2, 1, 3, 0).reshape(x.shape[0], G * Cout_g, OH, OW)
    out = out.float()
    if scale is not None:
        out = out * scale[:, None, None]
    if bias is not None:
        out = out + (bias[:, None, None] if bias.dim() == 1 else bias)
    return out
