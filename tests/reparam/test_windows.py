"""Windows against the matrices that their equation says: layers, compositions, sums, channels."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import generator

from realspike_ops.reparam.algebra import layers
from realspike_ops.reparam.algebra.window import (
    Window,
    compose,
    conv_window,
    identity_window,
    merge,
    placed,
    reindexed,
    scale_window,
    scaled,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def integers(shape, seed=0):
    """Numbers whose products and sums are exact."""
    drawn = torch.randint(1, 9, tuple(shape), generator=generator(seed))
    return drawn.double() * (-1) ** torch.arange(drawn.numel()).view(drawn.shape)


def axis_of(index, taps, stride, padding, dilation, size):
    """[outputs, classes, taps, inputs]: which input every tap of an output reads."""
    reads = torch.zeros(len(index), max(index) + 1, taps, size, dtype=torch.float64)
    for (y, kind), i in itertools.product(enumerate(index), range(taps)):
        if 0 <= (row := y * stride - padding + i * dilation) < size:
            reads[y, kind, i, row] = 1
    return reads


def matrix_of(w: Window) -> torch.Tensor:
    """[C', OH, OW, C, H, W]: the operator of the equation."""
    C, *size = w.in_shape
    R, Q, G, KH, KW, Ci, Co = w.kernel.shape
    assert (max(w.rows) + 1, max(w.columns) + 1) == (R, Q)
    assert G * Ci == C
    rows, columns = (
        axis_of(*given)
        for given in zip(
            (w.rows, w.columns), (KH, KW), w.stride, w.padding, w.dilation, size, strict=True
        )
    )
    groups = torch.einsum("rqgijco,yrih,xqjw->goyxchw", w.kernel, rows, columns)
    out = torch.zeros(w.channels, len(w.rows), len(w.columns), *w.in_shape, dtype=torch.float64)
    for g in range(G):
        own = slice(w.first_channel + g * Co, w.first_channel + (g + 1) * Co)
        out[own, :, :, g * Ci : (g + 1) * Ci] = groups[g]
    return out


def applied(function, shape) -> torch.Tensor:
    """[C', OH, OW, C, H, W]: a linear function of maps [N, C, H, W] on every map of one 1."""
    count = torch.Size(shape).numel()
    ones = torch.eye(count, dtype=torch.float64).view(count, *shape)
    out = function(ones)
    return out.permute(1, 2, 3, 0).reshape(*out.shape[1:], *shape)


def assert_affine(affine, function, shape, x=None):
    """Whether its window is the linear part of a function of maps, and `of` all of it."""
    nothing = function(torch.zeros((1, *shape), dtype=torch.float64))
    torch.testing.assert_close(
        matrix_of(affine.window),
        applied(lambda ones: function(ones) - nothing, shape),
        rtol=1e-14,
        atol=1e-14,
    )
    assert affine.shifts == bool(nothing.any())
    x = integers(shape, 7)
    torch.testing.assert_close(affine.of(x), function(x[None])[0], rtol=1e-14, atol=1e-14)


# Layers


CONVOLUTIONS = [
    # shape, kernel [Co, Ci/G, KH, KW], options
    ((2, 5, 4), (3, 2, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    ((2, 6, 7), (3, 2, 2, 3), {"stride": (1, 3), "padding": (2, 1), "dilation": (3, 2)}),
    ((4, 4, 5), (6, 2, 1, 3), {"padding": (0, 1), "groups": 2}),
    ((3, 5, 5), (3, 1, 3, 3), {"padding": "same", "groups": 3}),
    ((2, 5, 6), (2, 2, 4, 2), {"padding": "same", "dilation": (1, 2)}),
    ((1, 5, 4), (2, 1, 2, 2), {"padding": "valid", "stride": 2}),
]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "options"), CONVOLUTIONS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions(shape, kernel, options, biased):
    weight = integers(kernel)
    bias = integers(kernel[:1], 1) if biased else None
    affine = layers.conv2d(shape, weight, bias, **options)
    assert_affine(affine, lambda x: F.conv2d(x, weight, bias, **options), shape)


@pytest.mark.parametrize("biased", [False, True])
def test_convolutions_of_lines(biased):
    weight, bias = integers((3, 2, 3)), integers((3,), 1) if biased else None
    options = {"stride": 2, "padding": 1, "dilation": 2}
    affine = layers.conv1d((2, 1, 8), weight, bias, **options)

    def function(x):
        return F.conv1d(x[:, :, 0], weight, bias, **options)[:, :, None]

    assert_affine(affine, function, (2, 1, 8))


@pytest.mark.parametrize("biased", [False, True])
def test_linear(biased):
    weight, bias = integers((3, 24)), integers((3,), 1) if biased else None
    affine = layers.linear((2, 3, 4), weight, bias)

    def function(x):
        return F.linear(x.flatten(1), weight, bias)[..., None, None]

    assert_affine(affine, function, (2, 3, 4))


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_scale_and_shift(size):
    scale, shift = integers((2, *size)), integers((2, 1, 1), 1)
    for extra in (shift, None):
        affine = layers.scale_and_shift((2, 3, 4), scale, extra)
        assert_affine(affine, lambda x, s=extra: scale * x + (0 if s is None else s), (2, 3, 4))
        assert affine.window.kernel.shape[:2] == size
        assert affine.window.is_one_to_one


TRANSPOSED = [
    # shape, kernel [Ci, Co/G, KH, KW], options
    ((2, 3, 4), (2, 3, 3, 2), {"stride": (2, 1)}),
    ((2, 3, 2), (2, 1, 4, 3), {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2)}),
    ((4, 3, 3), (4, 2, 2, 5), {"stride": (3, 2), "groups": 2, "padding": (0, 2)}),
    ((1, 4, 3), (1, 2, 2, 3), {"stride": (1, 2), "dilation": (3, 2), "padding": (1, 1)}),
    ((1, 3, 3), (1, 1, 2, 2), {"stride": (3, 4), "dilation": (2, 3), "output_padding": (1, 0)}),
    ((2, 3, 4), (2, 2, 3, 1), {"padding": 1}),
]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("shape", "kernel", "options"), TRANSPOSED)
def test_transposed_convolutions(shape, kernel, options, biased):
    """Phase (a, b) of output channel c is channel (c * sh + a) * sw + b."""
    weight = integers(kernel)
    channels = kernel[1] * options.get("groups", 1)
    bias = integers((channels,), 1) if biased else None
    affine, phases, size = layers.conv_transpose2d(shape, weight, bias, **options)
    expected = F.conv_transpose2d(integers((1, *shape), 7), weight, bias, **options)[0]
    assert tuple(size) == tuple(expected.shape[1:])
    assert_in_phases(affine, phases, size, expected, integers(shape, 7))
    nothing = F.conv_transpose2d(integers((1, *shape)) * 0, weight, bias, **options)
    assert affine.shifts == bool(nothing.any())

    def of_one(x):
        return F.conv_transpose2d(x, weight, None, **options)

    assert_phases_of_matrix(affine.window, phases, size, applied(of_one, shape))


