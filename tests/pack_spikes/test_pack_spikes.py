"""realspike_ops.pack_spikes and unpack_spikes: tables by hand, then a sweep over sizes, layouts and
dtypes against the definition and the reference."""

import pytest
import torch
from helpers import binary, examples, normal
from hypothesis import given, settings
from hypothesis import strategies as st

import realspike_ops as rso

CHANNELS = [1, 31, 32, 33, 63, 64, 65, 128, 129, 200]
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.bool, torch.uint8, torch.int8),
]
FLOATING = [dtype for dtype in DTYPES if dtype.is_floating_point]


def words_by_hand(spikes: torch.Tensor) -> torch.Tensor:  # [N, C, ...] -> [N, ..., words]
    """Channel c is bit c % 32 of word c // 32, as a signed 32-bit integer."""
    spikes = spikes.cpu().movedim(1, -1)
    C = spikes.shape[-1]
    words = torch.zeros(*spikes.shape[:-1], (C + 31) // 32, dtype=torch.int64)
    for c in range(C):
        words[..., c // 32] += (spikes[..., c] != 0).long() * 2 ** (c % 32)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


@pytest.mark.parametrize(
    ("channels", "fired", "words"),
    [
        pytest.param(1, [], [0], id="silent"),
        pytest.param(1, [0], [1], id="one-channel"),
        pytest.param(5, [0, 2], [0b101], id="lowest-bit-first"),
        pytest.param(32, [31], [-(2**31)], id="sign-bit"),
        pytest.param(32, range(32), [-1], id="full-word"),
        pytest.param(33, [32], [0, 1], id="second-word"),
        pytest.param(33, range(33), [-1, 1], id="bits-beyond-the-last-channel-are-0"),
        pytest.param(64, [63], [0, -(2**31)], id="last-bit"),
        pytest.param(65, [0, 33, 64], [1, 2, 1], id="three-words"),
    ],
)
@pytest.mark.parametrize("shape", [(), (1, 1), (1, 2)], ids=["flat", "pixel", "pixels"])
def test_words_by_hand(channels, fired, words, shape, device):
    spikes = torch.zeros(1, channels, *shape, device=device)
    spikes[:, list(fired)] = 1
    packed = rso.pack_spikes(spikes)
    assert packed.dtype == torch.int32
    assert packed.shape == (1, *shape, len(words))
    assert packed.view(-1, len(words)).tolist() == [words] * spikes[0, 0].numel()
    assert torch.equal(rso.unpack_spikes(packed, channels), spikes)


def lay_out(spikes: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return spikes.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = torch.ones(*spikes.shape[:-1], 2 * spikes.shape[-1], dtype=spikes.dtype)
        wide = wide.to(spikes.device)
        wide[..., 1::2] = spikes
        return wide[..., 1::2]
    if layout == "sliced-channels":
        deep = torch.ones(spikes.shape[0], 2 * spikes.shape[1], *spikes.shape[2:])
        deep = deep.to(spikes.device, spikes.dtype)
        deep[:, ::2] = spikes
        return deep[:, ::2]
    if layout == "transposed":
        return spikes.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return spikes[..., :1].expand_as(spikes)
    if layout == "expanded-samples":
        return spikes[:1].expand_as(spikes)
    return spikes


LAYOUTS = [
    *("contiguous", "channels_last", "sliced", "sliced-channels", "transposed"),
    *("expanded", "expanded-samples"),
]


@settings(max_examples=examples(150))
@given(
    N=st.sampled_from([0, 1, 3]),
    C=st.one_of(st.sampled_from(CHANNELS), st.integers(1, 200)),
    pixels=st.lists(st.sampled_from([0, 1, 2, 5, 17]), max_size=3),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_sweep(N, C, pixels, dtype, layout, rate, seed, device):
    spikes = lay_out(binary((N, C, *pixels), seed, rate).to(device, dtype), layout)
    packed = rso.pack_spikes(spikes)
    assert packed.is_contiguous()
    assert torch.equal(packed.cpu(), words_by_hand(spikes))
    assert torch.equal(packed, rso.reference.pack_spikes(spikes))
    unpacked = rso.unpack_spikes(packed, C)
    assert unpacked.dtype == torch.float32
    assert torch.equal(unpacked, spikes.float())
    assert torch.equal(unpacked, rso.reference.unpack_spikes(packed, C))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_many_pixels(layout, device):
    # More than one block of pixels and one task of the CPU kernels.
    spikes = lay_out(binary((2, 65, 61, 67), 1).to(device), layout)
    packed = rso.pack_spikes(spikes)
    assert torch.equal(packed.cpu(), words_by_hand(spikes))
    assert torch.equal(rso.unpack_spikes(packed, 65), spikes)


@pytest.mark.parametrize("layout", ["contiguous", "sliced-channels", "transposed"])
def test_unpack_reads_any_layout(layout, device):
    spikes = binary((3, 70, 5), 2).to(device)
    packed = lay_out(rso.pack_spikes(spikes), layout)
    assert torch.equal(rso.unpack_spikes(packed, 70), spikes)


def test_unpack_ignores_bits_beyond_the_last_channel(device):
    words = torch.tensor([[-1, -1]], dtype=torch.int32, device=device)
    assert torch.equal(rso.unpack_spikes(words, 40), torch.ones(1, 40, device=device))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_negative_zero_is_silence(dtype, layout, device):
    spikes = lay_out(torch.tensor([[[-0.0, 1.0], [0.0, -0.0]]], dtype=dtype), layout)
    packed = rso.pack_spikes(spikes.to(device), check_binary=True)
    assert packed.flatten().tolist() == [0, 1]


STRANGE = {
    torch.float32: [0.5, 2.0, -1.0, float("nan"), float("inf"), 2.0**-149, 1 + 2.0**-23],
    torch.float64: [0.5, -1.0, 1 + 2.0**-52, 5e-324],
    torch.float16: [0.5, -1.0, 2.0**-24],
    torch.bfloat16: [0.5, -1.0, float("nan")],
    torch.uint8: [2, 255],
    torch.int8: [-1, 2, -128],
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", STRANGE, ids=str)
def test_other_values_raise(dtype, layout, device):
    for value in STRANGE[dtype]:
        for where in ((0, 0, 0), (1, 32, 4), (1, 39, 5)):
            spikes = torch.zeros(2, 40, 6, dtype=dtype)
            spikes[where] = value
            spikes = lay_out(spikes.to(device), layout)
            with pytest.raises(ValueError, match=r"spikes must be 0 or 1"):
                rso.pack_spikes(spikes, check_binary=True)
            # Unchecked, whatever is not 0 has fired.
            packed = rso.pack_spikes(spikes, check_binary=False)
            assert torch.equal(packed.cpu(), words_by_hand(spikes))


def test_other_values_raise_from_any_task(device):
    spikes = torch.zeros(3, 65, 61, 67, device=device)
    spikes[2, 64, 60, 66] = 0.75
    with pytest.raises(ValueError, match=r"spikes must be 0 or 1"):
        rso.pack_spikes(spikes, check_binary=True)


def test_default_check():
    spikes = torch.full((1, 4), 0.5)
    with pytest.raises(ValueError, match=r"spikes must be 0 or 1"):
        rso.pack_spikes(spikes)
    assert rso.pack_spikes(spikes, check_binary=False).tolist() == [[15]]


def test_spikes_that_require_a_gradient_are_packed(device):
    spikes = binary((2, 5, 3), 1).to(device)
    packed = rso.pack_spikes(spikes.clone().requires_grad_())
    assert torch.equal(packed, rso.pack_spikes(spikes))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 40), (2, 33, 3, 5), (0, 33, 3, 5)], ids=str)
def test_opcheck(shape, layout, device):
    spikes = lay_out(binary(shape, 1).to(device), layout)
    torch.library.opcheck(torch.ops.realspike.pack_spikes.default, (spikes, True))
    packed = rso.pack_spikes(spikes)
    channels_last = layout == "channels_last"
    torch.library.opcheck(
        torch.ops.realspike.unpack_spikes.default, (packed, shape[1], channels_last)
    )
    unpacked = torch.ops.realspike.unpack_spikes(packed, shape[1], channels_last)
    assert torch.equal(unpacked, spikes)


def test_same_bits_for_any_number_of_threads():
    spikes = binary((4, 70, 50, 50), 1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            packed = rso.pack_spikes(spikes)
            results.append((packed, rso.unpack_spikes(packed, 70)))
    finally:
        torch.set_num_threads(threads)
    for packed, unpacked in results[1:]:
        assert torch.equal(packed, results[0][0])
        assert torch.equal(unpacked, results[0][1])


def test_real_values_are_refused_and_say_where_the_amplitude_goes():
    with pytest.raises(ValueError, match=r"amplitude a folded into the weights"):
        rso.pack_spikes(normal((2, 3), 1))
