"""The CUDA kernels for one channel per group, executed on the CPU.

As in test_unshared_conv_simt.py: expected values in float64, and weights that no sample uses, or
whose taps lie outside the map, are NaN in what the kernel sees.
"""

import ctypes
import itertools

import pytest
import simt_conv as conv
import simt_kernels as simt
import torch
from test_unshared_conv_config_simt import DEFAULTS
from test_unshared_conv_simt import assert_within, expect, run_and_compare

pytestmark = [simt.needs_compiler, pytest.mark.usefixtures("one_thread")]

CHANNELS = (1, 31, 32, 33, 64, 70)
STORED = ("float32", "float16", "bfloat16", "int8", "int8-scaled")


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


def case(channels=33, **changes) -> conv.Case:
    return conv.Case(**{"cin": channels, "cout": channels, "groups": channels, **changes})


CASES = [
    # channels: idle lanes, several words; samples: partly filled tiles, several of them
    *(case(channels, samples=n) for channels in CHANNELS for n in (1, 7, 8, 9, 17)),
    *(
        case(channels, samples=n, tile=32, out=out, bias="element")
        for channels, n, out in ((1, 33, "nhwc"), (33, 31, "nchw"), (70, 70, "nchw"))
    ),
    # kernel, stride, padding and dilation; taps inside and outside
    *(
        case(kernel=(k, k), stride=(s, s), padding=(p, p), dilation=(d, d), size=(9, 10))
        for k, s, p, d in itertools.product((1, 3, 5), (1, 2), (0, 1, 2), (1, 2))
        if (k, d) != (1, 2)
    ),
    *(
        case(40, tile=tile, **sizes)
        for tile in (8, 32)
        for sizes in (
            {"kernel": (3, 1), "padding": (1, 0), "size": (3, 7)},
            {"kernel": (1, 5), "padding": (0, 2), "size": (7, 3)},
            {
                **{"kernel": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
                "size": (5, 8),
            },
            {
                **{"kernel": (3, 2), "stride": (1, 3), "padding": (2, 1), "dilation": (2, 1)},
                "size": (6, 7),
            },
            {"kernel": (5, 5), "padding": (2, 2), "size": (1, 1)},  # most taps lie outside
            {"kernel": (1, 1), "padding": (2, 2), "size": (2, 2)},  # border positions read nothing
            {"kernel": (2, 2), "padding": (5, 5), "size": (2, 3)},  # whole blocks do
        )
    ),
    # a window of several stages: 64 pixels (tile of 32 samples), 256 (of 8)
    case(5, kernel=(9, 10), size=(10, 12), samples=2, tile=32),
    case(5, kernel=(17, 17), size=(18, 17), samples=2, tile=8),
    case(3, kernel=(7, 3), stride=(1, 3), dilation=(1, 9), size=(8, 50), samples=2, tile=32),
    case(3, kernel=(70, 1), padding=(0, 0), size=(71, 1), samples=1, tile=32),
    case(3, kernel=(1, 300), padding=(0, 0), size=(1, 305), samples=1, tile=8),
    # one to eight positions of a block, and more of a row
    *(
        case(size=(2, width), samples=9, tile=tile, out=out, bias="element")
        for width in (1, 2, 3, 4, 5, 8, 9, 17)
        for tile in (8, 32)
        for out in ("nchw", "nhwc")
    ),
    # rates
    *(case(65, samples=9, rate=rate, tile=tile) for rate in (0.0, 0.05, 1.0) for tile in (8, 32)),
    # layouts, biases and types of weights
    *(
        case(34, bias=bias, out=out, shared=shared, samples=4, weight=weight)
        for bias in ("none", "channel", "element")
        for out in ("nchw", "nhwc")
        for shared in (False, True)
        for weight in STORED
    ),
    *(case(70, samples=35, tile=32, weight=weight, bias="channel") for weight in STORED),
    *(case(33, samples=3, weight=w, rate=r) for w in ("int8", "int8-scaled") for r in (0.0, 1.0)),
    # fewer blocks than tiles: a block works on several, one after the other
    *(
        case(70, samples=17, blocks=blocks, tile=8, bias="element", out=out, weight=weight)
        for blocks in (1, 7)
        for out in ("nchw", "nhwc")
        for weight in ("float32", "int8-scaled")
    ),
    case(70, samples=65, blocks=3, tile=32, bias="element"),
    case(3, kernel=(9, 10), size=(10, 12), samples=2, tile=32, blocks=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_depthwise_equals_float64(lib, case):
    run_and_compare(lib, case)


@pytest.mark.parametrize("tile", [8, 32])
@pytest.mark.parametrize("channel", [0, 31, 32, 69])
@pytest.mark.parametrize("corner", ["top-left", "bottom-right"])
def test_depthwise_of_a_single_spike(lib, corner, channel, tile):
    single = case(70, samples=10, tile=tile)
    spikes = torch.zeros(10, 70, *single.size)
    h, w = (0, 0) if corner == "top-left" else (-1, -1)
    spikes[9, channel, h, w] = 1
    run_and_compare(lib, single, spikes)


def test_depthwise_of_bits_beyond_the_last_channel(lib, monkeypatch):
    """They select weights of other positions, or behind the last; nobody reads them."""
    dirty = case(35, samples=3, bias="channel")
    spikes, weight, bias = conv.make_inputs(dirty)
    expected = conv.call(lib, dirty, spikes, weight, bias)
    pack = simt.pack

    def pack_all_ones(spikes):
        words = pack(spikes)
        words[..., 1] |= ~0 << 3
        return words

    monkeypatch.setattr(simt, "pack", pack_all_ones)
    assert torch.equal(conv.call(lib, dirty, spikes, weight, bias), expected)


@pytest.mark.parametrize(("samples", "kernel"), [(0, 3), (3, 0)])
def test_depthwise_of_nothing(lib, samples, kernel):
    empty = case(4, samples=samples, kernel=(kernel, kernel), bias="channel")
    OH, OW = empty.out_size
    spikes = torch.ones(samples, 4, *empty.size)
    weight = torch.zeros(OH, OW, 4, kernel, kernel, 1, 1)
    bias = torch.randn(4)
    out = conv.call(lib, empty, spikes, weight, bias)
    expected = bias.view(-1, 1, 1).expand_as(out)
    assert torch.equal(out, expected if kernel == 0 else torch.empty_like(out))


@pytest.mark.parametrize("tile", [8, 32])
def test_depthwise_of_more_than_2_to_31_weights(lib, tile):
    far_case = case(33, kernel=(1, 1), padding=(0, 0), size=(1, 3), tile=tile)
    spikes, weight, bias = conv.make_inputs(far_case)
    far = simt.far_apart(weight, dim=1, stride=2**31 + 16)
    expected, bound, _ = expect(far_case, spikes, weight, bias)
    assert_within(conv.call(lib, far_case, spikes, far, bias), expected, bound)


DEPTHWISE = {**DEFAULTS, "G": 128, "Cin_g": 1, "Cout_g": 1, "words": 4}


def config_of(lib, **sizes) -> dict:
    params = simt.UnsharedConvParams(**{**DEPTHWISE, **sizes})
    values = (ctypes.c_int64 * 5)()
    lib.unshared_conv_simt_depthwise_config(ctypes.byref(params), values)
    names = "sample_tile warps sample_tiles column_tiles blocks"
    return dict(zip(names.split(), values, strict=True))


def test_config_of_many_samples(lib):
    assert config_of(lib, N=64) == {
        **{"sample_tile": 32, "warps": 8, "sample_tiles": 2, "column_tiles": 4},
        "blocks": 2 * 4 * 4 * 32,
    }


@pytest.mark.parametrize("sizes", [{"N": 16}, {"N": 64, "OH": 8, "OW": 8}], ids=str)
def test_config_of_few_samples_or_blocks(lib, sizes):
    assert config_of(lib, **sizes)["sample_tile"] == 8


@pytest.mark.parametrize(("width", "warps"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 8)])
def test_config_of_a_narrow_map(lib, width, warps):
    config = config_of(lib, OW=width)
    assert (config["warps"], config["column_tiles"]) == (warps, -(-width // warps))


@pytest.mark.parametrize("empty", ["N", "words", "OH", "OW"])
def test_config_of_nothing(lib, empty):
    assert config_of(lib, **{empty: 0})["blocks"] == 0


def test_config_counts_blocks_beyond_32_bits(lib):
    assert config_of(lib, N=10**5, OH=1000, OW=1000)["blocks"] == 3125 * 4 * 125 * 1000


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ({}, True),
        ({"H": 2**26, "W": 4, "words": 4}, True),
        ({"H": 2**27, "W": 4, "words": 4}, False),
        ({"H": 1, "W": 2**26, "words": 1}, False),
        ({"KH": 2**16, "KW": 2**15}, False),
        ({"padding_h": 2**31}, False),
        ({"dilation_w": 2**30}, False),
        ({"stride_h": 2**27}, False),
    ],
    ids=str,
)
def test_sizes_that_an_int_cannot_hold(lib, sizes, fits):
    params = {**DEPTHWISE, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1}
    params = simt.UnsharedConvParams(**{**params, **sizes})
    assert lib.unshared_conv_simt_depthwise_fits(ctypes.byref(params)) == fits