def together(x, phases):
    """[C*a*b, H, W, ...] -> [C, H*a, W*b, ...]: every phase at its pixels."""
    a, b = phases
    C, H, W = x.shape[0] // (a * b), *x.shape[1:3]
    out = torch.full((C, H * a, W * b, *x.shape[3:]), torch.nan, dtype=x.dtype)
    for c, i, j in itertools.product(range(C), range(a), range(b)):
        out[c, i::a, j::b] = x[(c * a + i) * b + j]
    return out


def assert_in_phases(affine, phases, size, expected, x):
    got = together(affine.of(x), phases)[:, : size[0], : size[1]]
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-13)


def assert_phases_of_matrix(window, phases, size, expected):
    for n, phase, steps in zip(size, phases, window.out_shape[1:], strict=True):
        assert n <= steps * phase < n + phase  # no more pixels than that
    got = together(matrix_of(window), phases)[:, : size[0], : size[1]]
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-13)


def test_a_transposed_convolution_of_other_channels():
    with pytest.raises(ValueError, match="needs 3 channels, but reads 2"):
        layers.conv_transpose2d((2, 4, 4), torch.ones(3, 1, 2, 2))
    with pytest.raises(ValueError, match="needs 4 channels, but reads 2"):
        layers.conv2d((2, 4, 4), torch.ones(2, 2, 1, 1), groups=2)


