"""Linear layers as windows: the operator, and the layer on a constant map.

Every function takes the shape [C, H, W] of the map that the layer reads, and the arguments of the
torch function of the same name behind its input; it computes in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.reparam.algebra.window import Window, conv_window, scale_window, two


@dataclass(frozen=True)
class Affine:
    """A layer: `window` is its linear part, `of` computes the whole layer on one map [C, H, W]."""

    window: Window
    of: Callable[[Tensor], Tensor]
    shifts: bool  # whether a map of zeros gives anything else


@overload
def _double(tensor: Tensor) -> Tensor: ...
@overload
def _double(tensor: None) -> None: ...


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().double()


def conv2d(shape, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Affine:
    weight, bias = _double(weight), _double(bias)
    if shape[0] != weight.shape[1] * groups:
        raise ValueError(f"it needs {weight.shape[1] * groups} channels, but reads {shape[0]}")
    (stride, dilation), k = (checks.pair("", a, 1) for a in (stride, dilation)), weight.shape[2:]
    if not isinstance(padding, str):
        padding = checks.pair("padding", padding, 0)
    before, size = functional.output_size(shape[1:], k, stride, padding, dilation)
    window = conv_window(
        fold_into_weight.kernel_order(weight, groups), shape, size, stride, before, dilation
    )

    def of(x):
        return F.conv2d(x[None], weight, bias, stride, padding, dilation, groups)[0]

    return Affine(window, of, bias is not None)


def linear(shape, weight: Tensor, bias=None) -> Affine:
    """Return a linear layer on the flattened map: one position, a kernel as large as the map."""
    weight, bias = _double(weight), _double(bias)
    kernel = weight.view(-1, *shape).permute(2, 3, 1, 0)[None]  # [1, H, W, C, F]

    def of(x):
        return F.linear(x.flatten(), weight, bias)[:, None, None]

    return Affine(conv_window(kernel, shape, (1, 1)), of, bias is not None)


def scale_and_shift(shape, scale: Tensor, shift: Tensor | None = None) -> Affine:
    """scale * x + shift, both [C, 1, 1] or [C, H, W]."""

    def of(x):
        return scale * x if shift is None else scale * x + shift

    return Affine(scale_window(scale, shape), of, shift is not None)


def strided(shape, size, stride, padding) -> Affine:
    """Every stride-th pixel, zeros outside the map; negative padding cuts."""
    ones = torch.ones((shape[0], 1, 1, 1, 1), dtype=torch.float64)

    def of(x):
        (ph, pw), (H, W) = padding, x.shape[1:]
        reach = [(n - 1) * s + 1 for n, s in zip(size, stride, strict=True)]
        x = F.pad(x, (pw, reach[1] - W - pw, ph, reach[0] - H - ph))
        return x[:, :: stride[0], :: stride[1]]

    return Affine(conv_window(ones, shape, size, stride, padding), of, False)


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
        return F.adaptive_avg_pool2d(x[None], two(out))[0]

    rows, columns = indices
    pads = two(paddings)
    window = Window(tuple(shape), kernel, rows, columns, two(strides), pads, (1, 1), 0, C)
    return Affine(window, of, False)


# --- lines: maps with one row ---------------------------------------------------------------------


def on_a_line(size, outside: int) -> Any:
    """Write an argument of a layer on lines [C, L] for maps [C, 1, L]."""
    if isinstance(size, str) or size is None or size in ((), []):
        return size
    (size,) = size if isinstance(size, (tuple, list)) else (size,)
    return (outside, size)


def conv1d(shape, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Affine:
    stride, dilation = on_a_line(stride, 1), on_a_line(dilation, 1)
    padding = on_a_line(padding, 0)
    return conv2d(shape, weight.unsqueeze(2), bias, stride, padding, dilation, groups)


def avg_pool1d(
    shape, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True
) -> Affine:
    kernel_size, stride = on_a_line(kernel_size, 1), on_a_line(stride, 1)
    return avg_pool2d(
        shape, kernel_size, stride, on_a_line(padding, 0), ceil_mode, count_include_pad
    )


def adaptive_avg_pool1d(shape, output_size) -> Affine:
    return adaptive_avg_pool2d(shape, on_a_line(output_size, 1))


# --- larger maps: (layer, phases, size) -----------------------------------------------------------


def _phases(x: Tensor, phases) -> Tensor:  # [C, H*a, W*b] -> [C*a*b, H, W]
    a, b = phases
    x = x.unflatten(1, (-1, a)).unflatten(3, (-1, b))  # [C, H, a, W, b]
    return x.permute(0, 2, 4, 1, 3).flatten(0, 2)


def conv_transpose2d(
    shape, weight: Tensor, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    """A convolution whose channels are the stride[0] x stride[1] phases of every pixel."""
    weight, bias = _double(weight), _double(bias)  # [Cin, Cout/G, KH, KW]
    pairs = (stride, padding, output_padding, dilation)
    s, p, extra, d = (checks.pair("", pair, 0) for pair in pairs)
    k, size = weight.shape[2:], shape[1:]
    if shape[0] != weight.shape[0]:
        raise ValueError(f"it needs {weight.shape[0]} channels, but reads {shape[0]}")
    out = [(n - 1) * s[a] - 2 * p[a] + d[a] * (k[a] - 1) + extra[a] + 1 for a, n in enumerate(size)]
    before, taps, slots = [], [], []
    for a in (0, 1):
        # Output row s*y + phase gets tap i from input row y + (phase + p - i*d) / s.
        reads = [
            (phase, i, (phase + p[a] - i * d[a]) // s[a])
            for phase in range(s[a])
            for i in range(k[a])
            if (phase + p[a] - i * d[a]) % s[a] == 0
        ]
        first = min(offset for _, _, offset in reads)
        before.append(-first)
        taps.append(max(offset for _, _, offset in reads) - first + 1)
        slots.append([(phase, i, offset - first) for phase, i, offset in reads])
    G = groups
    by_group = weight.unflatten(0, (G, -1))  # [G, Cin/G, Cout/G, KH, KW]
    Ci, Co = by_group.shape[1:3]
    kernel = weight.new_zeros((G, *taps, Ci, Co, *s))
    for row, i, y in slots[0]:
        for column, j, x in slots[1]:
            kernel[:, y, x, :, :, row, column] = by_group[:, :, :, i, j]
    steps = [-(-n // s[a]) for a, n in enumerate(out)]
    window = conv_window(kernel.flatten(4), shape, steps, padding=before)

    def of(x):
        full = F.conv_transpose2d(x[None], weight, bias, s, p, extra, G, d)
        rest = [n * s[a] - out[a] for a, n in enumerate(steps)]
        # Nobody reads the pixels behind the map.
        return _phases(F.pad(full, (0, rest[1], 0, rest[0]), mode="replicate")[0], s)

    return Affine(window, of, bias is not None), s, out


def conv_transpose1d(
    shape, weight: Tensor, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    stride, dilation = on_a_line(stride, 1), on_a_line(dilation, 1)
    padding, output_padding = on_a_line(padding, 0), on_a_line(output_padding, 0)
    return conv_transpose2d(
        shape, weight.unsqueeze(2), bias, stride, padding, output_padding, groups, dilation
    )


def separable(shape, rows: Tensor, columns: Tensor):  # [OH, H], [OW, W] float64
    """Every row of a map times one matrix, every column times the other."""
    C = shape[0]
    axes = [_axis_of_phases(matrix) for matrix in (rows, columns)]
    a, b = (axis.phases for axis in axes)
    stride, padding = two(axis.stride for axis in axes), two(axis.padding for axis in axes)
    (row_kernels, row_index), (column_kernels, column_index) = (axis[3:] for axis in axes)
    kernel = torch.einsum("rpi,qoj->rqijpo", row_kernels, column_kernels)
    R, Q, KH, KW = kernel.shape[:4]
    kernel = kernel.reshape(R, Q, 1, KH, KW, 1, a * b).expand(-1, -1, C, -1, -1, -1, -1)
    window = Window(
        tuple(shape), kernel, row_index, column_index, stride, padding, (1, 1), 0, C * a * b
    )

    def of(x):
        return _phases(rows @ x @ columns.T, (a, b))

    return Affine(window, of, False), (a, b), (len(rows), len(columns))


class _Phases(NamedTuple):
    phases: int
    stride: int
    padding: int
    kernels: Tensor  # [R, phases, K]
    index: tuple[int, ...]


def _axis_of_phases(matrix: Tensor) -> _Phases:
    """Return (phases, stride, padding, kernels [R, phases, K], index).

    The rows of the matrix from y*phases on are kernel index[y], from column y*stride - padding on.
    """
    out, size = matrix.shape
    count = math.gcd(out, size)
    phases, stride = out // count, size // count
    y, _, column = (matrix.view(count, phases, size) != 0).nonzero().T
    offsets = column - y * stride
    first, taps = int(offsets.min()), int(offsets.max() - offsets.min()) + 1
    kernels = matrix.new_zeros((count, phases, taps))
    for n in range(count):
        for i in range(taps):
            if 0 <= n * stride + first + i < size:
                kernels[n, :, i] = matrix[n * phases : (n + 1) * phases, n * stride + first + i]
    distinct, index = torch.unique(kernels, dim=0, return_inverse=True)
    return _Phases(phases, stride, -first, distinct, tuple(index.tolist()))
