"""Layers of a few channels, whose rows may all be added under masks of who fired them.

Weights on a grid make every sum exact, so that results must be equal to those in float64. Weights
that are no such numbers must give a sample the same bits beside others as alone.
"""

import itertools

import pytest
import torch
from helpers import binary, grid, normal, unshared_conv_by_hand

import realspike_ops as rso

FORMATS = [torch.contiguous_format, torch.channels_last]


def check(spikes, weight, bias=None, **geometry):
    out = rso.unshared_spike_conv(spikes, weight, bias, **geometry)
    OH, OW = out.shape[2:]
    value = weight.double() - 128 if weight.dtype == torch.uint8 else weight
    expected, _ = unshared_conv_by_hand(
        spikes.cpu(), value.expand(OH, OW, *weight.shape[2:]).cpu(),
        None if bias is None else bias.cpu(), **geometry,
    )  # fmt: skip
    assert torch.equal(out.cpu().double(), expected)


def int8(shape, seed):
    """Weights of -128 to 127, as they are held: 128 added."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


WEIGHTS = pytest.mark.parametrize("weights", [grid, int8], ids=["float32", "int8"])


def test_by_hand(device):
    # Four samples of two channels at one pixel: none, either and both fire.
    spikes = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], device=device)[..., None, None]
    weight = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]], device=device)
    out = rso.unshared_spike_conv(spikes, weight.view(1, 1, 1, 1, 1, 2, 4))
    expected = [[0, 0, 0, 0], [10, 20, 30, 40], [1, 2, 3, 4], [11, 22, 33, 44]]
    assert out.flatten(1).tolist() == expected


def test_int8_by_hand(device):
    # Channel c of row r holds 16 r + c - 32, the first and the last of them -128 and 127.
    spikes = torch.tensor([[0.0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]], device=device)
    weight = torch.arange(64).view(4, 16) - 32
    weight[0, 0], weight[3, 15] = -128, 127
    held = (weight + 128).to(torch.uint8).to(device)
    out = rso.unshared_spike_conv(spikes[..., None, None], held.view(1, 1, 1, 1, 1, 4, 16))
    second_and_fourth = [2 * c for c in range(15)] + [-1 + 127]
    all_four = [-128 - 16 + 0 + 16] + [4 * c - 32 for c in range(1, 15)] + [-17 - 1 + 15 + 127]
    assert out.flatten(1).tolist() == [[0] * 16, second_and_fourth, all_four]


@WEIGHTS
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 31, 64, 257, 300])
def test_samples(N, memory_format, weights, device):
    spikes = binary((N, 16, 3, 5), N, 0.3).contiguous(memory_format=memory_format).to(device)
    check(spikes, weights((3, 5, 1, 3, 3, 16, 16), 1).to(device), padding=1)


@WEIGHTS
@pytest.mark.parametrize("Cout", [4, 8, 12, 16, 20, 28, 32])
@pytest.mark.parametrize("Cin", [1, 2, 4, 7, 15, 16, 31, 32, 33, 36, 63, 64, 65, 144])
def test_channels(Cin, Cout, weights, device):
    spikes = binary((6, Cin, 3, 4), Cin, 0.3).to(device)
    bias = grid((Cout,), 2).to(device)
    check(spikes, weights((3, 4, 1, 1, 1, Cin, Cout), 1).to(device), bias)
    weight = weights((1, 1, 1, 1, 1, Cin, Cout), 3).to(device)
    check(spikes, weight, grid((Cout, 3, 4), 4).to(device))


@WEIGHTS
@pytest.mark.parametrize("groups", [2, 3, 5])
@pytest.mark.parametrize("Cin_g", [3, 12, 13, 16, 21, 33, 36])
def test_groups(Cin_g, groups, weights, device):
    """Of channels that begin anywhere in a word and may lie in two or three."""
    spikes = binary((9, groups * Cin_g, 3, 4), groups, 0.4).to(device)
    weight = weights((3, 4, groups, 1, 3, Cin_g, 16), 1).to(device)
    bias = grid((groups * 16, 3, 4), 2).to(device)
    check(spikes, weight, bias, padding=(0, 1))


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), list(itertools.product((1, 2), (0, 2), (1, 2)))
)
@pytest.mark.parametrize("kernel", [(1, 3), (2, 2), (3, 3), (8, 8)], ids=str)
@WEIGHTS
def test_geometry(weights, kernel, stride, padding, dilation, device):
    size = (9, 11) if kernel == (8, 8) and dilation == 1 else (16, 17)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    spans = [dilation * (k - 1) + 1 for k in kernel]
    OH, OW = ((s + 2 * padding - d) // stride + 1 for s, d in zip(size, spans, strict=True))
    spikes = binary((7, 4, *size), 1, 0.4).to(device)
    Cout = 4 if kernel == (8, 8) else 16
    check(spikes, weights((OH, OW, 1, *kernel, 4, Cout), 2).to(device), **geometry)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_silence_and_all_spikes(rate, device):
    spikes = torch.full((10, 16, 4, 4), rate, device=device)
    check(spikes, grid((4, 4, 1, 3, 3, 16, 16), 1).to(device), padding=1)


@pytest.mark.parametrize("held", [0, 255])
@pytest.mark.parametrize(("Cin", "kernel"), [(16, 3), (144, 1), (4, 6)])
def test_the_largest_int8_sums(Cin, kernel, held, device):
    spikes = torch.ones(5, Cin, 7, 7, device=device)
    size = 8 - kernel
    weight = torch.full((size, size, 1, kernel, kernel, Cin, 16), held, dtype=torch.uint8)
    out = rso.unshared_spike_conv(spikes, weight.to(device))
    assert (out == Cin * kernel * kernel * (held - 128)).all()


@pytest.mark.parametrize(
    ("Cin", "Cout", "kernel"), [(16, 16, 3), (33, 12, 1), (5, 20, 3), (3, 4, 8)]
)
def test_a_sample_has_the_same_bits_beside_others_as_alone(Cin, Cout, kernel):
    """Alone, and in twos, its rows are listed."""
    pad = kernel // 2
    spikes = binary((22, Cin, 9, 8), 1, 0.4)
    weight = normal((9 + 1 - kernel % 2, 8 + 1 - kernel % 2, 1, kernel, kernel, Cin, Cout), 2)
    bias = normal((Cout,), 3)
    out = rso.unshared_spike_conv(spikes, weight, bias, padding=pad)
    for some in (1, 2):
        parts = [rso.unshared_spike_conv(s, weight, bias, padding=pad) for s in spikes.split(some)]
        assert torch.equal(out.view(torch.int32), torch.cat(parts).view(torch.int32))


@pytest.mark.parametrize(("timesteps", "N"), [(1, 5), (3, 6), (4, 64), (5, 300)])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@WEIGHTS
def test_neurons_behind_it_fire_as_they_do_alone(weights, timesteps, N, reset, device):
    spikes = binary((N, 16, 4, 5), 1, 0.3).to(device)
    weight = weights((4, 5, 1, 3, 3, 16, 16), 2).to(device)
    neuron = {"reset": reset, "decay": 0.5, "v_threshold": 1.0}
    currents = rso.unshared_spike_conv(spikes, weight, padding=1)
    expected = rso.lif(currents.unflatten(0, (timesteps, -1)), packed=True, **neuron)
    packed = rso.unshared_spike_conv_lif(spikes, weight, padding=1, timesteps=timesteps, **neuron)
    assert torch.equal(packed, expected.flatten(0, 1))


@pytest.mark.parametrize("weights", [normal, int8], ids=["float32", "int8"])
def test_threads_change_no_bit(weights):
    spikes = binary((40, 16, 9, 9), 1, 0.3)
    weight = weights((9, 9, 1, 3, 3, 16, 16), 2)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(rso.unshared_spike_conv(spikes, weight, padding=1))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