def test_what_is_not_given():
    """Layers have torch's defaults."""
    shape = (2, 1, 9)
    line = integers((2, 2, 2))
    weight = line[:, :, None]

    def on_line(function):
        return lambda x: function(x[:, :, 0])[:, :, None]

    assert_affine(layers.conv2d(shape, weight), lambda x: F.conv2d(x, weight), shape)
    assert_affine(layers.conv1d(shape, line), on_line(lambda x: F.conv1d(x, line)), shape)
    for padding in ({}, {"padding": 1}):
        pooled = layers.avg_pool1d(shape, 3, **padding)
        assert_affine(pooled, on_line(lambda x, p=padding: F.avg_pool1d(x, 3, **p)), shape)
        grown = layers.avg_pool2d((2, 9, 9), 3, **padding)
        assert_affine(grown, lambda x, p=padding: F.avg_pool2d(x, 3, **p), (2, 9, 9))
    for affine, phases, size in (
        layers.conv_transpose1d(shape, line),
        layers.conv_transpose2d(shape, weight),
    ):
        assert (tuple(phases), size) == ((1, 1), [1, 10])
        expected = F.conv_transpose2d(integers((1, *shape), 7), weight)[0]
        assert_in_phases(affine, phases, size, expected, integers(shape, 7))


def test_many_channels():
    x, weight = integers((300, 1, 1)), integers((300, 300, 1, 1), 1)
    assert torch.equal(layers.conv2d(x.shape, weight).of(x), F.conv2d(x[None], weight)[0])
    affine, _, _ = layers.conv_transpose2d(x.shape, weight)
    assert torch.equal(affine.of(x), F.conv_transpose2d(x[None], weight)[0])


def test_transposed_convolutions_of_lines():
    weight = integers((2, 1, 3))
    options = {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2}
    affine, phases, size = layers.conv_transpose1d((2, 1, 4), weight, None, **options)
    expected = F.conv_transpose1d(integers((1, 2, 4), 7), weight, None, **options)[0][:, None]
    assert (phases, size) == ((1, 2), [1, expected.shape[2]])
    assert_in_phases(affine, phases, size, expected, integers((2, 1, 4), 7))


@pytest.mark.parametrize(
    ("rows", "columns", "phases", "stride"),
    [
        # Sizes of a matrix: as many outputs for as many inputs as their greatest divisor allows.
        ((4, 2), (6, 4), (2, 3), (1, 2)),
        ((3, 6), (5, 3), (1, 5), (2, 3)),
        ((3, 3), (1, 4), (1, 1), (1, 4)),
    ],
)
def test_separable(rows, columns, phases, stride):
    a, b = integers(rows), integers(columns, 1)
    a[0, 0] = b[0, -1] = 0  # a window may read less than all
    affine, got, size = layers.separable((2, rows[1], columns[1]), a, b)
    assert (got, size) == (phases, (rows[0], columns[0]))
    assert affine.window.stride == stride
    assert not affine.shifts
    x = integers((2, rows[1], columns[1]), 7)
    assert_in_phases(affine, phases, size, a @ x @ b.T, x)
    matrix = applied(lambda ones: a @ ones @ b.T, (2, rows[1], columns[1]))
    assert_phases_of_matrix(affine.window, phases, size, matrix)


def test_a_repeated_part_of_a_matrix_is_one_kernel():
    """Nearest upsampling by 2: one tap, whatever the position; then one with a border."""
    nearest = torch.eye(4, dtype=torch.float64).repeat_interleave(2, 0)
    phases, stride, padding, kernels, index = layers._axis_of_phases(nearest)
    assert (phases, stride, padding, index) == (2, 1, 0, (0, 0, 0, 0))
    assert torch.equal(kernels, torch.ones(1, 2, 1).double())
    # Rows of two neighbours each, the last of its own.
    border = torch.tensor([[1.0, 2, 0], [0, 1, 2], [0, 0, 3]]).double()
    phases, stride, padding, kernels, index = layers._axis_of_phases(border)
    assert (phases, stride, padding) == (1, 1, 0)
    assert kernels[list(index)].tolist() == [[[1, 2]], [[1, 2]], [[3, 0]]]
    # Column y - 1 and y + 1: a tap before the map, three taps from there.
    around = torch.tensor([[0.0, 2, 0], [1, 0, 2], [0, 1, 0]]).double()
    phases, stride, padding, kernels, index = layers._axis_of_phases(around)
    assert (phases, stride, padding) == (1, 1, 1)
    assert kernels[list(index)].tolist() == [[[0, 0, 2]], [[1, 0, 2]], [[1, 0, 0]]]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": (2, 3), "stride": (2, 3), "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {
            "kernel_size": 3,
            "stride": 2,
            "padding": 1,
            "ceil_mode": True,
            "count_include_pad": False,
        },
        {"kernel_size": (2, 3), "stride": (), "divisor_override": 5},
        {"kernel_size": 3, "padding": 1, "stride": 1, "divisor_override": 2},
    ],
)
def test_average_pooling(options):
    shape = (2, 6, 7)
    affine = layers.avg_pool2d(shape, **options)
    assert_affine(affine, lambda x: F.avg_pool2d(x, **options), shape)


