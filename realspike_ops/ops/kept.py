"""What autograd keeps for backward. Hooks on saved tensors may return others in their place."""

from typing import Any

import torch
from torch import Tensor


def keep(ctx: Any, name: str, *tensors: Tensor | None) -> None:
    """Save tensors for the backward pass of the op `name`."""
    ctx.save_for_backward(*tensors)
    ctx.kept_of = name
    ctx.kept = [None if t is None else (t.dtype, t.shape, t.device) for t in tensors]


def kept(ctx: Any) -> list[Any]:
    """Return what was saved; its memory holds the values, and may lie otherwise than it did.

    Raises:
        RuntimeError: if a hook returned a tensor of another dtype, shape, device or layout.
    """
    tensors = ctx.saved_tensors
    for tensor, was in zip(tensors, ctx.kept, strict=True):
        if was is None:
            continue
        dtype, shape, device = was
        if (
            tensor.dtype != dtype
            or tensor.shape != shape
            or tensor.device != device
            or tensor.layout != torch.strided
        ):
            raise RuntimeError(
                f"{ctx.kept_of}: hooks on saved tensors must return what they were given, a "
                f"{dtype} tensor of shape {tuple(shape)} on {device}; got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}, {tensor.layout}"
            )
    # The memory of a negated view, as the imaginary part of a conjugate, holds the negative values.
    return [None if t is None else t.resolve_neg() for t in tensors]
