"""Memory formats of time-major tensors.

A tensor [T, B, ...] is taken as it lies in memory when each timestep is dense in one of two orders:
contiguous [B, C, H, W], or channels_last [B, H, W, C]. Anything else is copied to contiguous.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a function of sizes returns: a network calls an op with few sizes, often.

    Sizes that are symbols, of a graph that is traced, cannot be looked up.
    """
    look_up = functools.lru_cache(maxsize=4096)(function)

    @functools.wraps(function)
    def call(*sizes):
        try:
            return look_up(*sizes)
        except TypeError:
            return function(*sizes)

    return call


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = []
    stride = 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def step_strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """Strides of one dense timestep [B, ...]; channels_last needs [B, C, ...]."""
    if not channels_last:
        return _contiguous_strides(shape)
    B, C, *pixels = shape
    b, *p, c = _contiguous_strides((B, *pixels, C))
    return (b, c, *p)


def is_dense(shape: Sequence[int], strides: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether the strides address memory as `expected` does (size-1 dimensions are free)."""
    return all(
        size <= 1 or stride == wanted
        for size, stride, wanted in zip(shape, strides, expected, strict=True)
    )


@_kept
def _steps_are_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step, strides = shape[1:], strides[1:]
    return (
        len(step) == 4
        and not is_dense(step, strides, step_strides(step, False))
        and is_dense(step, strides, step_strides(step, True))
    )


def is_channels_last(x: Tensor) -> bool:  # [T, B, ...]
    """Whether the timesteps lie [B, H, W, C] in memory, and not also [B, C, H, W]."""
    return not x.is_contiguous() and _steps_are_channels_last(x.shape, x.stride())


@_kept
def _strides_over_time(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    step = step_strides(shape[1:], channels_last)
    return (step[0] * max(shape[1], 1), *step)


@_kept
def _repeats_one_step(shape: Sequence[int], strides: Sequence[int], channels_last: bool) -> bool:
    step = step_strides(shape[1:], channels_last)
    return shape[0] > 1 and strides[0] == 0 and is_dense(shape[1:], strides[1:], step)


@_kept
def _is_dense_over_time(shape: Sequence[int], strides: Sequence[int], channels_last: bool) -> bool:
    return is_dense(shape, strides, _strides_over_time(shape, channels_last))


def dense_over_time(x: Tensor) -> tuple[Tensor, bool, int]:  # [T, B, ...]
    """Return x (copied only if it must be), whether it is channels_last, and its stride over time.

    The stride is the size of a dense timestep, or 0 where all timesteps are the same memory.
    """
    step = math.prod(x.shape[1:])
    if x.is_contiguous():
        return x, False, step
    channels_last = _steps_are_channels_last(x.shape, x.stride())
    if _repeats_one_step(x.shape, x.stride(), channels_last):
        return x, channels_last, 0
    return as_dense_over_time(x, channels_last), channels_last, step


def as_dense_over_time(x: Tensor, channels_last: bool) -> Tensor:
    """Return x [T, B, ...] in the given memory format, copied only if it lies otherwise."""
    if not channels_last and x.is_contiguous():
        return x
    if _is_dense_over_time(x.shape, x.stride(), channels_last):
        return x
    return empty_over_time(x.shape, channels_last, x.dtype, x.device).copy_(x)


def empty_over_time(
    shape: Sequence[int], channels_last: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Allocate [T, B, ...] with dense timesteps."""
    strides = _strides_over_time(shape, channels_last)
    # Not a view of another tensor: an op's output that is one cannot be changed in place.
    return torch.empty_strided(shape, strides, dtype=dtype, device=device)


def empty_like_over_time(x: Tensor, channels_last: bool) -> Tensor:
    """Allocate a tensor that lies as the dense x [T, B, ...] does, over time too."""
    if x.is_contiguous():
        return torch.empty_like(x)  # the quickest of the allocations
    return empty_over_time(x.shape, channels_last, x.dtype, x.device)


def empty_maps(shape: Sequence[int], channels_last: bool, device: torch.device) -> Tensor:
    """Allocate [B, ...] float32, laid out as one timestep: the state, or the maps of a batch."""
    strides = step_strides(shape, channels_last)
    return torch.empty_strided(shape, strides, dtype=torch.float32, device=device)


def as_step(state: Tensor, channels_last: bool) -> Tensor:  # [B, ...]
    """Lay `state` out in memory as one timestep."""
    if channels_last:
        return state.contiguous(memory_format=torch.channels_last)
    return state.contiguous()