def test_average_pooling_has_a_kernel_for_every_count():
    """A row at the border and rows inside: 3 x 3 windows with a padding that is not counted."""
    options = {"kernel_size": 3, "stride": 1, "padding": 1, "count_include_pad": False}
    window = layers.avg_pool2d((1, 4, 5), **options).window
    assert (window.rows, window.columns) == ((0, 1, 1, 0), (0, 1, 1, 1, 0))
    assert window.kernel[..., 0, 0, 0, 0, 0].tolist() == [[1 / 4, 1 / 6], [1 / 6, 1 / 9]]
    assert layers.avg_pool2d((1, 4, 4), 2).window.is_shared


def test_average_pooling_of_lines():
    shape = (2, 1, 7)
    options = {"stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True}
    affine = layers.avg_pool1d(shape, 3, **options)
    function = lambda x: F.avg_pool1d(x[:, :, 0], 3, **options)[:, :, None]  # noqa: E731
    assert_affine(affine, function, shape)
    affine = layers.adaptive_avg_pool1d(shape, 3)
    assert_affine(affine, lambda x: F.adaptive_avg_pool1d(x[:, :, 0], 3)[:, :, None], shape)


@pytest.mark.parametrize(
    "wanted", [1, (2, 3), (3, 2), (4, 5), (5, 4), (None, 1), (7, 9), 6, (6, None)]
)
def test_adaptive_average_pooling(wanted):
    shape = (2, 6, 7)
    affine = layers.adaptive_avg_pool2d(shape, wanted)
    assert_affine(affine, lambda x: F.adaptive_avg_pool2d(x, wanted), shape)


def test_adaptive_average_pooling_that_divides_is_pooling():
    window = layers.adaptive_avg_pool2d((2, 6, 9), (3, 3)).window
    assert window.is_shared
    assert (window.kernel_size, window.stride, window.padding) == ((2, 3), (2, 3), (0, 0))


def test_adaptive_average_pooling_to_a_larger_map():
    """6 rows to 7: row y is the average of rows y - 1 and y."""
    window = layers.adaptive_avg_pool2d((2, 6, 6), (7, 3)).window
    assert (window.kernel_size, window.stride, window.padding) == ((2, 2), (1, 2), (1, 0))


@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [
        ((3, 3), (2, 3), (0, -1)),
        ((6, 5), (1, 1), (1, 2)),
        ((2, 4), (1, 1), (-1, -2)),
        ((1, 1), (4, 4), (-2, 0)),
        ((4, 3), (3, 2), (3, 2)),
    ],
)
def test_strided(size, stride, padding):
    """Output y is pixel y * stride - padding, 0 outside."""
    shape = (2, 4, 6)
    affine = layers.strided(shape, size, stride, padding)

    def function(x):
        out = x.new_zeros(len(x), 2, *size)
        for y, z in itertools.product(*map(range, size)):
            row, column = y * stride[0] - padding[0], z * stride[1] - padding[1]
            if 0 <= row < 4 and 0 <= column < 6:
                out[:, :, y, z] = x[:, :, row, column]
        return out

    assert_affine(affine, function, shape)


# Compositions


def random_window(shape, kernel, out, groups=1, seed=0, classes=(1, 1), **geometry):
    """A window whose rows and columns take turns with the classes of kernels."""
    Ci, Co = shape[0] // groups, out[0] // groups
    rows, columns = (
        tuple(n % count for n in range(size)) for size, count in zip(out[1:], classes, strict=True)
    )
    given = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | geometry
    weights = integers((*classes, groups, *kernel, Ci, Co), seed)
    return Window(tuple(shape), weights, rows, columns, first_channel=0, channels=out[0], **given)


