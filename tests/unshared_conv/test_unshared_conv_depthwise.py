"""One input and one output channel per group: sums under a mask of bits.

Weights on a grid make every sum exact, so that results must be equal to those in float64."""

import itertools

import pytest
import torch
from helpers import binary, grid, unshared_conv_by_hand
from torch.nn import functional as F

import realspike_ops as rso
from realspike_ops.nn.packed_spikes import PackedSpikes

CHANNELS = [1, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 200, 600]
LAYOUTS = ["contiguous", "channels_last", "packed"]


def laid_out(spikes, layout):
    if layout == "packed":
        return rso.pack_spikes(spikes)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return spikes.contiguous(memory_format=formats[layout])


def check(spikes, weight, bias=None, layout="packed", **geometry):
    out = rso.unshared_spike_conv(laid_out(spikes, layout), weight, bias, **geometry)
    OH, OW = out.shape[2:]
    expected, _ = unshared_conv_by_hand(
        spikes.cpu(), weight.expand(OH, OW, *weight.shape[2:]).cpu().float(),
        None if bias is None else bias.cpu(), **geometry,
    )  # fmt: skip
    assert torch.equal(out.cpu().double(), expected)


def test_by_hand(device):
    #            channel 0        channel 1
    spikes = torch.tensor([[[[1.0, 0, 1]], [[0.0, 1, 1]]]], device=device)  # [1, 2, 1, 3]
    kernel = torch.tensor([[1.0, 10], [100, 1000]], device=device)  # [C, KW]
    weight = kernel.reshape(1, 1, 2, 1, 2, 1, 1)
    bias = torch.tensor([0.5, -0.5], device=device)
    out = rso.unshared_spike_conv(spikes, weight, bias, padding=(0, 1))
    # Windows end at pixels 0 to 3; the second tap is the right one.
    assert out.tolist() == [[[[10.5, 1.5, 10.5, 1.5]], [[-0.5, 999.5, 1099.5, 99.5]]]]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(channels, layout, device):
    spikes = binary((3, channels, 4, 5), channels, 0.4).to(device)
    weight = grid((4, 5, channels, 3, 3, 1, 1), 1).to(device)
    check(spikes, weight, grid((channels,), 2).to(device), layout, padding=1)
    check(spikes, weight[:1, :1], grid((channels, 4, 5), 3).to(device), layout, padding=1)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (3, 3), (15, 17), (16, 16), (17, 16)], ids=str)
@pytest.mark.parametrize("N", [1, 300])
def test_taps(kernel, N, device):
    # 255, 256 and 272 taps: beyond 256 the gather takes over.
    size = (kernel[0] + 1, kernel[1] + 2)
    spikes = binary((N, 5, *size), 1, 0.2).to(device)
    check(spikes, grid((2, 3, 5, *kernel, 1, 1), 2).to(device))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("padding", "stride", "dilation"),
    list(itertools.product((0, 2, (3, 1)), (1, 2, (2, 3)), (1, (1, 2)))),
    ids=str,
)
def test_geometry(padding, stride, dilation, layout, device):
    spikes = binary((2, 34, 7, 9), 1, 0.4).to(device)
    geometry = {"padding": padding, "stride": stride, "dilation": dilation}
    weight = grid((1, 1, 34, 2, 3, 1, 1), 2).to(device)
    size = rso.unshared_spike_conv(spikes, weight, **geometry).shape[2:]
    check(spikes, grid((*size, 34, 2, 3, 1, 1), 3).to(device), None, layout, **geometry)
    check(spikes, weight, None, layout, **geometry)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_weights(dtype, device):
    spikes = binary((3, 40, 5, 6), 1, 0.4).to(device)
    check(spikes, grid((5, 6, 40, 3, 3, 1, 1), 2).to(device, dtype), padding=1)


def test_int8_weights_and_their_scale(device):
    spikes = binary((3, 40, 5, 6), 1, 0.4).to(device)
    steps = torch.randint(-127, 128, (5, 6, 40, 3, 3, 1, 1)).to(device)
    stored = (steps + 128).to(torch.uint8)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), steps.cpu(), padding=1)
    out = rso.unshared_spike_conv(spikes, stored, padding=1)
    assert torch.equal(out.cpu().double(), expected)
    scale = 2.0 ** torch.arange(-20, 20, device=device)
    bias = grid((40,), 3).to(device)
    out = rso.unshared_spike_conv(spikes, stored, bias, scale=scale, padding=1)
    assert torch.equal(
        out, expected.float().to(device) * scale[:, None, None] + bias[:, None, None]
    )


