"""The convolution on matrix units: its kernel, in the interpreter and on a GPU, against float64
and, where sums are exact, against the bits of the gather; and when it is taken.

test_unshared_matmul_compiled.py looks at what the compiler makes of the kernel.
"""

import itertools

import pytest
import torch
from helpers import (
    as_pair,
    assert_within,
    binary,
    examples,
    generator,
    grid,
    normal,
    unshared_conv_by_hand,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_units import H200, products_of_bfloat16

import realspike_ops as rso
from realspike_ops.functional.conv_geometry import geometry_of
from realspike_ops.ops import unshared_conv, unshared_matmul
from realspike_ops.ops.unshared_matmul import Sizes, Tile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With a card the compiled kernel runs, under `make gpu`; without one the interpreter does.
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True, scope="module")
def interpreter():
    with products_of_bfloat16():
        yield


FLOATS = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.uint8]
forward = unshared_conv.forward_with(unshared_matmul.launch)


def products(spikes, weight, bias=None, scale=None, *, stride=1, padding=0, dilation=1, tile=None):
    """Call the kernel on float or packed spikes; the currents are back on the CPU."""
    size = spikes.shape[1:3] if spikes.dtype == torch.int32 else spikes.shape[2:]
    geometry, output = geometry_of(*size, *weight.shape[3:5], stride, padding, dilation)
    channels_last = spikes.dtype == torch.int32
    tensors = [None if t is None else t.to(DEVICE) for t in (spikes, weight, bias, None, scale)]
    run = forward
    if tile is not None:
        run = unshared_conv.forward_with(lambda given: unshared_matmul.launch(given, tile))
    out, _ = run(*tensors, output, *geometry, channels_last, False)
    return out.cpu()


def stored(values: torch.Tensor, dtype) -> torch.Tensor:
    """Store whole numbers: every sum of them is exact, in any order."""
    return (values + 128).to(torch.uint8) if dtype == torch.uint8 else values.to(dtype)


def whole(shape, seed: int) -> torch.Tensor:
    return torch.randint(-100, 101, shape, generator=generator(seed)).float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_by_hand(dtype):
    """Two samples, two channels to three, on a line of three pixels under a kernel of two taps."""
    spikes = torch.tensor([[[[1, 0, 1]], [[0, 0, 1]]], [[[0, 1, 0]], [[1, 1, 0]]]]).float()
    first = [[[1, 2, 3], [10, 20, 30]], [[4, 5, 6], [40, 50, 60]]]  # [tap][channel][output]
    second = [[[-1, 0, 1], [7, 7, 7]], [[2, 2, 2], [0, 9, 0]]]
    weight = torch.tensor([first, second]).float().view(1, 2, 1, 1, 2, 2, 3)
    bias = torch.tensor([0.5, 0.0, -1.0])
    out = products(spikes, stored(weight, dtype), bias)
    # Position 0 sees pixels 0 and 1, position 1 sees pixels 1 and 2.
    at_0 = [[1.5, 2.0, 2.0], [10 + 4 + 40 + 0.5, 20 + 5 + 50, 30 + 6 + 60 - 1]]
    at_1 = [[2 + 0 + 0.5, 2 + 9, 2 + 0 - 1], [-1 + 7 + 0.5, 0 + 7, 1 + 7 - 1]]
    assert torch.equal(out[:, :, 0, 0], torch.tensor(at_0))
    assert torch.equal(out[:, :, 0, 1], torch.tensor(at_1))


