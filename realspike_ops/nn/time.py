"""Where time begins and ends in a network of [T*B, ...] tensors."""

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn.repeated import RepeatedCurrent, repeated


def split_time(x: Tensor, timesteps: int, name: str = "x") -> Tensor:  # [T*B, ...] -> [T, B, ...]
    """View the leading dimension as (T, B)."""
    checks.check_tensor(name, x)
    if isinstance(x, RepeatedCurrent) and (view := x.over_time(timesteps)) is not None:
        return view
    if x.dim() < 1 or x.shape[0] % timesteps != 0:
        raise ValueError(
            f"{name} must have a leading dimension that {timesteps} timesteps divide "
            f"([T*B, ...], timestep outermost); got shape {checks.shape_text(x)}"
        )
    steps: Tensor = torch.unflatten(x, 0, (timesteps, x.shape[0] // timesteps))
    return steps


class _Timed(nn.Module):
    def __init__(self, timesteps: int):
        super().__init__()
        self.timesteps = checks.check_positive_int("timesteps", timesteps)

    def extra_repr(self) -> str:
        return f"timesteps={self.timesteps}"


class DirectEncoding(_Timed):
    """Repeat a current over T timesteps: [B, ...] -> [T*B, ...].

    Placed behind the first convolution and its batch norm, these run once per image instead of
    once per timestep. Neurons read the current itself at every timestep; it is copied only if
    something else reads what this returns.
    """

    def forward(self, x: Tensor) -> Tensor:
        checks.check_tensor("x", x)
        return repeated(x, self.timesteps)


class MeanOverTime(_Timed):
    """Average over the timesteps: [T*B, ...] -> [B, ...]."""

    def forward(self, x: Tensor) -> Tensor:
        return split_time(x, self.timesteps).mean(0)


class SumOverTime(_Timed):
    """Add up the timesteps: [T*B, ...] -> [B, ...]. A mean becomes this sum when 1/T is folded."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(split_time(x, self.timesteps), 0)
