"""PyTorch's own way to run unshared weights: sliding windows and one batched matrix product."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike_ops import UnsharedSpikeConv


class UnfoldBmm(nn.Module):
    """The convolution of an `UnsharedSpikeConv` as windows times weights, batched over positions.

    Written to be the fastest of its kind: the weights are laid out once, with the input channels
    innermost; the windows are gathered by one copy whose inner runs are contiguous (``F.unfold``
    followed by a transposition moves the same data twice and takes two to four times as long); the
    bias rides on the product (``baddbmm``). Unlike the original it accepts any float input.

    Args:
        conv: Its weights are copied. Integer padding only.

    Shape: [N, Cin, H, W] -> [N, Cout, OH, OW].

    Raises:
        ValueError: for padding given as a string.
    """

    weight: Tensor  # [OH*OW*G, KH*KW*Cin/G, Cout/G]
    bias: Tensor  # [OH*OW*G, 1, Cout/G]

    def __init__(self, conv: UnsharedSpikeConv):
        super().__init__()
        if isinstance(conv.padding, str):
            raise ValueError(f"conv must have integer padding; got {conv.padding!r}")
        OH, OW, G, KH, KW, Cin_g, Cout_g = conv.weight.shape
        self.output_size = (OH, OW)
        self.groups = G
        self.kernel_size = (KH, KW)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        weight = conv.weight.detach().reshape(OH * OW * G, KH * KW * Cin_g, Cout_g)
        bias = conv.weight.new_zeros(1) if conv.bias is None else conv.bias.detach()
        if bias.dim() == 3:
            bias = bias.permute(1, 2, 0)  # [OH, OW, Cout]
        bias = bias.expand(OH, OW, G * Cout_g).reshape(OH * OW * G, 1, Cout_g)
        self.register_buffer("weight", weight.clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias.clone(memory_format=torch.contiguous_format))

    def windows(self, x: Tensor) -> Tensor:  # [N, Cin, H, W] -> [OH*OW*G, N, KH*KW*Cin/G]
        (KH, KW), (ph, pw), (dh, dw) = self.kernel_size, self.padding, self.dilation
        G = self.groups
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pw, pw, ph, ph))  # [N, H, W, Cin]
        x = x.unfold(1, (KH - 1) * dh + 1, self.stride[0])
        x = x.unfold(2, (KW - 1) * dw + 1, self.stride[1])
        x = x[..., ::dh, ::dw]  # [N, OH, OW, Cin, KH, KW]
        x = x.unflatten(3, (G, -1)).permute(1, 2, 3, 0, 5, 6, 4)
        return x.reshape(self.weight.shape[0], x.shape[3], self.weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:  # [N, Cin, H, W] -> [N, Cout, OH, OW]
        out = torch.baddbmm(self.bias, self.windows(x), self.weight)
        (OH, OW), G = self.output_size, self.groups
        out = out.unflatten(0, (OH, OW, G)).permute(3, 2, 4, 0, 1)  # [N, G, Cout/G, OH, OW]
        return out.reshape(x.shape[0], G * self.weight.shape[2], OH, OW)


def with_unfold_bmm(folded: nn.Module) -> nn.Module:
    """Return a copy of a folded network in which `UnfoldBmm` replaces every `UnsharedSpikeConv`.

    Raises:
        ValueError: if there is none, so that nothing would be replaced.
    """
    copied = copy.deepcopy(folded)
    layers = {n: m for n, m in copied.named_modules() if isinstance(m, UnsharedSpikeConv)}
    if not layers:
        raise ValueError("folded must have an UnsharedSpikeConv layer; it has none")
    for name, layer in layers.items():
        copied.set_submodule(name, UnfoldBmm(layer))
    return copied.eval()
