import torch
from torch import Tensor

from .lif import lif


def batch_norm_lif(
    x: Tensor,  # [T, B, C, ...]
    weight: Tensor | None,  # [C]
    bias: Tensor | None,  # [C]
    running_mean: Tensor | None,  # [C]; changed in training
    running_var: Tensor | None,  # [C]; changed in training
    *,
    residual: Tensor | None = None,  # [T, B, C, ...]
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    amplitude: Tensor | None = None,
    **form,
):
    """Normalise x over (T, B, ...) per channel, add the residual, run the neurons.

    See `realspike_ops.batch_norm_lif`. In float64 for a float64 input, else in float32; the
    statistics are computed in float64.
    """
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    over = [d for d in range(x.dim()) if d != 2]
    per_channel = (-1, *(1 for _ in x.shape[3:]))  # against [T, B, C, ...]
    if training or running_mean is None or running_var is None:
        wide = x.double()
        mean = wide.mean(over)
        var = (wide - mean.view(per_channel)).square().mean(over)
        if training and running_mean is not None and running_var is not None:
            n = x.numel() // x.shape[2]
            with torch.no_grad():
                running_mean += momentum * (mean - running_mean)
                running_var += momentum * (var * n / (n - 1) - running_var)
    else:
        mean, var = running_mean.double(), running_var.double()
    mean, var = mean.to(state), var.to(state)
    factor = (var.double() + eps).sqrt().reciprocal().to(state)
    factor = factor if weight is None else weight.to(state) * factor
    current = (x.to(state) - mean.view(per_channel)) * factor.view(per_channel)
    current = current + (0.0 if bias is None else bias.to(state).view(per_channel))
    if residual is not None:
        current = current + residual.to(state)
    amplitude = None if amplitude is None else amplitude.to(state)
    out = lif(current, amplitude, **form)
    y, *v_last = out if isinstance(out, tuple) else (out,)
    return (y.to(x.dtype), *v_last) if v_last else y.to(x.dtype)
