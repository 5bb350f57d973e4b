"""The surrogate gradients by name: what replaces the derivative of the spike (Eq. 7)."""

from typing import NamedTuple

# The order is that of csrc/core/lif.h.
_DEFAULT_SCALE = {"rectangular": 1.0, "atan": 2.0, "sigmoid": 4.0, "triangle": 2.0}
NAMES = tuple(_DEFAULT_SCALE)
# The kernels divide by it in float32.
_SMALLEST, _LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127


class Surrogate(NamedTuple):
    """A surrogate gradient and its scale.

    ============== ============================================== ======================
    name           d spike / d h                                  scale
    ============== ============================================== ======================
    rectangular    1 / width where abs(d) <= width / 2, else 0    width (1: the paper's)
    triangle       max(0, 1 - 2 abs(d) / width) * 2 / width       width (2)
    atan           alpha / 2 / (1 + (pi / 2 * alpha * d)^2)       alpha (2)
    sigmoid        alpha * e / (1 + e)^2, e = exp(-alpha abs(d))  alpha (4)
    ============== ============================================== ======================
    """

    name: str
    scale: float


def as_surrogate(surrogate: str | tuple[str, float]) -> Surrogate:
    """Return `surrogate` with its default scale if it is a name alone."""
    if isinstance(surrogate, str):
        name, scale = surrogate, None
    elif isinstance(surrogate, (tuple, list)) and len(surrogate) == 2:
        name, scale = surrogate
    else:
        raise TypeError(f"surrogate must be a name or a pair (name, scale); got {surrogate!r}")
    if name not in NAMES:
        raise ValueError(f"surrogate must be one of {', '.join(NAMES)}; got {name!r}")
    if scale is None:
        return Surrogate(name, _DEFAULT_SCALE[name])
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"surrogate: the scale of {name!r} must be a number; got {scale!r}")
    if not _SMALLEST <= scale <= _LARGEST:
        raise ValueError(
            f"surrogate: the scale of {name!r} must be a positive, normal float32, in "
            f"[{_SMALLEST:g}, {_LARGEST:g}]; got {scale}"
        )
    return Surrogate(name, float(scale))