@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_spike_alone_selects_the_bits_of_its_row(dtype, shared):
    """Each of 40 channels fires in one sample: no bit of a weight is lost, whatever its size."""
    size = 1 if shared else 2
    if dtype == torch.uint8:
        weight = torch.arange(size * 40 * 17).remainder(256).to(torch.uint8)
        row = weight.float() - 128
    else:
        # bfloat16 reaches down to 2^-133, 23 bits below 2^-110.
        smallest = {torch.float32: 2.0**-110, torch.float16: 2.0**-14, torch.bfloat16: 2.0**-126}
        scales = torch.tensor([smallest[dtype], 1.0, 1 / 3, 1e4])[torch.arange(size * 40 * 17) % 4]
        significand = 1 + torch.rand(size * 40 * 17, generator=generator(1))
        weight = (normal((size * 40 * 17,), 2).sign() * significand * scales).to(dtype)
        row = weight.float()
    weight, row = weight.view(1, size, 1, 1, 1, 40, 17), row.view(size, 40, 17)
    spikes = torch.eye(40)[:, :, None, None].expand(40, 40, 1, 2)
    out = products(spikes, weight)
    assert torch.equal(out[:, :, 0, :], row.expand(2, 40, 17).permute(1, 2, 0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_last_bit_of_every_float32_term_counts(dtype):
    significand = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    value = 1 + 2.0 ** (1 - significand)  # the first and the last bit
    all_ones = 2 - 2.0 ** (1 - significand)
    weight = torch.tensor([value, -value, all_ones, -all_ones, 2.0**-100, 0.0]).to(dtype)
    out = products(torch.ones(1, 1, 1, 1), weight.view(1, 1, 1, 1, 1, 1, 6))
    assert torch.equal(out.flatten(), weight.float())


def test_spare_bits_select_nothing():
    """Bits beyond the last channel, and those of other groups in the same word."""
    weight = stored(whole((2, 2, 2, 1, 1, 5, 18), 1), torch.uint8)
    spikes = binary((3, 10, 2, 2), 2)
    words = rso.pack_spikes(spikes)
    assert words.shape[-1] == 1
    expected = rso.unshared_spike_conv(words, weight, check_binary=False)
    found = products(words | (-1 << 10), weight)
    assert torch.equal(found, expected)
    assert torch.equal(products(words, weight), expected)


def test_taps_outside_the_map_read_no_weight():
    weight = whole((3, 3, 1, 3, 3, 4, 16), 1)
    for position, tap in itertools.product(itertools.product(range(3), repeat=2), repeat=2):
        if any(p + t - 1 not in range(3) for p, t in zip(position, tap, strict=True)):
            weight[(*position, 0, *tap)] = float("nan")
    spikes = torch.ones(2, 4, 3, 3)
    found = products(spikes, weight, padding=1)
    assert torch.equal(found, rso.unshared_spike_conv(spikes, weight.nan_to_num(), padding=1))


@pytest.mark.parametrize("bias", ["channel", "element"])
@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geometry_groups_bias_and_scale(dtype, shared, bias):
    """A window without a symmetry, groups that share words: the bits of the gather."""
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    size = (3, 2) if not shared else (1, 1)
    values = whole((*size, 3, 2, 3, 13, 5), 1)
    weight, scale = stored(values, dtype), None
    if dtype == torch.uint8:
        scale = torch.rand(15, generator=generator(2)) + 0.5
    bias = whole((15, *((3, 2) if bias == "element" else ())), 3)
    spikes = binary((3, 39, 4, 2), 4)
    expected = rso.unshared_spike_conv(spikes, weight, bias, scale=scale, **geometry)
    assert expected.shape[2:] == (3, 2)
    assert torch.equal(products(spikes, weight, bias, scale, **geometry), expected)


@pytest.mark.parametrize("shared", [False, True], ids=["unshared", "shared"])
def test_tiles_cover_all_rows_and_columns(shared):
    weight = whole((1, 1 if shared else 2, 1, 1, 1, 3, 33), 1)
    spikes = binary((35, 3, 1, 2), 2)
    expected = rso.unshared_spike_conv(spikes, weight)
    for tile in (Tile(16, 16, 4, 2), Tile(32, 64, 4, 2)):
        assert torch.equal(products(spikes, weight, tile=tile), expected)


def output_size(size, kernel_size, geometry):
    return geometry_of(*size, *kernel_size, *geometry.values())[1]


@st.composite
def cases(draw):
    kernel_size = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (3, 2)]))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    size = tuple(
        max(1, r - 2 * p) + draw(st.integers(0, 1))
        for r, p in zip(reach, as_pair(padding), strict=True)
    )
    return {
        "size": size,
        "kernel_size": kernel_size,
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation},
        "Cin_g": draw(st.sampled_from([1, 5, 31, 32, 33, 40])),
        "Cout_g": draw(st.sampled_from([1, 16, 17, 33])),
        "groups": draw(st.sampled_from([1, 1, 2])),
        "N": draw(st.sampled_from([1, 5, 17, 33])),
        "rate": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "shared": draw(st.booleans()),
        "bias": draw(st.sampled_from([None, "channel", "element"])),
        "scaled": draw(st.booleans()),
        "packed": draw(st.booleans()),
        "tile": draw(st.sampled_from([None, Tile(16, 32, 4, 2)])),
        "seed": draw(st.integers(0, 2**20)),
    }


