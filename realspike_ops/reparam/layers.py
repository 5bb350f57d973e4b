"""Linear layers as windows: the operator, and what the layer makes of a constant map.

Every function takes the shape [C, H, W] of the map that the layer reads, and the arguments of the
torch function of the same name behind its input; it computes in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn import fold
from realspike_ops.reparam.window import Window, conv_window, scale_window


@dataclass(frozen=True)
class Affine:
    """A layer: `window` is its linear part, `of` the whole of it on one map [C, H, W]."""

    window: Window
    of: Callable[[Tensor], Tensor]
    shifts: bool  # whether a map of zeros gives anything else


def _double(tensor: "Tensor | None") -> "Tensor | None":
    return None if tensor is None else tensor.detach().double()


def conv2d(shape, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Affine:
    weight, bias = _double(weight), _double(bias)
    if shape[0] != weight.shape[1] * groups:
        raise ValueError(f"it needs {weight.shape[1] * groups} channels, but reads {shape[0]}")
    (stride, dilation), k = (checks.pair("", a, 1) for a in (stride, dilation)), weight.shape[2:]
    if not isinstance(padding, str):
        padding = checks.pair("padding", padding, 0)
    before, size = functional.output_size(shape[1:], k, stride, padding, dilation)
    window = conv_window(fold.kernel_order(weight, groups), shape, size, stride, before, dilation)

    def of(x):
        return F.conv2d(x[None], weight, bias, stride, padding, dilation, groups)[0]

    return Affine(window, of, bias is not None)


def linear(shape, weight, bias=None) -> Affine:
    """Of the flattened map: one position, with a kernel as large as the map."""
    weight, bias = _double(weight), _double(bias)
    kernel = weight.view(-1, *shape).permute(2, 3, 1, 0)[None]  # [1, H, W, C, F]

    def of(x):
        return F.linear(x.flatten(), weight, bias)[:, None, None]

    return Affine(conv_window(kernel, shape, (1, 1)), of, bias is not None)


def scale_and_shift(shape, scale: Tensor, shift: "Tensor | None" = None) -> Affine:
    """scale * x + shift, both [C, 1, 1] or [C, H, W]."""

    def of(x):
        return scale * x if shift is None else scale * x + shift

    return Affine(scale_window(scale, shape), of, shift is not None)


def pad(shape, widths, mode="constant", value=None) -> Affine:
    """Zeros around the map; negative widths cut."""
    left, right, top, bottom = (*widths, 0, 0)[:4] if len(widths) in (2, 4) else (None,) * 4
    if left is None or mode != "constant" or value not in (None, 0):
        raise ValueError("only zeros around the map (height and width) can be added")
    C, H, W = shape
    size = (H + top + bottom, W + left + right)
    ones = torch.ones((C, 1, 1, 1, 1), dtype=torch.float64)

    def of(x):
        return F.pad(x, (left, right, top, bottom))

    return Affine(conv_window(ones, shape, size, padding=(top, left)), of, False)


def avg_pool2d(
    shape,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
) -> Affine:
    k = checks.pair("kernel_size", kernel_size, 1)
    s = k if stride in (None, (), []) else checks.pair("stride", stride, 1)
    p = checks.pair("padding", padding, 0)

    def of(x):
        rest = (ceil_mode, count_include_pad, divisor_override)
        return F.avg_pool2d(x[None], k, s, p, *rest)[0]

    C, *size = shape
    out = of(torch.zeros(shape, dtype=torch.float64)).shape[1:]

    def counted(axis: int, y: int) -> int:
        """The number of rows that a window is divided by."""
        start = y * s[axis] - p[axis]
        end = min(start + k[axis], size[axis] + p[axis])
        if count_include_pad:
            return end - start
        return min(end, size[axis]) - max(start, 0)

    counts = [[counted(axis, y) for y in range(out[axis])] for axis in (0, 1)]
    kinds = [sorted(set(c)) for c in counts]
    area = torch.tensor([[r * q for q in kinds[1]] for r in kinds[0]], dtype=torch.float64)
    if divisor_override is not None:
        area.fill_(divisor_override)
    kernel = (1 / area)[:, :, None, None, None, None, None].expand(-1, -1, C, *k, 1, 1)
    rows, columns = (tuple(kind.index(n) for n in c) for kind, c in zip(kinds, counts, strict=True))
    return Affine(Window(tuple(shape), kernel, rows, columns, s, p, (1, 1), 0, C), of, False)


def adaptive_avg_pool2d(shape, output_size) -> Affine:
    C, *size = shape
    wanted = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    out = [n if w is None else w for w, n in zip(wanted, size, strict=True)]
    strides, paddings, taps, kinds, indices = [], [], [], [], []
    for n, count in zip(size, out, strict=True):
        spans = [(y * n // count, -(-(y + 1) * n // count)) for y in range(count)]
        stride = max(1, n // count)
        # Uneven windows start before or after the multiples of the stride.
        padding = max(y * stride - start for y, (start, _) in enumerate(spans))
        kind = [(start - y * stride + padding, end - start) for y, (start, end) in enumerate(spans)]
        strides.append(stride)
        paddings.append(padding)
        taps.append(max(first + length for first, length in kind))
        kinds.append(sorted(set(kind)))
        indices.append(tuple(kinds[-1].index(k) for k in kind))
    kernel = torch.zeros((len(kinds[0]), len(kinds[1]), C, *taps, 1, 1), dtype=torch.float64)
    for r, (i, h) in enumerate(kinds[0]):
        for q, (j, w) in enumerate(kinds[1]):
            kernel[r, q, :, i : i + h, j : j + w] = 1 / (h * w)

    def of(x):
        return F.adaptive_avg_pool2d(x[None], out)[0]

    window = Window(
        *(tuple(shape), kernel, *indices, tuple(strides), tuple(paddings), (1, 1), 0, C)
    )
    return Affine(window, of, False)
