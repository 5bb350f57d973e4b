"""Moving the elements of maps about, as they are."""

from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn.time import split_time


class Rearrange(nn.Module):
    """Write the elements of a map, each any number of times, as another one.

    A channel shuffle, a transposition, a pixel shuffle and nearest upsampling become this layer.

    Args:
        index: [E'] int64, for every element of the result the element of the flattened map that it
            is; -1 stands for a zero.
        shape: The shape of the result, ``(C, H, W)``, ``(C, L)``, ``(F,)`` or ``()``.

    Shape: [N, ...] -> ``[N, *shape]``.
    """

    index: Tensor

    def __init__(self, index: Tensor, shape: tuple[int, ...]):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        checks.check_tensor("x", x)
        x = x.flatten(1)
        # The last column, which -1 reads, is 0.
        x = nn.functional.pad(x, (0, 1))
        return x[:, self.index].reshape(x.shape[0], *self.shape)

    def extra_repr(self) -> str:
        return f"shape={list(self.shape)}"


class AtTimestep(nn.Module):
    """Take one timestep: [T*B, ...] -> [B, ...].

    Args:
        timesteps: T.
        timestep: Which one, counted from 0.
    """

    def __init__(self, timesteps: int, timestep: int):
        super().__init__()
        self.timesteps = checks.check_positive_int("timesteps", timesteps)
        self.timestep = int(timestep)

    def forward(self, x: Tensor) -> Tensor:
        return split_time(x, self.timesteps)[self.timestep]

    def extra_repr(self) -> str:
        return f"timesteps={self.timesteps}, timestep={self.timestep}"
