"""Sizes and strides of UnsharedConvParams in csrc/core/unshared_conv.h, by their names there."""

import torch
from torch import Tensor

_SIZES = (
    "N H W words OH OW G KH KW Cin_g Cout_g"
    " stride_h stride_w padding_h padding_w dilation_h dilation_w"
).split()


def sizes_of(words: Tensor, output_size, weight: torch.Size, geometry) -> dict[str, int]:
    """Return the sizes by name."""
    pairs = (size for pair in geometry for size in pair)
    sizes = (*words.shape, *output_size, *weight[2:], *pairs)
    return dict(zip(_SIZES, sizes, strict=True))


def strides_of_out(out: Tensor) -> tuple[int, int, int]:
    """Return the strides of samples, of channels and of the positions oh * OW + ow."""
    return out.stride(0), out.stride(1), out.stride(3) if out.shape[3] > 1 else out.stride(2)