def test_factored_storage_is_the_convolution_of_real_spikes(device):
    spikes = binary((3, 40, 5, 6), 1, 0.4).to(device)
    kernel, amplitude = grid((1, 1, 40, 3, 3, 1, 1), 2).to(device), grid((40, 5, 6), 3).to(device)
    out = rso.unshared_spike_conv(spikes, kernel, amplitude=amplitude, padding=1)
    kernel = kernel[0, 0].permute(0, 4, 3, 1, 2).reshape(40, 1, 3, 3)
    assert torch.equal(out, F.conv2d(amplitude * spikes, kernel, padding=1, groups=40))


def test_what_has_not_fired_is_never_added(device):
    spikes = binary((1, 40, 4, 4), 1, 0.5).to(device)
    weight = grid((4, 4, 40, 1, 1, 1, 1), 2).to(device)
    fired = spikes[0].permute(1, 2, 0)[..., None, None, None, None] == 1
    poisoned = torch.where(fired, weight, float("nan"))
    out = rso.unshared_spike_conv(spikes, poisoned)
    assert torch.equal(out, rso.unshared_spike_conv(spikes, weight))


def test_spare_bits_select_nothing(device):
    spikes = binary((2, 35, 4, 4), 1, 0.5).to(device)
    weight = grid((4, 4, 35, 3, 3, 1, 1), 2).to(device)
    packed = rso.pack_spikes(spikes)
    dirty = packed.clone()
    dirty[..., 1] |= ~0 << 3  # 35 channels: 3 bits of the second word
    with pytest.raises(ValueError, match="no bits beyond 35 channels"):
        rso.unshared_spike_conv(dirty, weight, padding=1, check_binary=True)
    out = rso.unshared_spike_conv(dirty, weight, padding=1, check_binary=False)
    assert torch.equal(out, rso.unshared_spike_conv(packed, weight, padding=1))


def test_same_bits_for_any_number_of_threads():
    before = torch.get_num_threads()
    spikes = binary((9, 70, 11, 13), 1, 0.4)
    weight = torch.randn(11, 13, 70, 3, 3, 1, 1)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(rso.unshared_spike_conv(spikes, weight, padding=1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("signed", [False, True], ids=["binary", "ternary"])
@pytest.mark.parametrize("shape", [(1,), (35, 1, 1), (1, 4, 5), (35, 4, 5)], ids=str)
def test_a_shortcut_reads_bits(shape, signed, device):
    spikes = binary((3, 35, 4, 5), 1, 0.4).to(device)
    words = rso.pack_spikes(spikes)
    if signed:
        negative = binary((3, 35, 4, 5), 2, 0.4).to(device) * (1 - spikes)
        words, spikes = torch.stack((words, rso.pack_spikes(negative))), spikes - negative
    shortcut = rso.OneToOneSynapses(torch.randn(shape, device=device))
    with torch.no_grad():
        currents = shortcut(PackedSpikes(words, 35, signed))
    assert torch.equal(currents, shortcut.weight * spikes)
    assert currents.is_contiguous(memory_format=torch.channels_last)


def test_a_shortcut_of_features_reads_bits(device):
    spikes = binary((3, 70), 1, 0.4).to(device)
    shortcut = rso.OneToOneSynapses(torch.randn(70, device=device))
    with torch.no_grad():
        currents = shortcut(PackedSpikes(rso.pack_spikes(spikes), 70))
    assert torch.equal(currents, shortcut.weight * spikes)


def test_a_shortcut_refuses_another_map():
    packed = PackedSpikes(rso.pack_spikes(binary((3, 35, 4, 4), 1)), 35)
    shortcut = rso.OneToOneSynapses(torch.randn(35, 4, 5))
    with (
        torch.no_grad(),
        pytest.raises(
            ValueError, match="\\[35, 4, 5\\] broadcasts against; got maps of \\[35, 4, 4\\]"
        ),
    ):
        shortcut(packed)
