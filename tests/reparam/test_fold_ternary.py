"""Ternary spikes in bits: every reader honours the sign, or refuses them by name."""

import pytest
import torch
from fold_networks import T
from helpers import normal
from torch import nn

import realspike_ops as rso
from realspike_ops.nn.packed_spikes import PackedSpikes, padded
from realspike_ops.nn.synapses.synaptic_current import Synapses

pytestmark = pytest.mark.usefixtures("one_thread")

# [N, C, H, W] = [2, 3, 1, 2]
SPIKES = torch.tensor(
    [[[[1.0, 0.0]], [[-1.0, 1.0]], [[0.0, -1.0]]], [[[0.0, -1.0]], [[1.0, 0.0]], [[-1.0, 1.0]]]]
)
WEIGHT = torch.tensor([0.5, -2.0, 3.0]).view(3, 1, 1)
CURRENT = torch.tensor(
    [[[[0.5, 0.0]], [[2.0, -2.0]], [[0.0, -3.0]]], [[[0.0, -0.5]], [[-2.0, 0.0]], [[-3.0, 3.0]]]]
)


def packed(spikes) -> PackedSpikes:
    planes = [rso.pack_spikes((spikes == sign).float()) for sign in (1, -1)]
    return PackedSpikes(torch.stack(planes), spikes.shape[1], signed=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("learns", [False, True])
def test_one_weight_per_neuron_by_hand(learns, dtype):
    """In bits and dense, alone, flattened, placed among other channels, and padded; float32."""
    one = rso.OneToOneSynapses(WEIGHT.to(dtype)).requires_grad_(learns)
    beside = torch.zeros(2, 5, 1, 2)
    beside[:, 1:4] = CURRENT
    around = torch.zeros(2, 3, 2, 3)
    around[:, :, 1:, :2] = CURRENT
    for layer, expected in (
        (one, CURRENT),
        (Synapses(one, flatten=True), CURRENT.flatten(1)),
        (Synapses(one, channels=(1, 5)), beside),
        (Synapses(one, pad=(0, 1, 1, 0)), around),
    ):
        for spikes in (SPIKES, packed(SPIKES)):
            current = layer(spikes)
            assert current.dtype == torch.float32
            assert torch.equal(current, expected)
    features = rso.OneToOneSynapses(WEIGHT.flatten().to(dtype)).requires_grad_(learns)
    flat = SPIKES[:, :, 0, 0]
    assert torch.equal(features(packed(flat)), CURRENT[:, :, 0, 0])


def test_several_maps_keep_their_signs():
    """Two maps through one layer that tells the signs apart by itself, one batch behind another."""
    other = SPIKES.flip(0)
    both = Synapses(rso.OneToOneSynapses(WEIGHT), maps=2).requires_grad_(False)
    expected = CURRENT + CURRENT.flip(0)
    assert torch.equal(both(packed(SPIKES), packed(other)), expected)
    assert torch.equal(both(SPIKES, other), expected)


READERS = {
    "conv": (rso.SpikeConv2d(3, 2, 1), SPIKES),
    "unshared": (rso.UnsharedSpikeConv(3, 2, 1, input_size=(1, 2)), SPIKES),
    "linear": (rso.SpikeLinear(3, 2), SPIKES[:, :, 0, 0]),
    "piecewise": (
        rso.PiecewiseSpikeConv(torch.ones(1, 1, 1, 1, 1, 3, 2), (0,), (0, 0), 1, (0, 0), 1), SPIKES
    ),
    "unsigned synapses": (Synapses(rso.SpikeConv2d(3, 2, 1)), SPIKES),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_layers_of_binary_spikes_refuse_ternary_ones(reader):
    layer, spikes = READERS[reader]
    with pytest.raises(ValueError, match="must be binary ones of 3 channels; got ternary ones"):
        layer(packed(spikes))
    lif = rso.FoldedLIF(1)
    if hasattr(layer, "fire"):
        with pytest.raises(ValueError, match="got ternary ones"):
            layer.fire(packed(spikes), neurons=lif)


def test_signed_synapses_subtract_what_the_negative_spikes_send():
    conv = rso.SpikeConv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(WEIGHT.view(1, 1, 1, 1, 1, 3, 1))
    signed = Synapses(conv, signed=True)
    expected = CURRENT.sum(1, keepdim=True)
    assert torch.equal(signed(packed(SPIKES)), expected)
    assert torch.equal(signed(SPIKES), expected)


class Network(nn.Module):
    """Ternary neurons, and whatever reads them one to one."""

    def __init__(self, granularity, between):
        super().__init__()
        self.encode, self.repeat = nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T)
        self.first, self.second = (
            rso.RealSpikeLIF(T, granularity, (4, 5, 5), emission="ternary") for _ in range(2)
        )
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
        self.norm, self.mean = nn.BatchNorm2d(8), rso.MeanOverTime(T)
        self.between = between

    def forward(self, x):
        a = self.first(self.repeat(self.encode(x)))
        return self.mean(self.between(self, a, self.second(self.conv(a))))


BETWEEN = {
    "flattened": lambda net, a, b: b.flatten(1),
    "concatenated": lambda net, a, b: torch.cat([a, b], 1),
    "concatenated, then neurons": lambda net, a, b: net.last(net.norm(torch.cat([a, b], 1))),
    "summed": lambda net, a, b: (a - 0.5 * b).flatten(1),
    "summed, then neurons": lambda net, a, b: net.last(a + b),
    "alone": lambda net, a, b: b,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
@pytest.mark.parametrize("between", BETWEEN)
def test_networks_in_bits(between, granularity, dtype):
    torch.manual_seed(0)
    network = Network(granularity, BETWEEN[between]).eval()
    with torch.no_grad():
        for lif in (network.first, network.second):
            if lif.amplitude is not None:
                lif.amplitude.copy_(normal(lif.amplitude.shape, 1))
    x = 2 * normal((3, 3, 5, 5), 2)
    folded = rso.reparameterize(network, x, weight_dtype=dtype)
    with torch.no_grad():
        expected, in_bits = network(x), folded(x)
    assert ((expected < 0).any() and (expected > 0).any()) or "neurons" in between
    assert in_bits.dtype == torch.float32
    assert torch.equal(folded(x).detach(), in_bits)
    if dtype == torch.float32:
        torch.testing.assert_close(in_bits, expected, atol=1e-5, rtol=1e-5)
    assert rso.verify(network, folded, x, bounds=True).within_bounds


def test_sums_of_half_precision_synapses_are_float32():
    """256 + 1/3 (in float16: 0.33325195) is 256 in bfloat16, and 256.25 in float16."""
    current = rso.SynapticCurrent(
        {n: rso.OneToOneSynapses(torch.tensor([w])) for n, w in (("a", 256.0), ("b", 1 / 3))},
        torch.tensor([0.5]).view(1, 1, 1),
    )
    spikes = torch.ones(1, 1, 1, 1)
    for dtype, third in ((torch.float16, 0.333251953125), (torch.bfloat16, 0.333984375)):
        half = current.to(dtype)
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                out = half(spikes, spikes)
            assert out.dtype == torch.float32
            assert out.item() == 256.5 + third


def test_rows_outside_the_map_are_silent():
    """A 1 x 1 kernel of 2 where the row, or the column, is 0, else 5; padded by 3, and read up to
    4 behind a map of 2 x 2."""
    weight = torch.full((2, 2, 1, 1, 1, 1, 1), 5.0)
    weight[0] = weight[:, 0] = 2.0
    spikes = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    for rows in ((0, 0, 1, 1, 1, 0, 0, 1, 1), (1, 1, 1, 0, 0, 0, 1, 1, 0)):
        layer = rso.PiecewiseSpikeConv(weight, rows, rows, 1, (3, 3), 1)
        expected = torch.zeros(1, 1, 9, 9)
        for y, x in ((0, 0), (1, 0), (1, 1)):
            expected[0, 0, 3 + y, 3 + x] = 5.0 if rows[3 + y] == rows[3 + x] == 1 else 2.0
        words = rso.pack_spikes(spikes)
        for given in (spikes, words, PackedSpikes(words, 1), spikes.bool()):
            assert torch.equal(layer(given), expected)


def test_a_map_is_cut_through_what_the_other_side_adds():
    x = torch.tensor([1.0, 2.0, 3.0])
    assert padded(x, (-4, 3)).tolist() == [0.0, 0.0]
    assert padded(x, (2, -4)).tolist() == [0.0]
    assert padded(x, (1, -1)).tolist() == [0.0, 1.0, 2.0]
    assert padded(x, (0, 0)) is x


@pytest.mark.parametrize(
    "body",
    [
        (nn.ZeroPad2d(3), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        (nn.ZeroPad2d((4, 0, 3, 1)), nn.AvgPool2d(2, 2, 1, count_include_pad=False)),
        (nn.ZeroPad2d((0, 4, 0, 4)), nn.ZeroPad2d((-5, 0, -5, 0))),
        (nn.Conv2d(4, 4, 1, padding=2), nn.Conv2d(4, 4, 3, padding=4, stride=2)),
    ],
)
@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_networks_whose_windows_lie_outside_the_map(body, emission):
    torch.manual_seed(0)
    lif = rso.RealSpikeLIF(T, "channel", (4, 4, 4), emission=emission)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T), lif, *body),
        rso.MeanOverTime(T),
    ).eval()
    x = 3 * normal((2, 3, 4, 4), 2)
    folded = rso.reparameterize(network, x)
    with torch.no_grad():
        in_bits = folded(x)
        torch.testing.assert_close(in_bits, network(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(folded(x).detach(), in_bits)
