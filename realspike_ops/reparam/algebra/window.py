"""Linear operators between two maps, and their composition, in float64.

A convolution, a pooling, a scaling, an identity and a linear layer over a flattened map are all
windows: an output pixel is a weighted sum of the input pixels under a kernel. A composition of
windows is a window again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """The operator

        out[f + g*Co + co, y, x] = sum over i, j, ci of
            kernel[rows[y], columns[x], g, i, j, ci, co]
            * in[g*Ci + ci, y*sh - ph + i*dh, x*sw - pw + j*dw]

    with f = `first_channel`; the input is 0 outside its map, the output 0 in all other channels. A
    kernel is stored once for all the positions that share it.
    """

    in_shape: tuple[int, int, int]  # (C, H, W)
    kernel: Tensor  # [R, Q, G, KH, KW, Ci, Co] float64
    rows: tuple[int, ...]  # OH indices into R
    columns: tuple[int, ...]  # OW indices into Q
    stride: Pair
    padding: Pair  # before the map; negative: the first pixels are not read
    dilation: Pair
    first_channel: int
    channels: int  # of the whole output

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return self.channels, len(self.rows), len(self.columns)

    @property
    def groups(self) -> int:
        return self.kernel.shape[2]

    @property
    def kernel_size(self) -> Pair:
        return two(self.kernel.shape[3:5])

    @property
    def own_channels(self) -> int:
        """The number of output channels that it writes."""
        return self.groups * self.kernel.shape[6]

    @property
    def own_range(self) -> range:
        return range(self.first_channel, self.first_channel + self.own_channels)

    @property
    def is_depthwise(self) -> bool:
        """Whether a channel reads itself alone."""
        return tuple(self.kernel.shape[5:]) == (1, 1)

    @property
    def is_one_to_one(self) -> bool:
        """Whether a pixel reads itself alone."""
        return (
            self.is_depthwise
            and self.kernel_size == (1, 1)
            and self.stride == (1, 1)
            and self.padding == (0, 0)
            and self.in_shape[1:] == self.out_shape[1:]
        )

    @property
    def is_shared(self) -> bool:
        """Whether all positions have one kernel."""
        return tuple(self.kernel.shape[:2]) == (1, 1)

    @property
    def reads_the_whole_map(self) -> bool:
        """Whether the only output position has a kernel as large as the map."""
        return (
            self.out_shape[1:] == (1, 1)
            and self.kernel_size == self.in_shape[1:]
            and self.padding == (0, 0)
            and self.dilation == (1, 1)
        )

    @property
    def averages_the_whole_map(self) -> bool:
        """Whether it reads the whole map with equal taps."""
        taps = self.kernel[0, 0, :, :1, :1]
        several = math.prod(self.kernel_size) > 1
        return several and self.reads_the_whole_map and bool((self.kernel[0, 0] == taps).all())


def two(values: Iterable[int]) -> Pair:
    """Return them as (height, width)."""
    height, width = values
    return height, width


def conv_window(
    kernel: Tensor,  # [G, KH, KW, Ci, Co]
    in_shape: Sequence[int],
    out_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Window:
    """Return the window of a kernel that all positions share."""
    C, H, W = in_shape
    return Window(
        in_shape=(C, H, W),
        kernel=kernel[None, None],
        rows=(0,) * out_size[0],
        columns=(0,) * out_size[1],
        stride=two(stride),
        padding=two(padding),
        dilation=two(dilation),
        first_channel=0,
        channels=kernel.shape[0] * kernel.shape[4],
    )


def scale_window(scale: Tensor, shape) -> Window:  # [C, 1, 1] or [C, H, W]
    """Return the window that multiplies a map by `scale`."""
    C, H, W = shape
    scale = scale.double().expand(C, *scale.shape[1:])
    rows, columns = (
        (0,) * n if count == 1 else tuple(range(n))
        for n, count in zip((H, W), scale.shape[1:], strict=True)
    )
    kernel = scale.permute(1, 2, 0)[..., None, None, None, None]  # [R, Q, C, 1, 1, 1, 1]
    return Window((C, H, W), kernel, rows, columns, (1, 1), (0, 0), (1, 1), 0, C)


def identity_window(shape) -> Window:
    return scale_window(torch.ones((shape[0], 1, 1), dtype=torch.float64), shape)


def scaled(window: Window, factor: float) -> Window:
    return replace(window, kernel=window.kernel * factor)


def placed(window: Window, first_channel: int, channels: int) -> Window:
    """Return the window with its output at `first_channel` of a wider map."""
    return replace(window, first_channel=first_channel + window.first_channel, channels=channels)


def reindexed(window: Window, channels: list[int]) -> Window | None:
    """Return the window whose output channels are `channels` of the window's own; -1: zeros.

    None: the window writes none of them.
    """
    own = window.own_range
    used = [n for n, channel in enumerate(channels) if channel in own]
    if not used:
        return None
    first, last = used[0], used[-1] + 1
    read = [c - own.start if c in own else -1 for c in channels[first:last]]
    if read != list(range(len(own))):
        kernel = block_diagonal(window.kernel, 1)
        kernel = torch.cat((kernel, torch.zeros_like(kernel[..., :1])), -1)[..., read]
        window = replace(window, kernel=kernel)
    return replace(window, first_channel=first, channels=len(channels))


# --- composition ----------------------------------------------------------------------------------


def compose(second: Window, first: Window) -> Window:
    """Return the operator that applies `first`, then `second`."""
    second = _reading_channels(second, first.first_channel, first.own_channels)
    first_kernel, second_kernel = _matching_groups(first.kernel, second.kernel)
    axes = [_compose_axis(second, first, axis) for axis in (0, 1)]
    (row_classes, rows), (column_classes, columns) = ((a.classes, a.index) for a in axes)
    KH, KW = (a.taps for a in axes)
    G = (second_kernel if _is_depthwise(first_kernel) else first_kernel).shape[2]
    Ci, Co = first.in_shape[0] // G, second.own_channels // G
    kernel = first_kernel.new_zeros((len(row_classes), len(column_classes), G, KH, KW, Ci, Co))
    for r, (second_row, first_rows) in enumerate(row_classes):
        for q, (second_column, first_columns) in enumerate(column_classes):
            for i, first_row in enumerate(first_rows):
                for j, first_column in enumerate(first_columns):
                    if first_row is None or first_column is None:
                        continue
                    block = _channel_product(
                        first_kernel[first_row, first_column],
                        second_kernel[second_row, second_column][:, i, j],
                    )
                    taps = kernel[r, q][:, axes[0].slice_of(i), axes[1].slice_of(j)]
                    taps += block
    return Window(
        in_shape=first.in_shape,
        kernel=kernel,
        rows=rows,
        columns=columns,
        stride=two(a.stride for a in axes),
        padding=two(a.padding for a in axes),
        dilation=two(a.dilation for a in axes),
        first_channel=second.first_channel,
        channels=second.channels,
    )


def _reading_channels(window: Window, first: int, count: int) -> Window:
    """Return the window as an operator on `count` of its input channels, from `first` on."""
    C, H, W = window.in_shape
    if (first, count) == (0, C):
        return window
    Ci, Co = window.kernel.shape[5:]
    g, end = first // Ci, -(-(first + count) // Ci)
    kernel = window.kernel[:, :, g:end]
    if first % Ci or count % Ci:
        # The channels cut through a group: all groups that they reach become one.
        kernel = block_diagonal(kernel, 1)[..., first - g * Ci : first - g * Ci + count, :]
    return replace(
        window,
        in_shape=(count, H, W),
        kernel=kernel,
        first_channel=window.first_channel + g * Co,
    )


def block_diagonal(kernel: Tensor, groups: int) -> Tensor:
    """Write [R, Q, G, KH, KW, Ci, Co] with fewer groups, zeros between what were groups."""
    R, Q, G, KH, KW, Ci, Co = kernel.shape
    if groups == G:
        return kernel
    m = G // groups
    out = kernel.new_zeros((R, Q, groups, KH, KW, m, Ci, m, Co))
    blocks = kernel.unflatten(2, (groups, m))  # [R, Q, groups, m, KH, KW, Ci, Co]
    for k in range(m):
        out[:, :, :, :, :, k, :, k] = blocks[:, :, :, k]
    return out.reshape(R, Q, groups, KH, KW, m * Ci, m * Co)


def _is_depthwise(kernel: Tensor) -> bool:
    return tuple(kernel.shape[-2:]) == (1, 1)


def _matching_groups(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Give both kernels the same groups, unless one only scales the channels of the other."""
    if _is_depthwise(first) or _is_depthwise(second):
        return first, second
    groups = math.gcd(first.shape[2], second.shape[2])
    return block_diagonal(first, groups), block_diagonal(second, groups)


