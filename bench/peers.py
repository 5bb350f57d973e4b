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

    It has no rectangular surrogate on [0, 1]; ATan, its default, costs it about the same. On CUDA
    SpikingJelly 2.0.0 picks its Triton kernels by itself, which is its strongest form there.
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


def snntorch_lif(x: Tensor):
    """snnTorch's Leaky (reset detached) over x.unbind(0), or None where it is not installed."""
    try:
        import snntorch
    except ImportError:
        return None
    node = snntorch.Leaky(beta=0.25, threshold=0.5, reset_mechanism="zero")

    def run():
        v = torch.zeros_like(x[0])
        y = []
        for x_t in x.unbind(0):
            o, v = node(x_t, v)
            y.append(o)
        return torch.stack(y)

    return run


def norse_lif(x: Tensor):
    """norse's LIFBoxCell over x.unbind(0), or None where it is not installed."""
    try:
        from norse.torch import LIFBoxCell, LIFBoxParameters
    except ImportError:
        return None
    parameters = LIFBoxParameters(tau_mem_inv=torch.tensor(750.0), v_th=torch.tensor(0.5))
    cell = LIFBoxCell(parameters)

    def run():
        state = None
        y = []
        for x_t in x.unbind(0):
            o, state = cell(x_t, state)
            y.append(o)
        return torch.stack(y)

    return run
