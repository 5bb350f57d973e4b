"""The data of `verify` and `profile`: a batch, or an iterable of batches."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops._checks import shape_text

_ACCEPTED = "a batch (a tensor [B, ...]), or an iterable of batches or of (batch, labels) pairs"


class Batch(NamedTuple):
    inputs: Tensor  # [B, ...], or frames [T*B, ...]
    labels: Tensor | None


def batches_of(data, input_shape: tuple[int, ...] | None = None) -> Iterator[Batch]:
    """Yield the batches of ``data``.

    Args:
        input_shape: The shape of every batch behind its first dimension; None: any.

    Raises:
        TypeError: if ``data`` or one of its batches is of another kind (a dictionary, an array).
        ValueError: if a batch has another shape than the network or the batches before it, or if
            there is none.
    """
    if isinstance(data, Tensor):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes)) or _hint(data):
        raise TypeError(f"data must be {_ACCEPTED}; got {type(data).__name__}{_hint(data)}")
    rank = None
    for n, item in enumerate(data):
        parts = item if isinstance(item, (tuple, list)) and item else (item,)
        inputs, labels = parts[0], parts[1] if len(parts) > 1 else None
        if not isinstance(inputs, Tensor):
            inside = f" in a {type(item).__name__}" if inputs is not item else ""
            raise TypeError(
                f"data must be {_ACCEPTED}; batch {n} is a {type(inputs).__name__}{inside}"
                f"{_hint(inputs)}"
            )
        checks.check_tensor(f"data: batch {n}", inputs)
        rank = inputs.dim() if rank is None else rank
        wanted = "*" * (rank - 1) if input_shape is None else input_shape
        fits = input_shape is None or tuple(inputs.shape[1:]) == tuple(input_shape)
        if inputs.dim() == 0 or inputs.dim() != rank or not fits:
            expected = shape_text(("N", *wanted))
            raise ValueError(
                f"data: batch {n} has shape {shape_text(inputs)}, not {expected}; a pair of "
                "tensors is read as two batches: give [(images, labels)] for one with its labels"
            )
        yield Batch(inputs, labels if isinstance(labels, Tensor) else None)
    if rank is None:
        raise ValueError(
            f"data must be {_ACCEPTED}; it yielded no batch (an iterator that was read before, or "
            "a DataLoader with fewer samples than one batch and drop_last=True)"
        )


def _hint(value) -> str:
    """Say how a mapping or an array becomes a tensor or batches; "" for other values."""
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, value))
        return f" with the keys {keys}: give the tensors, as in (b[key] for b in loader)"
    if hasattr(value, "__array__") and not isinstance(value, Tensor):
        return ": give torch.as_tensor(array)"
    return ""
