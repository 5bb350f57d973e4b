"""What a user would pick instead of our neuron, in its strongest form."""

import torch
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
        from spikingjelly.activation_based import neuron, surrogate
    except ImportError:
        return None
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_threshold=0.5,
        v_reset=0.0,
        surrogate_function=surrogate.ATan(),
        detach_reset=detach_reset,
        step_mode="m",
    )
