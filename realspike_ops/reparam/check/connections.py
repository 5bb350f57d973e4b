"""Which connections of a layer act, counted as NeuroBench counts them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Operations:
    """Of one call of a layer."""

    effective: float  # an input that is not 0 meets a weight that is not 0
    dense: float  # an input meets a weight
    spiking: bool  # all inputs are -1, 0 or 1: they are added, not multiplied


def is_spiking(x: Tensor) -> bool:
    return bool(((x == 0) | (x.abs() == 1)).all())


def of_convolution(
    x: Tensor,  # [N, Cin, H, W]
    acts: Tensor,  # [OH or 1, OW or 1, G, KH, KW, Cin/G, Cout/G] bool: the weight is not 0
    out_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Operations:
    """Count a convolution, shared or not. Taps outside the map meet nothing."""
    G, KH, KW, Ci, Co = acts.shape[2:]
    reached = acts.sum(-1, dtype=torch.float64)  # [OH, OW, G, KH, KW, Ci]
    inputs = torch.stack(
        [x.ne(0).sum(0, dtype=torch.float64), x.new_ones(x.shape[1:], dtype=torch.float64)]
    )
    inputs[1] *= len(x)
    ends = [
        (n - 1) * s + (k - 1) * d + 1 - size - p
        for n, s, k, d, size, p in zip(
            out_size, stride, (KH, KW), dilation, x.shape[2:], padding, strict=True
        )
    ]
    pads = (padding[1], max(0, ends[1]), padding[0], max(0, ends[0]))
    inputs = F.pad(inputs, pads).unflatten(1, (G, Ci))  # [2, G, Ci, H', W']
    effective = dense = 0.0
    rows, columns = ((n - 1) * s + 1 for n, s in zip(out_size, stride, strict=True))
    for kh in range(KH):
        for kw in range(KW):
            y, x0 = kh * dilation[0], kw * dilation[1]
            tap = inputs[..., y : y + rows : stride[0], x0 : x0 + columns : stride[1]]
            fired, everything = tap.permute(0, 3, 4, 1, 2)  # [OH, OW, G, Ci] each
            effective += (fired * reached[:, :, :, kh, kw]).sum().item()
            dense += everything.sum().item() * Co
    return Operations(effective, dense, is_spiking(x))


def of_shared_convolution(
    x: Tensor,  # [N, Cin, ...]
    acts: Tensor,  # [Cout, Cin/G, ...] bool: the weight is not 0
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Operations:
    """Count a convolution of any number of axes. Taps outside the map meet nothing."""

    def connections(inputs: Tensor, weights: Tensor) -> float:  # [Cin, ...]
        geometry = stride, padding, dilation, False, (0,) * len(stride), groups
        return torch.convolution(inputs[None], weights.double(), None, *geometry).sum().item()

    fired = x.ne(0).sum(0, dtype=torch.float64)
    effective = connections(fired, acts)
    dense = connections(torch.full_like(fired, len(x)), torch.ones_like(acts))
    return Operations(effective, dense, is_spiking(x))


def of_product(x: Tensor, weight: Tensor) -> Operations:  # [..., N, in], [..., in, out]
    """Count a product of matrices."""
    fired, acts = x.ne(0).sum(-2, dtype=torch.float64), weight.ne(0).sum(-1, dtype=torch.float64)
    met = (fired * acts).sum().item()
    return Operations(met, float(x.numel() * weight.shape[-1]), is_spiking(x))