@settings(max_examples=examples(40))
@given(case=cases())
def test_sweep(case):
    dtype, geometry, seed = case["dtype"], case["geometry"], case["seed"]
    size = output_size(case["size"], case["kernel_size"], geometry)
    G, Cin_g, Cout_g = case["groups"], case["Cin_g"], case["Cout_g"]
    own = (1, 1) if case["shared"] else size
    shape = (*own, G, *case["kernel_size"], Cin_g, Cout_g)
    spikes = binary((case["N"], G * Cin_g, *case["size"]), seed, case["rate"])
    scale = bias = None
    if case["bias"] is not None:
        bias = normal((G * Cout_g, *(size if case["bias"] == "element" else ())), seed + 1)
    if dtype == torch.uint8:
        weight = torch.randint(0, 256, shape, generator=generator(seed + 2)).to(torch.uint8)
        if case["scaled"]:
            scale = torch.rand(G * Cout_g, generator=generator(seed + 3)) + 0.5
    else:
        weight = normal(shape, seed + 2).to(dtype)
    shown = rso.pack_spikes(spikes) if case["packed"] else spikes
    found = products(shown, weight, bias, scale, **geometry, tile=case["tile"])
    # The same bits as the gather's: of int8 sums always, of floats where the sums are exact.
    if dtype == torch.uint8:
        exact = rso.unshared_spike_conv(spikes, weight, bias, scale=scale, **geometry)
        assert torch.equal(found, exact)
        return
    values = weight.double().expand(*size, *shape[2:])
    expected, bound = unshared_conv_by_hand(spikes, values, bias, **geometry)
    # Three terms of a float32 weight are three summands. A card's matrix units cut sums off.
    bound = bound * (3 if dtype == torch.float32 else 1) * (2 if DEVICE == "cuda" else 1)
    assert_within(found, expected, bound, "out")
    on_grid = grid(shape, seed + 4).to(dtype)
    found = products(shown, on_grid, **geometry, tile=case["tile"])
    assert torch.equal(found, rso.unshared_spike_conv(spikes, on_grid, **geometry))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_currents_take_the_layout_that_is_asked(layout):
    """Poisoned memory: every element is written, none beyond."""
    weight = whole((2, 3, 1, 2, 2, 33, 19), 1)
    spikes = binary((18, 33, 3, 4), 2)
    expected = rso.unshared_spike_conv(spikes, weight)
    for shown in (spikes, rso.pack_spikes(spikes)):
        given = shown if layout == "contiguous" else shown.contiguous()
        assert torch.equal(products(given, weight), expected)


def test_large_sums_of_int8():
    for value in (-128, 127):
        weight = stored(torch.full((1, 1, 1, 3, 3, 300, 16), float(value)), torch.uint8)
        out = products(torch.ones(1, 300, 3, 3), weight)
        assert torch.equal(out, torch.full((1, 16, 1, 1), 2700.0 * value))


# --- when it is taken ---


WIDE = Sizes(torch.bfloat16, False, 64, 1024, 1, 9, 128, 128)
SHARED = WIDE._replace(shared=True)


