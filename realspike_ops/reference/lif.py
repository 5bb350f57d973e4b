import math

import torch
from torch import Tensor


def _sigmoid_slope(d: Tensor, alpha: Tensor) -> Tensor:
    """alpha * s * (1 - s) for s = sigmoid(alpha * d), without the difference, which cancels."""
    e = torch.exp(-(alpha * d).abs())
    return alpha * e / (1 + e) ** 2


# Derivative of the spike with respect to h, of d = h - v_threshold and a scale, and the default
# scale. docs/lif.md derives them.
SURROGATES = {
    "rectangular": (lambda d, width: (d.abs() <= width / 2).to(d.dtype) / width, 1.0),
    "triangle": (lambda d, width: (width - 2 * d.abs()).clamp(min=0) / width * 2 / width, 2.0),
    "atan": (lambda d, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * d) ** 2), 2.0),
    "sigmoid": (_sigmoid_slope, 4.0),
}


class _Spike(torch.autograd.Function):
    """1 where the distance to the threshold is >= 0, else 0; backward through the surrogate."""

    @staticmethod
    def forward(ctx, distance, derivative, scale):
        ctx.save_for_backward(distance)
        ctx.surrogate = (derivative, scale)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad_o):
        (distance,) = ctx.saved_tensors
        derivative, scale = ctx.surrogate
        # The slope is computed in float64 and rounded to the dtype of the state once.
        slope = derivative(distance.double(), scale.double())
        return grad_o * slope.to(grad_o.dtype), None, None


class _HardReset(torch.autograd.Function):
    """h * (1 - r) + v_reset * r where r tells what fired, also where h is infinite."""

    @staticmethod
    def forward(ctx, h, r, v_reset):
        ctx.save_for_backward(h, r)
        ctx.v_reset = v_reset
        return torch.where(r == 1, torch.full_like(h, v_reset), h)

    @staticmethod
    def backward(ctx, grad_v):
        h, r = ctx.saved_tensors
        return grad_v * (1 - r), grad_v * (ctx.v_reset - h), None


def lif(
    x: Tensor,  # [T, B, ...]
    amplitude: Tensor | None = None,  # broadcasts against x.shape[2:]
    *,
    decay: float | Tensor = 0.25,  # a tensor broadcasts likewise
    v_threshold: float | Tensor = 0.5,  # a tensor broadcasts likewise
    v_reset: float | None = 0.0,
    reset: str | None = None,
    detach_reset: bool = False,
    emission: str = "binary",
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
    reset = reset or ("soft" if v_reset is None else "hard")
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    v_threshold = torch.as_tensor(v_threshold, dtype=state, device=x.device)
    scale = torch.as_tensor(scale, dtype=state, device=x.device)
    v = torch.zeros_like(x[0], dtype=state) if v_init is None else v_init.to(state)
    y = []

    def spike(h):
        # Binary neurons never fire a negative spike; a ternary one looks at the nearer threshold.
        sign = torch.where(h.signbit(), -1.0, 1.0).to(state) if emission == "ternary" else 1.0
        fires = _Spike.apply(sign * h - v_threshold, derivative, scale)
        return sign, fires, fires.detach() if detach_reset else fires

    for x_t in x.unbind(0):
        h = decay * v + x_t.to(state)
        if reset == "soft_delayed":
            sign, _, r = spike(v)
            h = h - sign * v_threshold * r
        sign, fires, r = spike(h)
        if reset == "hard":
            v = _HardReset.apply(h, r, v_reset)
        else:
            v = h - sign * v_threshold * r if reset == "soft" else h
        o = sign * fires
        y.append((o if amplitude is None else amplitude.to(state) * o).to(x.dtype))
    y = torch.stack(y) if y else torch.empty_like(x)
    return (y, v) if return_state else y
