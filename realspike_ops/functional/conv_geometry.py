"""The size of a convolution's output map, and the padding before the map."""

import functools
from collections.abc import Sequence

import torch

from realspike_ops import _checks as checks

_Pair = tuple[int, int]


def _make_geometry(
    H: int,
    W: int,
    KH: int,
    KW: int,
    stride: int | _Pair,
    padding: int | _Pair | str,
    dilation: int | _Pair,
) -> tuple[tuple[_Pair, _Pair, _Pair], _Pair]:
    """Return (stride, padding, dilation), each (height, width), and the size of the output map."""
    before, size = output_size((H, W), (KH, KW), stride, padding, dilation)
    return (checks.pair("stride", stride, 1), before, checks.pair("dilation", dilation, 1)), size


# Networks call with the same few geometries again and again. Typed, since True == 1 but is no size.
_cached_geometry = functools.lru_cache(maxsize=1024, typed=True)(_make_geometry)


def geometry_of(
    H: int,
    W: int,
    KH: int,
    KW: int,
    stride: int | _Pair,
    padding: int | _Pair | str,
    dilation: int | _Pair,
) -> tuple[tuple[_Pair, _Pair, _Pair], _Pair]:
    """Call `_make_geometry`, or return what it returned for the same arguments."""
    sizes_and_settings = (H, W, KH, KW, stride, padding, dilation)
    if torch.compiler.is_compiling():
        return _make_geometry(*sizes_and_settings)
    try:
        return _cached_geometry(*sizes_and_settings)
    except TypeError:
        # A list has no hash. Anything else without a hash is refused by the checks.
        return _make_geometry(*sizes_and_settings)


def output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: int | _Pair,
    padding: int | _Pair | str,
    dilation: int | _Pair,
) -> tuple[_Pair, _Pair]:
    """Return the padding before the map and the size of the output map, each (height, width)."""
    stride = checks.pair("stride", stride, 1)
    dilation = checks.pair("dilation", dilation, 1)
    H, W = input_size
    reach_h, reach_w = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if isinstance(padding, str) and padding == "same":
        if stride != (1, 1):
            raise ValueError(f'padding="same" needs stride 1; got {stride}')
        return (reach_h // 2, reach_w // 2), (H, W)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f'padding must be an int, a pair, "same" or "valid"; got {padding!r}')
    before = (0, 0) if isinstance(padding, str) else checks.pair("padding", padding, 0)
    OH = (H + 2 * before[0] - reach_h - 1) // stride[0] + 1
    OW = (W + 2 * before[1] - reach_w - 1) // stride[1] + 1
    if max(OH, OW) >= 2**31:
        raise ValueError(
            f"padding {padding} gives an output of {OH} x {OW}; both must be below 2^31"
        )
    if min(OH, OW) < 1:
        raise ValueError(
            f"a map of {H} x {W} with kernel_size {tuple(kernel_size)}, "
            f"stride {stride}, padding {padding}, dilation {dilation} gives an output of "
            f"{OH} x {OW}; both must be at least 1"
        )
    return before, (OH, OW)