@pytest.mark.parametrize(
    ("sizes", "tile", "programs"),
    [
        (WIDE, (64, 128, 4, 6), 1024),
        (WIDE._replace(samples=256), (64, 128, 4, 6), 4096),
        (WIDE._replace(samples=65), (64, 128, 4, 6), 2048),
        (WIDE._replace(samples=33), (64, 128, 4, 6), 1024),
        (WIDE._replace(samples=32), (32, 128, 4, 6), 1024),
        (WIDE._replace(samples=1), (16, 128, 4, 6), 1024),
        (WIDE._replace(Cout_g=129), (64, 128, 4, 6), 2048),
        (WIDE._replace(Cout_g=64), (64, 64, 4, 6), 1024),
        (WIDE._replace(Cout_g=1, groups=2), (64, 16, 4, 6), 2048),
        (WIDE._replace(positions=64), (32, 128, 4, 6), 128),
        (WIDE._replace(positions=16), (16, 128, 4, 6), 64),
        (WIDE._replace(dtype=torch.float32), (64, 128, 4, 4), 1024),
        (SHARED, (64, 128, 4, 6), 1024),
        (SHARED._replace(samples=4), (32, 128, 4, 6), 128),
        (SHARED._replace(samples=1, positions=1), (16, 128, 4, 6), 1),
        (SHARED._replace(samples=5, positions=21), (16, 128, 4, 6), 7),
    ],
)
def test_tiles_follow_from_sizes(sizes, tile, programs):
    found = unshared_matmul.tile_of(sizes)
    assert tuple(found) == tile
    assert unshared_matmul.programs(sizes, found.rows, found.columns) == programs


@pytest.mark.parametrize(
    ("sizes", "is_ahead"),
    [
        (WIDE, True),
        (WIDE._replace(samples=32), True),
        (WIDE._replace(samples=31), False),  # many rows of weights are not touched
        (WIDE._replace(dtype=torch.uint8, samples=32), True),
        (WIDE._replace(dtype=torch.float32, samples=64), True),
        (WIDE._replace(dtype=torch.float32, samples=63), False),
        (WIDE._replace(Cout_g=64, Cin_g=32), True),
        (WIDE._replace(Cout_g=63), False),
        (WIDE._replace(Cin_g=31), False),
        (WIDE._replace(Cin_g=1, Cout_g=1, groups=128), False),  # depthwise
        (SHARED._replace(samples=4), True),  # 4,096 rows
        (SHARED._replace(samples=4, positions=1023), False),
        (SHARED._replace(samples=4096, positions=1), True),  # a linear layer
        (SHARED._replace(samples=4095, positions=1), False),
    ],
)
def test_what_is_ahead_follows_from_sizes(sizes, is_ahead):
    assert unshared_matmul.is_ahead(sizes) is is_ahead


@pytest.mark.parametrize(
    ("capability", "sizes", "fits"),
    [
        (H200, WIDE, True),
        ((8, 0), WIDE, True),
        ((12, 0), WIDE, True),
        ((7, 5), WIDE, False),
        ((0, 0), WIDE, False),
        # 128 * 2^24 is the first sum beyond an int32.
        (H200, WIDE._replace(dtype=torch.uint8, taps=1, Cin_g=2**24 - 1), True),
        (H200, WIDE._replace(dtype=torch.uint8, taps=1, Cin_g=2**24), False),
        (H200, WIDE._replace(taps=1, Cin_g=2**24), True),
        (H200, WIDE._replace(Cout_g=(2**31 - 1) // 33, positions=1), True),
        (H200, WIDE._replace(Cout_g=(2**31 - 1) // 33 + 1, positions=1), False),
        (H200, WIDE._replace(samples=16, Cout_g=16, positions=2**31 - 1), True),
        (H200, WIDE._replace(samples=16, Cout_g=16, positions=2**31), False),
    ],
)
def test_what_fits_follows_from_sizes(capability, sizes, fits):
    assert unshared_matmul.fits(capability, sizes) is fits
