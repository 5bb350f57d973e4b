"""Factored storage on a GPU, which has no kernel for it: one convolution of amplitude * spikes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops.ops.unshared_conv_grad import padding_of


def factored_conv2d(
    spikes: Tensor,  # [N, Cin, H, W], or packed [N, H, W, words]
    weight: Tensor,  # [1, 1, G, KH, KW, Cin/G, Cout/G], or expanded over all positions
    bias: Tensor | None,  # [Cout] or [Cout, OH, OW]
    amplitude: Tensor,  # [Cin, H, W]
    output_size: tuple[int, int],
    geometry: tuple[tuple[int, int], ...],  # stride, padding, dilation
) -> Tensor:  # [N, Cout, OH, OW] float32
    _, _, G, KH, KW, Cin_g, Cout_g = weight.shape
    if spikes.dtype == torch.int32:
        spikes = torch.ops.realspike.unpack_spikes(spikes, G * Cin_g, False)
    padded = padding_of(spikes.shape[2:], (*output_size, *weight.shape[2:]), *geometry)
    kernel = weight[0, 0].float().permute(0, 4, 3, 1, 2).reshape(G * Cout_g, Cin_g, KH, KW)
    stride, _, dilation = geometry
    out = F.conv2d(
        F.pad((amplitude * spikes).float(), padded), kernel, None, stride, 0, dilation, G
    )
    if bias is not None:
        out = out + (bias[:, None, None] if bias.dim() == 1 else bias)
    return out
