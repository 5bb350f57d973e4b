import math

import torch
from torch import Tensor

# Derivative of the spike with respect to h, of d = h - v_threshold and a scale, and the default
# scale. docs/lif.md derives them.
SURROGATES = {
    "rectangular": (lambda d, width: (d.abs() <= width / 2).to(d.dtype) / width, 1.0),
    "triangle": (lambda d, width: (1 - 2 * d.abs() / width).clamp(min=0) * 2 / width, 2.0),
    "atan": (lambda d, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * d) ** 2), 2.0),
    "sigmoid": (lambda d, alpha: alpha * torch.sigmoid(alpha * d) * torch.sigmoid(-alpha * d), 4.0),
}


class _Spike(torch.autograd.Function):
    """1 where h >= v_threshold, else 0; backward through the surrogate."""

    @staticmethod
    def forward(ctx, h, v_threshold, derivative, scale):
        ctx.save_for_backward(h)
        ctx.surrogate = (v_threshold, derivative, scale)
        return (h >= v_threshold).to(h.dtype)

    @staticmethod
    def backward(ctx, grad_o):
        (h,) = ctx.saved_tensors
        v_threshold, derivative, scale = ctx.surrogate
        return grad_o * derivative(h - v_threshold, scale), None, None, None


class _HardReset(torch.autograd.Function):
    """h * (1 - o) + v_reset * o for binary o, also where h is infinite."""

    @staticmethod
    def forward(ctx, h, o, v_reset):
        ctx.save_for_backward(h, o)
        ctx.v_reset = v_reset
        return torch.where(o == 1, torch.full_like(h, v_reset), h)

    @staticmethod
    def backward(ctx, grad_v):
        h, o = ctx.saved_tensors
        return grad_v * (1 - o), grad_v * (ctx.v_reset - h), None


def lif(
    x: Tensor,  # [T, B, ...]
    amplitude: Tensor | None = None,  # broadcasts against x.shape[2:]
    *,
    decay: float = 0.25,
    v_threshold: float = 0.5,
    v_reset: float | None = 0.0,
    detach_reset: bool = False,
    surrogate="rectangular",
    v_init: Tensor | None = None,  # [B, ...]
    return_state: bool = False,
):
    """Run LIF neurons as a loop over time (Eq. 5 to 8); see `realspike_ops.lif`.

    The state is float64 for a float64 input and float32 otherwise.
    """
    name, scale = (surrogate, None) if isinstance(surrogate, str) else surrogate
    derivative, default_scale = SURROGATES[name]
    scale = default_scale if scale is None else scale
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = torch.zeros_like(x[0], dtype=state) if v_init is None else v_init.to(state)
    y = []
    for x_t in x.unbind(0):
        h = decay * v + x_t.to(state)
        o = _Spike.apply(h, v_threshold, derivative, scale)
        r = o.detach() if detach_reset else o
        v = h - v_threshold * r if v_reset is None else _HardReset.apply(h, r, v_reset)
        y.append((o if amplitude is None else amplitude.to(state) * o).to(x.dtype))
    y = torch.stack(y) if y else torch.empty_like(x)
    return (y, v) if return_state else y
