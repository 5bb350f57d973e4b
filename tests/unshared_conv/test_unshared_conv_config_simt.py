"""How the launches of the CUDA convolution are chosen: pure functions of the sizes."""

import ctypes
import itertools

import pytest
import simt_kernels as simt

pytestmark = simt.needs_compiler


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


DEFAULTS = {
    **{"N": 4, "H": 32, "W": 32, "OH": 32, "OW": 32, "G": 1, "KH": 3, "KW": 3},
    **{"Cin_g": 128, "Cout_g": 128},
}


def config_of(lib, weight=4096, **sizes) -> dict:
    params = simt.UnsharedConvParams(**{**DEFAULTS, **sizes}, weight=weight)
    values = (ctypes.c_int64 * 13)()
    lib.unshared_conv_simt_config(ctypes.byref(params), values)
    names = "vec sample_tile lanes threads splits shared_bytes sample_tiles channel_tiles blocks"
    names += " staged stream_samples shares keep_rows"
    return dict(zip(names.split(), values, strict=True))


def warps_of(config: dict) -> int:
    return config["blocks"] * config["threads"] // 32


FLOAT32, BFLOAT16, INT8 = 0, 2, 3


def test_config_of_a_wide_layer(lib):
    assert config_of(lib, weight_dtype=BFLOAT16) == {
        "vec": 4,
        # A warp for each sample.
        "sample_tile": 4,
        "lanes": 32,
        "shares": 1,
        "threads": 128,
        "splits": 1,
        # For each warp a list of the rows of 32 words, and room to fill up the last group.
        "shared_bytes": 4 * (4 * 32 * 32 + 4 * 16),
        "sample_tiles": 1,
        "channel_tiles": 1,
        "blocks": 1024,
        "staged": 0,
        "stream_samples": 0,
        "keep_rows": 0,
    }


def test_config_of_float32_has_more_warps(lib):
    config = config_of(lib)
    assert (config["sample_tile"], config["shares"], config["threads"]) == (4, 2, 256)
    assert warps_of(config) == 8192


def test_config_of_more_samples_cuts_the_rows_and_keeps_them(lib):
    config = config_of(lib, N=16)
    assert (config["lanes"], config["sample_tile"], config["threads"]) == (16, 16, 256)
    assert (config["keep_rows"], config["channel_tiles"]) == (1, 2)
    # Rows of up to 256 bytes are not cut; bytes are kept for more samples than these.
    for weight_dtype, keep_rows in ((BFLOAT16, 1), (INT8, 0)):
        config = config_of(lib, N=16, weight_dtype=weight_dtype)
        assert (config["lanes"], config["sample_tile"], config["threads"]) == (32, 4, 128)
        assert config["keep_rows"] == keep_rows


def test_config_of_many_samples_stages_rows_of_float32(lib):
    config = config_of(lib, N=64)
    assert (config["staged"], config["lanes"], config["threads"]) == (1, 32, 256)
    # 8 streams of 8 samples each; two stages of 32 rows of 512 bytes, and of one of zeros.
    assert (config["sample_tile"], config["shared_bytes"], config["blocks"]) == (64, 33792, 1024)
    assert config_of(lib, N=33)["staged"]
    for narrower in ({"N": 32}, {"weight_dtype": BFLOAT16}, {"weight_dtype": INT8}):
        assert not config_of(lib, **{"N": 64, **narrower})["staged"]


def test_config_of_many_samples_stages_very_narrow_rows(lib):
    for weight_dtype in (FLOAT32, BFLOAT16, INT8):
        config = config_of(lib, N=64, Cout_g=16, weight_dtype=weight_dtype)
        assert (config["staged"], config["lanes"], config["threads"]) == (1, 4, 64)
        assert config["sample_tile"] == 64
        # 16-bit lanes take half as much.
        assert config["shared_bytes"] == (2112 if weight_dtype == INT8 else 4224)
        for cout in (8, 32):
            assert not config_of(lib, N=64, Cout_g=cout, weight_dtype=weight_dtype)["staged"]


def test_config_that_stages_in_the_tests_of_values(lib):
    """test_unshared_conv_simt.py has cases of these sizes that leave the choice to the launcher."""
    assert config_of(lib, N=33, OH=14, OW=14, Cin_g=33, Cout_g=16)["staged"]
    sizes = {"N": 33, "OH": 11, "OW": 12, "G": 2, "Cin_g": 10, "Cout_g": 16}
    assert config_of(lib, **sizes, weight_dtype=INT8)["staged"]


