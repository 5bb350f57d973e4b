"""What autograd keeps for backward. Hooks on saved tensors may return others in their place."""

from typing import Any

from torch import Tensor


def keep(ctx: Any, name: str, *tensors: Tensor | None) -> None:
    """Save tensors for the backward pass of the op `name`."""
    ctx.save_for_backward(*tensors)
    ctx.kept_of = name
    ctx.kept = [None if t is None else (t.dtype, t.shape, t.device, t.layout) for t in tensors]


def kept(ctx: Any) -> list[Any]:
    """Return what was saved; its memory holds the values, and may lie otherwise than it did.

    Raises:
        RuntimeError: if a hook returned a tensor of another dtype, shape, device or layout.
    """
    found = []
    for t, was in zip(ctx.saved_tensors, ctx.kept, strict=True):
        if was is not None and (t.dtype, t.shape, t.device, t.layout) != was:
            dtype, shape, device, _ = was
            raise RuntimeError(
                f"{ctx.kept_of}: hooks on saved tensors must return what they were given, a "
                f"{dtype} tensor of shape {tuple(shape)} on {device}; got {t.dtype} of shape "
                f"{tuple(t.shape)} on {t.device}, {t.layout}"
            )
        # The memory of a negated view, as the imaginary part of a conjugate, holds the negative.
        found.append(t.resolve_neg() if t is not None and t.is_neg() else t)
    return found