def _channel_product(
    first: Tensor,  # [G1, KH, KW, Ci1, Co1]
    second: Tensor,  # [G2, Ci2, Co2]
) -> Tensor:  # [G, KH, KW, Ci, Co]
    if _is_depthwise(first):
        G, Ci, _ = second.shape
        scales = first.reshape(G, Ci, *first.shape[1:3]).permute(0, 2, 3, 1).unsqueeze(-1)
        return scales * second[:, None, None]
    if _is_depthwise(second):
        return first * second.reshape(first.shape[0], 1, 1, 1, first.shape[4])
    return first @ second[:, None, None]


@dataclass(frozen=True)
class _Axis:
    """Rows (or columns) of a composition: the taps of the inner window that an output row reads.

    A class is (row class of the outer kernel, for each of its taps the row class of the inner
    kernel); None is a tap outside the inner map.
    """

    classes: list
    index: tuple[int, ...]
    taps: int
    stride: int
    padding: int
    dilation: int
    outer_step: int  # taps between two taps of the outer kernel
    inner_taps: int
    inner_step: int

    def slice_of(self, tap: int) -> slice:
        """The taps that a tap of the outer kernel reads."""
        first = tap * self.outer_step
        return slice(first, first + (self.inner_taps - 1) * self.inner_step + 1, self.inner_step)