@pytest.mark.parametrize(
    "sizes",
    [{"N": 32}, {"Cout_g": 130}, {"OH": 1, "OW": 1}],
    ids=("few-samples", "unaligned", "one-position"),
)
def test_config_that_lists(lib, sizes):
    assert not config_of(lib, **{"N": 64, **sizes})["staged"]


def test_config_of_few_positions_shares_the_receptive_field(lib):
    config = config_of(lib, OH=8, OW=8, Cin_g=512, Cout_g=512, weight_dtype=BFLOAT16)
    # Of 256 threads; other samples give way.
    assert (config["sample_tile"], config["shares"], config["threads"]) == (2, 4, 256)
    assert (config["splits"], config["channel_tiles"], warps_of(config)) == (1, 4, 4096)


def test_config_of_one_position_cuts_the_rows_and_splits_the_receptive_field(lib):
    config = config_of(lib, N=1, OH=1, OW=1, KH=1, KW=1, Cin_g=4096, Cout_g=256)
    # 8 tiles of 32 channels; 128 words are two for each of 32 shares of two blocks.
    assert (config["channel_tiles"], config["lanes"], config["shares"]) == (8, 8, 32)
    assert (config["splits"], config["blocks"]) == (2, 16)


def test_config_of_a_narrow_layer_shares_the_warp(lib):
    config = config_of(lib, Cin_g=16, Cout_g=16, N=4)
    # 4 lanes hold a row of 16 channels; 9 words are two for each of four shares.
    assert (config["lanes"], config["threads"], config["sample_tile"]) == (4, 64, 4)
    assert (config["shares"], config["blocks"]) == (4, 1024)


@pytest.mark.parametrize(
    "sizes",
    [{"Cout_g": 130}, {"weight": 4100}, {"weight_stride_p": 4097}],
    ids=("channels", "pointer", "stride"),
)
def test_config_of_unaligned_rows_reads_single_weights(lib, sizes):
    assert config_of(lib, **sizes)["vec"] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 16, 17, 1000])
