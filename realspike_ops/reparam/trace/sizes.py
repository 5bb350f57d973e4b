"""Sizes that follow the batch, told from the numbers of a trace whose batch is a large prime."""

from torch import Tensor

# The batch of a trace is this many times the example's. No layer has as many channels or pixels,
# so a number from here on was counted from the batch, and says how.
PRIME = 100_000_007
# The furthest that a size may lie from a multiple of the batch ("all but the last 3 images").
_OFFSET = 10_000


def batch_size(x: Tensor, numerator: int, denominator: int, offset: int) -> int:
    """Return the size that is ``numerator`` for a batch of ``denominator``, plus ``offset``."""
    return x.shape[0] * numerator // denominator + offset


def size_of(number, rows: int, example: int):
    """Return what a number of the trace is in a batch of ``rows``; the example had ``example``.

    A number that was not counted from the batch stays as it is.
    """
    if not is_of_batch(number):
        return number
    try:
        numerator, _, offset = of_batch(number, example)
    except ValueError:
        return None
    return numerator * rows // example + offset


def is_of_batch(number: object) -> bool:
    """Whether a number of the trace was counted from its batch."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) > PRIME // 2


def of_batch(number: int, example: int) -> tuple[int, int, int]:
    """Return the arguments of `batch_size` that make ``number`` where the batch is
    ``example * PRIME``.

    Raises:
        ValueError: if the number is not a multiple of the batch, near enough.
    """
    numerator = round(number / PRIME)
    offset = number - numerator * PRIME
    if abs(offset) > _OFFSET or abs(numerator) >= PRIME:
        raise ValueError("it computes a size from the batch that is no multiple of it")
    return numerator, example, offset