_ANY = "outside the input: whatever the kernel holds there is not read"


def _compose_axis(second: Window, first: Window, axis: int) -> _Axis:
    outer_index, inner_index = ((w.rows, w.columns)[axis] for w in (second, first))
    K2, s2, p2, d2 = (
        getattr(second, name)[axis] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    K1, s1, p1, d1 = (
        getattr(first, name)[axis] for name in ("kernel_size", "stride", "padding", "dilation")
    )
    size = first.in_shape[1 + axis]

    def inner(row: int):
        if 0 <= row < len(inner_index):
            return inner_index[row]
        starts = row * s1 - p1
        unread = all(not 0 <= starts + i * d1 < size for i in range(K1))
        return _ANY if unread else None

    classes: list = []
    index = []
    for y, outer in enumerate(outer_index):
        reads = [inner(y * s2 - p2 + i * d2) for i in range(K2)]
        for n, (other, others) in enumerate(classes):
            if other == outer and all(
                a == b or _ANY in (a, b) for a, b in zip(reads, others, strict=True)
            ):
                classes[n] = (
                    other,
                    [b if a == _ANY else a for a, b in zip(reads, others, strict=True)],
                )
                index.append(n)
                break
        else:
            index.append(len(classes))
            classes.append((outer, reads))
    classes = [(outer, [None if r == _ANY else r for r in reads]) for outer, reads in classes]
    dilation = math.gcd(d2 * s1 if K2 > 1 else 0, d1 if K1 > 1 else 0) or 1
    return _Axis(
        classes=classes,
        index=tuple(index),
        taps=((K2 - 1) * d2 * s1 + (K1 - 1) * d1) // dilation + 1,
        stride=s1 * s2,
        padding=p2 * s1 + p1,
        dilation=dilation,
        outer_step=d2 * s1 // dilation if K2 > 1 else 1,
        inner_taps=K1,
        inner_step=d1 // dilation if K1 > 1 else 1,
    )


# --- sums -----------------------------------------------------------------------------------------


def merge(a: Window, b: Window) -> Window | None:
    """Return the sum of two windows on one map as one window; None where that would store more."""
    if (a.in_shape, a.out_shape, a.stride) != (b.in_shape, b.out_shape, b.stride):
        return None
    if (a.first_channel, a.own_channels) != (b.first_channel, b.own_channels):
        return None
    dilation, padding, offsets, taps = [], [], [], []
    for axis in (0, 1):
        before = max(a.padding[axis], b.padding[axis])
        shifts = [before - w.padding[axis] for w in (a, b)]
        steps = [w.dilation[axis] for w in (a, b) if w.kernel_size[axis] > 1]
        step = math.gcd(*shifts, *steps) or 1
        padding.append(before)
        dilation.append(step)
        offsets.append([shift // step for shift in shifts])
        reach = [
            shift + (w.kernel_size[axis] - 1) * w.dilation[axis]
            for shift, w in zip(shifts, (a, b), strict=True)
        ]
        taps.append(max(reach) // step + 1)
    groups = math.gcd(a.groups, b.groups)
    pairs = [_pairs(a.rows, b.rows), _pairs(a.columns, b.columns)]
    size = math.prod(len(p) for p in pairs) * groups * math.prod(taps)
    size *= (a.in_shape[0] // groups) * (a.own_channels // groups)
    if size > a.kernel.numel() + b.kernel.numel():
        return None
    first = block_diagonal(a.kernel, groups)
    R, Q = (len(p) for p in pairs)
    kernel = first.new_zeros((R, Q, groups, *taps, first.shape[5], first.shape[6]))
    for n, window in enumerate((a, b)):
        own = block_diagonal(window.kernel, groups)
        row, column = (torch.tensor([pair[n] for pair in p]) for p in pairs)
        spans = [
            slice(
                o[n],
                o[n] + (k - 1) * (d // step) + 1,
                max(1, d // step),
            )
            for o, k, d, step in zip(
                offsets, window.kernel_size, window.dilation, dilation, strict=True
            )
        ]
        kernel[:, :, :, spans[0], spans[1]] += own[row][:, column]
    return replace(
        a,
        kernel=kernel,
        rows=tuple(pairs[0].index(pair) for pair in zip(a.rows, b.rows, strict=True)),
        columns=tuple(pairs[1].index(pair) for pair in zip(a.columns, b.columns, strict=True)),
        padding=two(padding),
        dilation=two(dilation),
    )


def _pairs(a: tuple[int, ...], b: tuple[int, ...]) -> list[Pair]:
    return sorted(set(zip(a, b, strict=True)))
