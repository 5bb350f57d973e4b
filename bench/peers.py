"""What a user would pick instead, in its strongest form."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _RectangularSpike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance.abs() <= 0.5)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad):
        (window,) = ctx.saved_tensors
        return grad * window


def lif_loop(
    x: Tensor,  # [T, B, C, H, W]
    amplitude: Tensor | None,
    decay: float = 0.25,
    v_threshold: float = 0.5,
    detach_reset: bool = False,
) -> Tensor:
    """The neuron as a loop over time. x.unbind(0), since indexing x[t] makes backward O(T^2)."""
    v = torch.zeros_like(x[0])
    y = []
    for x_t in x.unbind(0):
        h = decay * v + x_t
        o = _RectangularSpike.apply(h - v_threshold)
        v = h * (1 - (o.detach() if detach_reset else o))
        y.append(o if amplitude is None else amplitude * o)
    return torch.stack(y)


def spikingjelly_lif(detach_reset: bool):
    """SpikingJelly's multi-step LIF node of the same dynamics, or None where it is not installed.

    It has no rectangular surrogate on [0, 1]; ATan, its default, costs it about the same.
    """
    try:
        from spikingjelly.activation_based import functional, neuron, surrogate
    except ImportError:
        return None
    node = neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_threshold=0.5,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        detach_reset=detach_reset,
        step_mode="m",
    )

    def run(x):
        functional.reset_net(node)
        return node(x)

    return run


class UnfoldBmm:
    """PyTorch's own way to run unshared weights: F.unfold, then one batched product."""

    def __init__(self, weight: Tensor, kernel_size, stride, padding):
        OH, OW, G, KH, KW, Cin, Cout = weight.shape
        if G != 1:
            raise ValueError(f"one group only; got {G}")
        # F.unfold orders its rows (ci, kh, kw).
        rows = weight.permute(0, 1, 2, 5, 3, 4, 6).reshape(OH * OW, Cin * KH * KW, Cout)
        self.weight = rows.contiguous()  # [P, Cin * KH * KW, Cout]
        self.out_size = (OH, OW)
        self.window = {"kernel_size": kernel_size, "stride": stride, "padding": padding}

    def __call__(self, spikes: Tensor) -> Tensor:  # [N, Cin, H, W] -> [N, Cout, OH, OW]
        patches = F.unfold(spikes, **self.window).permute(2, 0, 1)  # [P, N, Cin * KH * KW]
        out = torch.bmm(patches, self.weight)
        return out.permute(1, 2, 0).unflatten(2, self.out_size)
