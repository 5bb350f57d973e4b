import torch
import torch.nn.functional as F
from torch import Tensor


def unshared_spike_conv(
    spikes: Tensor,  # [N, Cin, H, W]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or [1, 1, ...] for all positions
    bias: Tensor | None = None,  # [Cout] or [Cout, OH, OW]
    *,
    stride=1,
    padding=0,
    dilation=1,
) -> Tensor:  # [N, Cout, OH, OW]
    """Convolve with a kernel of its own at every output position; see
    `realspike_ops.unshared_spike_conv`. Runs in the dtype of `weight`; differentiable."""
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = (
        (a, a) if isinstance(a, int) else a for a in (stride, padding, dilation)
    )
    N, _, H, W = spikes.shape
    if (OH, OW) == (1, 1):
        # A weight [1, 1, ...] is one kernel for all positions.
        OH = (H + 2 * ph - (KH - 1) * dh - 1) // sh + 1
        OW = (W + 2 * pw - (KW - 1) * dw - 1) // sw + 1
        weight = weight.expand(OH, OW, -1, -1, -1, -1, -1)
    # The padding behind the map is whatever the last window needs.
    after_w = (OW - 1) * sw + (KW - 1) * dw + 1 - W - pw
    after_h = (OH - 1) * sh + (KH - 1) * dh + 1 - H - ph
    x = F.pad(spikes.to(weight.dtype), (pw, after_w, ph, after_h))
    patches = F.unfold(x, (KH, KW), (dh, dw), 0, (sh, sw))  # [N, Cin * KH * KW, OH * OW]
    patches = patches.reshape(N, G, Cin_g, KH, KW, OH, OW)
    out = torch.einsum("ngcijhw,hwgijco->ngohw", patches, weight).reshape(N, G * Cout_g, OH, OW)
    if bias is None:
        return out
    return out + (bias[:, None, None] if bias.dim() == 1 else bias)