FIRST = {
    "plain": random_window((2, 5, 6), (3, 2), (4, 4, 6), padding=(1, 1)),
    "strided": random_window((2, 9, 9), (2, 3), (4, 4, 5), stride=(3, 2), padding=(1, 0)),
    "dilated": random_window((2, 7, 8), (2, 3), (4, 5, 5), dilation=(3, 2), padding=(1, 1)),
    "grouped": random_window((4, 4, 5), (1, 2), (4, 4, 5), groups=2),
    "depthwise": random_window((4, 4, 5), (2, 2), (4, 4, 5), groups=4, padding=(1, 0)),
    "unshared": random_window((2, 4, 5), (2, 1), (4, 4, 5), classes=(2, 3)),
    "one tap": random_window((2, 12, 9), (1, 1), (4, 4, 5), stride=(3, 2), dilation=(5, 7)),
    "placed": placed(random_window((2, 4, 5), (2, 2), (2, 4, 5), padding=(0, 1)), 1, 4),
}
SECOND = {
    "plain": lambda s: random_window(s, (2, 3), (2, 4, 4), seed=1, padding=(1, 1)),
    "strided": lambda s: random_window(s, (3, 2), (2, 2, 3), seed=1, stride=(2, 3), padding=(2, 1)),
    "dilated": lambda s: random_window(s, (2, 2), (2, 4, 3), seed=1, dilation=(2, 3)),
    "grouped": lambda s: random_window(s, (2, 1), (6, 3, 4), groups=2, seed=1),
    "depthwise": lambda s: random_window(s, (1, 2), (4, 4, 4), groups=4, seed=1, padding=(1, 0)),
    "unshared": lambda s: random_window(s, (2, 2), (2, 4, 4), seed=1, classes=(3, 2)),
    "one tap": lambda s: random_window(
        s, (1, 1), (2, 2, 2), seed=1, stride=(3, 2), dilation=(4, 6)
    ),
    "cut": lambda s: random_window(s, (2, 2), (2, 3, 4), seed=1, padding=(-1, -1)),
    "placed": lambda s: placed(random_window(s, (2, 1), (2, 3, 4), seed=1), 3, 7),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_composition_is_the_product_of_the_matrices(first, second):
    first = FIRST[first]
    second = SECOND[second](first.out_shape)
    expected = torch.tensordot(matrix_of(second), matrix_of(first), 3)
    assert torch.equal(matrix_of(compose(second, first)), expected)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        # (kernel, stride, dilation) of both, and kernel, stride, padding, dilation by hand.
        # The outer reads 6 rows apart, the inner 9: gcd 3; 6 + 2 * 9 rows are 8 steps, 9 taps.
        ((2, 1, 3), (3, 2, 9), (9, 2, 2 * 1 + 1, 3)),
        ((2, 2, 1), (2, 4, 2), (4, 8, 4 + 1, 2)),  # 4 apart and 2: 6 rows are 3 steps
        ((3, 1, 3), (1, 2, 5), (3, 2, 3, 6)),  # the inner has one tap: the outer's 6 apart
        ((1, 2, 5), (2, 3, 4), (2, 6, 4, 4)),  # the outer has one tap: the inner's
        ((1, 2, 5), (1, 3, 7), (1, 6, 4, 1)),  # both have one
        ((2, 1, 1), (2, 1, 1), (3, 1, 2, 1)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_taps_of_a_composition(axis, outer, inner, expected):
    """An axis of two windows that are padded by 1; the other axis has one pixel."""

    def window(given, size, out, seed):
        kernel, stride, dilation = given
        shape, outputs = [1, 1, 1], [1, 1, 1]
        shape[1 + axis], outputs[1 + axis] = size, out
        pairs = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "kernel": [1, 1]}
        values = {"stride": stride, "padding": 1, "dilation": dilation, "kernel": kernel}
        for name, value in values.items():
            pairs[name][axis] = value
        kernel = tuple(pairs.pop("kernel"))
        pairs = {name: tuple(pair) for name, pair in pairs.items()}
        return random_window(shape, kernel, outputs, seed=seed, **pairs)

    first, second = window(inner, 40, 8, 0), window(outer, 8, 2, 1)
    got = compose(second, first)
    found = (got.kernel_size, got.stride, got.padding, got.dilation)
    assert tuple(pair[axis] for pair in found) == expected
    assert tuple(pair[1 - axis] for pair in found) == (1, 1, 0, 1)
    matrix = torch.tensordot(matrix_of(second), matrix_of(first), 3)
    assert torch.equal(matrix_of(got), matrix)


def test_a_border_has_kernels_of_its_own_only_where_it_reads_something():
    """3 x 3 over 3 x 3, both padded by 1. At the border the outer taps beside the inner map are
    left out, although the inner window there would read pixels: top, inside, bottom."""
    window = random_window((1, 6, 6), (3, 3), (1, 6, 6), padding=(1, 1))
    got = compose(window, window)
    assert (got.rows, got.columns) == ((0, 1, 1, 1, 1, 2), (0, 1, 1, 1, 1, 2))
    # A scaling before it reads nothing beside the map: all positions have one kernel.
    assert compose(window, scale_window(torch.ones(1, 1, 1) * 2, (1, 6, 6))).is_shared
    # So has one of 2 x 2 without padding, of which nothing lies beside the map.
    whole = random_window((1, 6, 6), (2, 2), (1, 5, 5))
    assert compose(whole, window).is_shared


@pytest.mark.parametrize("size", [(6, 7), (5, 8)])
@pytest.mark.parametrize("stride", [(2, 3), (3, 2)])
def test_beside_a_map_of_every_other_pixel_nothing_is_read(size, stride):
    """A padded kernel over a shortcut of 1 x 1 with a stride is shared; over one that is padded
    itself, the rows beside the map would be pixels, or zeros, and it is not."""
    steps = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    first = random_window((1, *size), (1, 1), (1, *steps), stride=stride)
    second = random_window((1, *steps), (3, 3), (1, *steps), padding=(1, 1), seed=1)
    assert compose(second, first).is_shared
    reach = {"stride": stride, "padding": (1, 0), "dilation": (2, 3)}
    wide = random_window((1, *size), (3, 2), (1, *steps), **reach)
    for first in (random_window((1, *size), (2, 2), (1, *steps), **reach), wide):
        got = compose(second, first)
        expected = torch.tensordot(matrix_of(second), matrix_of(first), 3)
        assert torch.equal(matrix_of(got), expected)


def test_a_window_reads_some_channels_of_a_group():
    """Groups of 2 of 6 channels: the inner window writes channels 3 and 4, or 2 to 5."""
    outer = random_window((6, 2, 2), (1, 2), (9, 2, 1), groups=3, seed=1)
    for first, count in ((3, 2), (2, 4), (2, 2), (1, 1), (0, 6)):
        inner = placed(random_window((2, 2, 2), (1, 1), (count, 2, 2)), first, 6)
        got = compose(outer, inner)
        expected = torch.tensordot(matrix_of(outer), matrix_of(inner), 3)
        assert torch.equal(matrix_of(got), expected)
    # Whole groups stay groups.
    inner = placed(random_window((4, 2, 2), (1, 1), (4, 2, 2), groups=2), 2, 6)
    got = compose(outer, inner)
    assert (got.groups, got.first_channel, got.own_channels, got.channels) == (2, 3, 6, 9)


def test_groups_of_a_composition():
    """4 and 6 groups over 12 channels are 2 of both; a scaling keeps the other's."""
    four = random_window((12, 1, 1), (1, 1), (12, 1, 1), groups=4)
    six = random_window((12, 1, 1), (1, 1), (12, 1, 1), groups=6, seed=1)
    scale = random_window((12, 1, 1), (1, 1), (12, 1, 1), groups=12, seed=2)
    cases = (((four, six), 2), ((six, four), 2), ((four, scale), 4), ((scale, six), 6))
    for (second, first), groups in cases:
        got = compose(second, first)
        assert got.groups == groups
        expected = torch.tensordot(matrix_of(second), matrix_of(first), 3)
        assert torch.equal(matrix_of(got), expected)


# Sums


def test_a_sum_of_windows_by_hand():
    """A kernel of 3 x 3 taps and the pixel itself: the tap in the middle."""
    wide = random_window((2, 4, 5), (3, 3), (2, 4, 5), padding=(1, 1))
    got = merge(wide, random_window((2, 4, 5), (1, 1), (2, 4, 5), seed=1))
    middle = wide.kernel.clone()
    middle[:, :, :, 1, 1] += integers((1, 1, 1, 2, 2), 1)
    assert torch.equal(got.kernel, middle)
    assert (got.padding, got.dilation, got.stride) == ((1, 1), (1, 1), (1, 1))


PARTS = {
    "middle": {"kernel": (1, 1)},
    "three": {"kernel": (3, 3), "padding": (1, 1)},
    "corners": {"kernel": (2, 2), "padding": (1, 1), "dilation": (2, 2)},
    "below": {"kernel": (2, 1)},
    "far": {"kernel": (2, 2), "padding": (2, 4), "dilation": (4, 8)},
    "depthwise": {"kernel": (3, 3), "padding": (1, 1), "groups": 4},
    "grouped": {"kernel": (3, 2), "padding": (1, 0), "groups": 2},
    "borders": {"kernel": (3, 3), "padding": (1, 1), "classes": (2, 3)},
    "outside": {"kernel": (1, 1), "padding": (-1, -2)},
}


@pytest.mark.parametrize("pair", list(itertools.product(PARTS, PARTS)))
def test_sums_of_windows(pair):
    """A sum is that of the matrices, and stores no more than its parts; else there is none."""
    a, b = (
        random_window((4, 6, 7), out=(4, 6, 7), seed=n, **PARTS[name])
        for n, name in enumerate(pair)
    )
    got = merge(a, b)
    if got is None:
        assert pair[0] != pair[1]
        return
    assert torch.equal(matrix_of(got), matrix_of(a) + matrix_of(b))
    assert got.kernel.numel() <= a.kernel.numel() + b.kernel.numel()


def test_what_sums_of_windows_store():
    """Taps 1 and 9 apart would be ten; corners two apart and the middle are five times five."""
    parts = {name: random_window((4, 6, 7), out=(4, 6, 7), **p) for name, p in PARTS.items()}
    assert merge(parts["three"], parts["middle"]).kernel_size == (3, 3)
    assert merge(parts["middle"], parts["three"]).kernel_size == (3, 3)
    assert merge(parts["corners"], parts["three"]).kernel_size == (3, 3)
    same = merge(parts["corners"], parts["corners"])
    assert (same.kernel_size, same.dilation) == ((2, 2), (2, 2))
    assert merge(parts["far"], parts["middle"]) is None  # 2 x 2 taps and one are 3 x 3
    assert merge(parts["depthwise"], parts["three"]).groups == 1
    line = random_window((1, 1, 9), (1, 2), (1, 1, 9), padding=(0, 4), dilation=(1, 8))
    tap = random_window((1, 1, 9), (1, 1), (1, 1, 9))
    both = merge(line, tap)  # of -4, 4 and 0: three taps, as many as the two have
    assert (both.kernel_size, both.padding, both.dilation) == ((1, 3), (0, 4), (1, 4))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_tap_before_and_taps_behind_are_one_window(axis):
    """Tap -1 and taps 0 and 1 are three; -3 and 0, 3 are three, three apart."""
    for apart in (1, 3):
        before, pair, steps, size = [0, 0], [1, 1], [1, 1], [1, 9, 9]
        before[axis], pair[axis], steps[axis] = apart, 2, apart
        one = random_window(size, (1, 1), size, padding=tuple(before))
        two = random_window(size, tuple(pair), size, dilation=tuple(steps), seed=1)
        for got in (merge(one, two), merge(two, one)):
            assert (got.kernel_size[axis], got.padding[axis], got.dilation[axis]) == (
                3,
                apart,
                apart,
            )
            assert got.kernel_size[1 - axis] == 1
            assert torch.equal(matrix_of(got), matrix_of(one) + matrix_of(two))


def test_windows_on_other_maps_are_not_added():
    a = random_window((4, 6, 6), (1, 1), (4, 6, 6))
    assert merge(a, a) is not None
    for other in (
        random_window((2, 6, 6), (1, 1), (4, 6, 6)),
        random_window((4, 6, 6), (1, 1), (4, 6, 5)),
        random_window((4, 6, 6), (1, 1), (4, 6, 6), stride=(1, 2)),
        placed(random_window((4, 6, 6), (1, 1), (2, 6, 6)), 0, 4),
    ):
        assert merge(a, other) is None
    half = random_window((4, 6, 6), (1, 1), (2, 6, 6))
    assert merge(placed(half, 0, 4), placed(half, 2, 4)) is None
    assert merge(placed(half, 1, 4), placed(half, 1, 4)).first_channel == 1


# Channels


def test_a_window_in_a_wider_map():
    window = random_window((2, 3, 3), (2, 2), (3, 2, 2))
    wider = placed(placed(window, 1, 5), 2, 9)
    assert (wider.first_channel, wider.channels, wider.own_range) == (3, 9, range(3, 6))
    assert wider.own_channels == 3
    expected = torch.zeros(9, 2, 2, 2, 3, 3, dtype=torch.float64)
    expected[3:6] = matrix_of(window)
    assert torch.equal(matrix_of(wider), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "channels",
    [[2, 3, 4, 5], [5, 2], [0, 3, 3, 1], [-1, 2, 3, 4, 5, -1], [3, -1, 4], [4], [1, 5, 0]],
)
def test_channels_of_a_window(channels, groups):
    """The window writes channels 2 to 5 of 6."""
    window = placed(random_window((2, 3, 3), (2, 1), (4, 2, 3), groups=groups), 2, 6)
    expected = torch.cat((matrix_of(window), torch.zeros(1, 2, 3, 2, 3, 3)))[channels]
    got = reindexed(window, channels)
    assert torch.equal(matrix_of(got), expected)
    # As long as its channels stay side by side, the kernel is the same.
    assert (got.kernel is window.kernel) == ([c for c in channels if c >= 2] == [2, 3, 4, 5])
    used = [n for n, c in enumerate(channels) if c >= 2]
    assert got.own_range == range(used[0], used[-1] + 1)


def test_other_channels_of_a_window():
    window = placed(random_window((2, 3, 3), (2, 1), (2, 2, 3)), 2, 6)
    assert reindexed(window, [0, 1, -1, 4, 5]) is None


def test_factors():
    window = random_window((2, 3, 3), (2, 2), (3, 2, 2))
    assert torch.equal(matrix_of(scaled(window, -3.0)), -3 * matrix_of(window))
    ones = matrix_of(identity_window((2, 3, 4))).view(24, 24)
    assert torch.equal(ones, torch.eye(24, dtype=torch.float64))
    scale = integers((1, 3, 1))  # one for all channels
    diagonal = torch.diag(scale.expand(2, 3, 4).flatten())
    assert torch.equal(matrix_of(scale_window(scale, (2, 3, 4))).view(24, 24), diagonal)


# What a window is


def test_what_a_window_is():
    depthwise = random_window((4, 3, 3), (1, 1), (4, 3, 3), groups=4)
    assert depthwise.is_one_to_one
    assert depthwise.is_depthwise
    assert depthwise.is_shared
    assert not depthwise.reads_the_whole_map
    for other in (
        replace(depthwise, stride=(1, 2)),
        replace(depthwise, padding=(0, -1)),
        replace(depthwise, rows=(0, 0)),
        random_window((4, 3, 3), (1, 2), (4, 3, 3), groups=4),
        random_window((4, 3, 3), (1, 1), (4, 3, 3), groups=2),
        random_window((2, 3, 3), (1, 1), (4, 3, 3), groups=2),
    ):
        assert not other.is_one_to_one
    assert not random_window((2, 3, 3), (1, 1), (4, 3, 3), groups=2).is_depthwise
    assert not random_window((4, 3, 3), (1, 1), (2, 3, 3), groups=2).is_depthwise
    assert not replace(
        depthwise, kernel=depthwise.kernel.expand(2, -1, -1, -1, -1, -1, -1)
    ).is_shared
    assert not replace(
        depthwise, kernel=depthwise.kernel.expand(-1, 2, -1, -1, -1, -1, -1)
    ).is_shared


def test_what_reads_the_whole_map():
    whole = random_window((2, 3, 4), (3, 4), (5, 1, 1))
    assert whole.reads_the_whole_map
    assert not whole.averages_the_whole_map
    for other in (
        replace(whole, padding=(1, 0)),
        replace(whole, dilation=(1, 2)),
        replace(whole, rows=(0, 0)),
        replace(whole, columns=(0, 0)),
        random_window((2, 3, 4), (3, 3), (5, 1, 1)),
        random_window((2, 3, 4), (2, 4), (5, 1, 1)),
    ):
        assert not other.reads_the_whole_map
    ones = replace(whole, kernel=torch.ones_like(whole.kernel))
    assert ones.averages_the_whole_map
    assert replace(ones, kernel=ones.kernel * integers((2, 5))).averages_the_whole_map
    for last in itertools.product((0, 2), (0, 3), (0, 1), (0, 4)):
        kernel = ones.kernel.clone()
        kernel[(0, 0, 0, *last)] = 2
        assert not replace(ones, kernel=kernel).averages_the_whole_map
    assert not replace(ones, padding=(0, 1)).averages_the_whole_map
    line = random_window((2, 1, 2), (1, 2), (5, 1, 1))
    assert replace(line, kernel=torch.ones_like(line.kernel)).averages_the_whole_map
    # One pixel is not averaged.
    assert not random_window((2, 1, 1), (1, 1), (2, 1, 1)).averages_the_whole_map


def test_a_kernel_that_all_positions_share():
    kernel = integers((2, 3, 2, 1, 4))
    window = conv_window(kernel, [2, 5, 5], (3, 2), (2, 1), (1, 0), (1, 3))
    assert (window.rows, window.columns) == ((0, 0, 0), (0, 0))
    assert (window.channels, window.own_channels, window.first_channel) == (8, 8, 0)
    assert (window.in_shape, window.out_shape) == ((2, 5, 5), (8, 3, 2))
    assert (window.stride, window.padding, window.dilation) == ((2, 1), (1, 0), (1, 3))
    plain = conv_window(kernel, (2, 5, 5), (3, 4))
    assert (plain.stride, plain.padding, plain.dilation) == ((1, 1), (0, 0), (1, 1))
