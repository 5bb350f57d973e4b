"""The size of a convolution's output map, and the padding before the map."""

import functools

import torch

from realspike_ops import _checks as checks


def _make_geometry(H, W, KH, KW, stride, padding, dilation):
    """Return (stride, padding, dilation), each (height, width), and the size of the output map."""
    before, size = output_size((H, W), (KH, KW), stride, padding, dilation)
    return (checks.pair("stride", stride, 1), before, checks.pair("dilation", dilation, 1)), size


# Networks call with the same few geometries again and again. Typed, since True == 1 but is no size.
_cached_geometry = functools.lru_cache(maxsize=1024, typed=True)(_make_geometry)


def geometry_of(*sizes_and_settings):
    """Call `_make_geometry`, or return what it returned for the same arguments."""
    if torch.compiler.is_compiling():
        return _make_geometry(*sizes_and_settings)
    try:
        return _cached_geometry(*sizes_and_settings)
    except TypeError:
        # A list has no hash. Anything else without a hash is refused by the checks.
        return _make_geometry(*sizes_and_settings)


def output_size(input_size, kernel_size, stride, padding, dilation):
    """Return the padding before the map and the size of the output map, each (height, width)."""
    stride = checks.pair("stride", stride, 1)
    dilation = checks.pair("dilation", dilation, 1)
    reach = [d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True)]
    if padding == "same":
        if stride != (1, 1):
            raise ValueError(f'padding="same" needs stride 1; got {stride}')
        return tuple(r // 2 for r in reach), tuple(input_size)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f'padding must be an int, a pair, "same" or "valid"; got {padding!r}')
    before = (0, 0) if padding == "valid" else checks.pair("padding", padding, 0)
    out = tuple(
        (n + 2 * p - r - 1) // s + 1
        for n, p, r, s in zip(input_size, before, reach, stride, strict=True)
    )
    if max(out) >= 2**31:
        raise ValueError(
            f"padding {padding} gives an output of {out[0]} x {out[1]}; both must be below 2^31"
        )
    if min(out) < 1:
        raise ValueError(
            f"a map of {input_size[0]} x {input_size[1]} with kernel_size {tuple(kernel_size)}, "
            f"stride {stride}, padding {padding}, dilation {dilation} gives an output of "
            f"{out[0]} x {out[1]}; both must be at least 1"
        )
    return before, out