@pytest.mark.parametrize("cout", [1, 3, 4, 20, 64, 128, 132, 2048])
@pytest.mark.parametrize("cin", [1, 33, 512])
def test_config_covers_all_outputs_and_fits(lib, n, cout, cin):
    for size, groups in itertools.product((1, 4, 56), (1, 3)):
        config = config_of(lib, N=n, Cin_g=cin, Cout_g=cout, OH=size, OW=size, G=groups)
        streams = config["threads"] // config["lanes"]
        shares = config["shares"]
        if config["staged"]:
            # A stage has 32 rows, of which each thread brings up to four.
            assert n > 32
            assert streams >= 8
            assert config["lanes"] >= config["stream_samples"] >= 4
            assert config["sample_tile"] == streams * config["stream_samples"]
            assert config["splits"] == shares == 1
        else:
            assert config["sample_tile"] < 2 * n
            assert streams == config["sample_tile"] * shares
            assert config["sample_tile"].bit_count() == shares.bit_count() == 1
        assert config["lanes"] in (1, 2, 4, 8, 16, 32)
        assert config["threads"] in range(32, 257, 32)
        assert config["shared_bytes"] <= 48 << 10
        tile = config["lanes"] * config["vec"]
        assert (config["sample_tiles"] - 1) * config["sample_tile"] < n
        assert config["sample_tiles"] * config["sample_tile"] >= n
        assert (config["channel_tiles"] - 1) * tile < cout <= config["channel_tiles"] * tile
        # Blocks share what leaves each stream two words.
        words = 9 * -(-cin // 32)
        assert 1 <= config["splits"] <= 16
        assert config["splits"] == 1 or 2 * config["splits"] * shares <= words
        tiles = config["sample_tiles"] * config["channel_tiles"] * config["splits"]
        assert config["blocks"] == tiles * groups * size * size


@pytest.mark.parametrize(
    ("sizes", "fits"),
    [
        ({}, True),
        # Rows of a receptive field: those of an int.
        ({"KH": 1, "KW": 1, "Cin_g": 2**31 - 1}, True),
        ({"KH": 1, "KW": 1, "Cin_g": 2**31}, False),
        # Spike words of a sample: those of an int.
        ({"H": 2**31 - 1, "W": 1, "words": 1}, True),
        ({"H": 2**15, "W": 2**15, "words": 2}, False),
    ],
)
def test_fields_that_an_int_cannot_number(lib, sizes, fits):
    params = simt.UnsharedConvParams(**{**DEFAULTS, "words": 4, **sizes})
    assert lib.unshared_conv_simt_field_fits(ctypes.byref(params)) == fits


def test_config_counts_blocks_beyond_32_bits(lib):
    config = config_of(lib, N=256 * 10**5, OH=1000, OW=1000, Cout_g=4)
    assert config["blocks"] == 10**5 * 10**6


@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 10, 641, 2**31 - 1, 2**32 + 1, 2**62 + 1])
def test_divisor_is_exact(lib, divisor):
    numbers = {0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63 - 2, 123456789012345678}
    numbers |= {k * divisor + d for k in (1, 2, 5, 2**62 // divisor) for d in (-1, 0, 1)}
    for n in sorted(numbers):
        if not 0 <= n < 2**63:
            continue
        quotient, remainder = ctypes.c_int64(), ctypes.c_int64()
        lib.divisor_simt(
            ctypes.c_int64(n),
            ctypes.c_int64(divisor),
            ctypes.byref(quotient),
            ctypes.byref(remainder),
        )
        assert (quotient.value, remainder.value) == divmod(n, divisor)


def grad_config_of(lib, grad_weight=4096, **sizes) -> dict:
    params = simt.UnsharedConvParams(**{**DEFAULTS, **sizes})
    values = (ctypes.c_int64 * 8)()
    lib.unshared_conv_grad_simt_config(ctypes.byref(params), ctypes.c_void_p(grad_weight), values)
    names = "vec sample_tile lanes threads splits shared_bytes channel_tiles blocks"
    return dict(zip(names.split(), values, strict=True))


def test_grad_config_of_a_wide_layer(lib):
    assert grad_config_of(lib, N=64) == {
        "vec": 4,
        "sample_tile": 64,
        "lanes": 32,
        "threads": 256,
        "splits": 1,
        # 64 samples of 128 channels, and two words of samples for 32 rows in each of 8 warps.
        "shared_bytes": 64 * 128 * 4 + 8 * 2 * 32 * 4,
        "channel_tiles": 1,
        "blocks": 1024,
    }


def test_grad_config_of_more_samples_stages_fewer_channels(lib):
    for samples, tile, lanes in ((65, 65, 16), (128, 128, 16), (129, 129, 8), (1000, 256, 8)):
        config = grad_config_of(lib, N=samples)
        assert (config["sample_tile"], config["lanes"]) == (tile, lanes)
    # 16 bytes are 8 halves: as many channels in half as many lanes.
    assert grad_config_of(lib, N=1000, weight_dtype=2)["lanes"] == 4


def test_grad_config_of_few_positions_splits_the_rows(lib):
    config = grad_config_of(lib, OH=1, OW=1, Cin_g=4096)
    # 1,152 words for 8 warps.
    assert (config["splits"], config["blocks"]) == (16, 16)
    assert grad_config_of(lib, OH=1, OW=1, Cin_g=64)["splits"] == 2


@pytest.mark.parametrize(
    "sizes",
    [{"Cout_g": 130}, {"grad_weight": 4100}, {"weight_stride_p": 4097}],
    ids=("channels", "pointer", "stride"),
)
def test_grad_config_of_unaligned_rows_stores_single_elements(lib, sizes):
    assert grad_config_of(lib, **sizes)["vec"] == 1


@pytest.mark.parametrize("sizes", [{"Cin_g": 0}, {"Cout_g": 0}, {"OW": 0}, {"KH": 0}], ids=str)
def test_grad_config_of_no_rows_launches_nothing(lib, sizes):
    assert grad_config_of(lib, **sizes)["blocks"] == 0


@pytest.mark.parametrize("n", [0, 1, 31, 33, 64, 65, 256, 257, 100000])
@pytest.mark.parametrize("cout", [1, 3, 8, 20, 128, 132, 2048])
def test_grad_config_covers_all_rows_and_fits(lib, n, cout):
    for size, groups, cin, dtype in itertools.product((1, 4, 56), (1, 3), (1, 33, 512), (0, 1, 2)):
        sizes = {"N": n, "Cin_g": cin, "Cout_g": cout, "OH": size, "OW": size, "G": groups}
        config = grad_config_of(lib, weight_dtype=dtype, **sizes)
        assert config["sample_tile"] == min(max(n, 1), 256)
        assert config["lanes"] in (1, 2, 4, 8, 16, 32)
        assert config["threads"] in range(32, 257, 32)
        assert config["shared_bytes"] <= 48 << 10  # what no device has to be asked for
        tile = config["lanes"] * config["vec"]
        assert (config["channel_tiles"] - 1) * tile < cout <= config["channel_tiles"] * tile
        words = 9 * -(-cin // 32)
        assert config["splits"] == 1 or config["splits"] * config["threads"] // 32 <= words
        assert config["blocks"] == config["channel_tiles"] * config["splits"] * groups * size**2
