"""profile: counts by hand, and of whole networks."""

import copy
import json
import re

import pytest
import torch
from fold_networks import (
    Neurons,
    T,
    images_for,
    make,
)
from helpers import binary, normal
from torch import nn

import realspike_ops as rso
from realspike_ops.nn import SumOverTime
from realspike_ops.reparam.check.profile_report import LayerProfile, ProfileReport

pytestmark = pytest.mark.usefixtures("one_thread")


def test_profile_by_hand():
    """Two 3x3 maps; every current is 1 at the marked pixels, which fire at both timesteps."""
    current = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]).expand(2 * T, 1, 3, 3)
    lif = rso.RealSpikeLIF(T, "layer")
    lif.amplitude.data.fill_(2.0)
    network = nn.Sequential(lif, nn.Conv2d(1, 5, 3, padding=1, bias=False), rso.MeanOverTime(T))
    # A corner is read by 4 windows, the centre by 9.
    events = T * (4 + 9) * 5
    trained = rso.profile(network.eval(), current)
    by_name = {layer.name: layer for layer in trained.layers}
    assert trained.samples == 2  # of T frames each
    assert by_name["1"].synops == by_name["1"].multiplications == events
    assert by_name["1"].firing_rate == by_name["0"].firing_rate == pytest.approx(2 / 9)
    assert by_name["1"].ann_macs == 9 * 5 * 9
    assert by_name["0"].multiplications == 9 * T
    assert by_name["1"].weight_bytes == 45 * 4
    folded = rso.profile(rso.reparameterize(network, current), current)
    row = {layer.name: layer for layer in folded.layers}["1"]
    assert (row.synops, row.additions, row.multiplications) == (events, events, 0)
    assert row.energy_pj == pytest.approx(0.9 * events)
    assert row.ann_energy_pj == pytest.approx(4.6 * 405)


CONVOLUTIONS = {
    "valid": nn.Conv2d(2, 6, 3, padding="valid", groups=2),
    "same": nn.Conv2d(2, 3, (4, 2), padding="same"),
    "of lines": nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2),
    "of volumes": nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 2), groups=2),
    "transposed": nn.ConvTranspose2d(2, 6, 3, stride=2, padding=2, groups=2, output_padding=1),
    "transposed, of lines": nn.ConvTranspose1d(2, 3, 3, stride=3, padding=1, dilation=2),
}


@pytest.mark.parametrize("conv", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_every_weight_that_a_spike_meets_inside_the_map_is_counted(conv):
    sizes = (5, 4, 3)[: len(conv.kernel_size)]
    x = binary((2, 2, *sizes), 1)
    network = nn.Sequential(rso.RealSpikeLIF(1), conv).eval()
    row = rso.profile(network, x).layers[1]
    ones = copy.deepcopy(conv)
    nn.init.constant_(ones.weight, 1.0)
    nn.init.zeros_(ones.bias)
    assert row.synops == ones(x).sum().item() / len(x) > 0
    rows = len(x)
    read = x if isinstance(conv, nn.modules.conv._ConvTransposeNd) else conv(x)
    assert row.ann_macs == read.numel() * conv.weight[0].numel() / rows


def test_scripted_layers_count_where_they_are_called():
    x = normal((2, 3, 6, 6), 0)
    conv, neurons = nn.Conv2d(3, 4, 3), rso.RealSpikeLIF(1)
    scripted = rso.profile(nn.Sequential(torch.jit.script(conv), neurons), x)
    plain = rso.profile(nn.Sequential(conv, neurons), x)
    for count in ("additions", "multiplications", "ann_macs"):
        assert scripted.total(count) == plain.total(count) > 0
    with pytest.raises(TypeError, match="network is scripted or traced"):
        rso.profile(torch.jit.script(conv), x)


@pytest.mark.parametrize("family", ["resnet20", "sew-resnet18"])
def test_profile_of_networks(family):

    network, x = make(family, Neurons("element")), images_for(family)
    folded = rso.reparameterize(network, x[:1])
    trained, report = rso.profile(network, x), rso.profile(folded, x)
    content = json.loads(report.to_json())
    assert content["samples"] == 3
    assert content["total"]["synops"] == report.total("synops") > 0
    spiking = [layer for layer in report.layers if layer.kind == "synapses"]
    assert spiking
    assert all(layer.multiplications == 0 and layer.synops > 0 for layer in spiking)
    assert sum(p.numel() * 4 for p in folded.parameters()) <= report.total("weight_bytes")
    real = [layer for layer in trained.layers if layer.kind == "synapses"]
    assert all(layer.multiplications == layer.synops for layer in real)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100
    assert [n for n in (line.split("  ")[0] for line in lines[2:-2]) if n] == [
        layer.name for layer in report.layers
    ]
    with pytest.raises(TypeError, match=r"network must be an nn\.Module"):
        rso.profile(3, x)


@pytest.mark.parametrize("family", ["vgg", "resnet20-odd"])
def test_inference_mode_hides_no_operator(family):
    """Autograd takes conv2d, linear and to() apart, and does not see tensors of that mode."""
    network, x = (
        make(family, Neurons("element" if "resnet" in family else "channel")),
        images_for(family),
    )
    folded = rso.reparameterize(network, x[:1])
    outside = [rso.profile(module, x).to_json() for module in (network, folded)]
    with torch.inference_mode():
        for images in (x, x.clone()):
            assert [
                rso.profile(module, images).to_json() for module in (network, folded)
            ] == outside
            rso.assert_multiplication_free(folded, images)
            with pytest.raises(rso.MultiplicationError, match="real-valued spikes"):
                rso.assert_multiplication_free(network, images)
            behind = nn.Sequential(rso.RealSpikeLIF(1), nn.Linear(8, 2)).eval()
            with pytest.raises(rso.MultiplicationError, match="aten::addmm"):
                rso.assert_multiplication_free(behind, images)


def test_neurons_that_do_not_decay_multiply_nothing():
    current = torch.rand(2 * T, 1, 3, 3)
    lifs = {"if": {"decay": 1.0}, "lif": {"decay": 0.5}, "plif": {"decay_granularity": "layer"}}
    network = nn.Sequential()
    for name, form in lifs.items():
        network.add_module(name, rso.RealSpikeLIF(T, **form))
    rows = {layer.name: layer for layer in rso.profile(network, current).layers}
    assert {name: row.additions for name, row in rows.items()} == dict.fromkeys(lifs, 9.0 * T)
    expected = {"if": 0, "lif": 9 * T, "plif": 9 * T}
    assert {n: r.multiplications for n, r in rows.items()} == expected

    class Packed(nn.Module):
        def forward(self, x):
            return rso.lif(x.unflatten(0, (T, -1)), decay=1.0, packed=True)

    (row,) = rso.profile(nn.Sequential(Packed()), current).layers
    assert (row.kind, row.additions, row.multiplications) == ("neurons", 9.0, 0.0)


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("frames", [False, True])
def test_samples_are_counted_by_the_timesteps(frames, averaged):
    """Images [B] that are repeated, or frames [T*B]; scores [B], or [T*B]: always B samples."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.Identity() if frames else rso.DirectEncoding(T)),
        *(rso.RealSpikeLIF(T), nn.Conv2d(3, 3, 3, padding=1), rso.RealSpikeLIF(T)),
        *(nn.Flatten(), nn.Linear(48, 5)),
        rso.MeanOverTime(T) if averaged else nn.Identity(),
    ).eval()
    images = normal((3, 2, 4, 4), 1)
    x = images.repeat(T, 1, 1, 1) if frames else images
    folded = rso.reparameterize(network, x)
    report = rso.verify(network, folded, [x, (x, None)])
    assert (report.samples, report.predictions) == (6, 6 if averaged else 6 * T)
    assert report.agreement == 1.0
    for counted in (rso.profile(network, [x, x]), rso.profile(folded, [x, x])):
        assert counted.samples == 6
        rows = {row.name: row for row in counted.layers}
        # Every weight of every connection once per sample, whatever T.
        assert rows["0"].ann_macs == 16 * 9 * 2 * 3
        assert rows["3"].ann_macs == 16 * 9 * 3 * 3
        assert rows["4"].additions == T * 48


def test_samples_of_a_network_without_neurons():
    network, x = nn.Linear(4, 3), normal((5, 4), 1)
    report = rso.verify(network, network, x)
    assert (report.samples, report.predictions) == (5, 5)
    assert rso.profile(network, x).samples == 5


def test_agreement_of_maps():
    """Predictions are one per pixel where the output is a map; no share exceeds 1."""
    network = nn.Sequential(rso.RealSpikeLIF(T), nn.Conv2d(2, 2, 1)).eval()
    x = normal((T * 3, 2, 4, 4), 1)
    report = rso.verify(network, rso.reparameterize(network, x), x)
    assert report.agreement == 1.0
    assert report.samples == 3


def test_fused_neurons_count_as_the_convolution_and_the_neurons():
    conv, spikes = rso.SpikeConv2d(3, 4, 3, padding=1), binary((T * 2, 3, 4, 4), 1)

    class Fused(nn.Module):
        def forward(self, x):
            weight, bias = conv.weight.detach(), conv.bias.detach()
            return rso.unshared_spike_conv_lif(x, weight, bias, timesteps=T, padding=1)

    fused = rso.profile(nn.Sequential(Fused()), spikes)
    conv_alone = rso.profile(nn.Sequential(rso.RealSpikeLIF(T), conv, rso.RealSpikeLIF(T)), spikes)
    rows = conv_alone.layers[1:]
    assert fused.samples == 2
    assert fused.total("synops") == rows[0].synops > 0
    for name in ("additions", "multiplications"):
        assert fused.total(name) == sum(getattr(row, name) for row in rows)


@pytest.mark.parametrize("folded", [False, True])
def test_windows_with_steps_holes_and_groups_by_hand(folded):
    """[2, 5, 4] maps in two groups of one channel, each read by 3 output channels.

    Kernel (3, 2), stride (2, 1), padding (1, 0), dilation (2, 1): 2 rows and 3 columns of windows.
    Rows read: 0 by none (-1, 1, 3 and 1, 3, 5 are the taps), 1 and 3 twice; columns 0 and 3 once, 1
    and 2 twice.
    """
    current = torch.zeros(1, 2, 5, 4)
    for row, column in ((0, 0), (1, 0), (1, 1), (3, 3), (4, 2)):
        current[0, 0, row, column] = 1.0
    current[0, 1, 3, 2] = 1.0
    form = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
    network = nn.Sequential(
        rso.RealSpikeLIF(1), nn.Conv2d(2, 6, (3, 2), **form), rso.MeanOverTime(1)
    )
    if folded:
        network = rso.reparameterize(network, current)
    row = {layer.name: layer for layer in rso.profile(network, current).layers}["1"]
    reached = 2 * 1 + 2 * 2 + 2 * 1 + 2 * 2
    assert row.synops == 3 * reached
    assert row.additions == 3 * reached + 6 * 2 * 3  # and the bias of every output
    assert row.multiplications == 0
    assert row.ann_macs == 6 * 2 * 3 * (3 * 2)
    assert row.firing_rate == pytest.approx(6 / 40)


def test_layers_beside_the_synapses_by_hand():
    """What is added and multiplied by sums, averages, normalization and scaling; ternary spikes."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = rso.RealSpikeLIF(T, decay=0.0, emission="ternary")
            self.linear = nn.Linear(4, 3)
            self.norm = nn.BatchNorm1d(3)
            self.pool = nn.AvgPool2d(2)
            self.sum = SumOverTime(T)

        def forward(self, x):
            spikes = self.lif(x)
            pooled = self.pool(spikes).flatten(1)
            current = self.norm(self.linear(spikes.flatten(1)))
            return self.sum((current + pooled) * 3.0 - 1.0)

    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]]).expand(T, 1, 2, 2)
    rows = {layer.name: layer for layer in rso.profile(Network().eval(), x).layers}
    linear = rows["linear"]
    assert linear.synops == 2 * 3 * T
    assert (linear.additions, linear.multiplications) == (2 * 3 * T + 3 * T, 0)
    assert linear.ann_macs == 12
    assert (rows["norm"].additions, rows["norm"].multiplications) == (3 * T, 3 * T)
    assert (rows["pool"].additions, rows["pool"].multiplications) == (2 * T, T)
    assert (rows["sum"].additions, rows["sum"].multiplications) == (3 * T - 3, 0)
    own = rows["Network"]  # a sum, a difference; a product
    assert (own.additions, own.multiplications) == (2 * 3 * T, 3 * T)


# A product of maps: three queries and three keys of two channels, in every one of T frames.
LEFT = torch.tensor([[1.0, 0], [1, 1], [0, 0]])  # 2 spikes of channel 0, 1 of channel 1
RIGHT = torch.tensor([[0.0, 1], [1, 1], [1, 0]])  # 2 and 2


class Meeting(nn.Module):
    """Gives neurons' spikes, or what is as many times as large, to a function in a layer."""

    class Layer(nn.Module):
        def __init__(self, of, shape):
            super().__init__()
            self.of = of
            self.kernel = nn.Parameter(torch.full(shape, 2.0))

        def forward(self, left, right):
            return self.of(left, right, self.kernel)

    def __init__(self, of, left=1.0, right=1.0, kernel=(2, 4)):
        super().__init__()
        self.lif, self.layer = rso.RealSpikeLIF(T, decay=0.0), self.Layer(of, kernel)
        self.left, self.right = left, right

    def forward(self, x):  # [T*B, 2, 3, 2]
        left, right = self.lif(x).unbind(1)
        return self.layer(left * self.left, right * self.right)


def counts_of(network):
    """Return additions, multiplications and the ANN's multiply-adds of two samples of T frames."""
    report = rso.profile(network.eval(), torch.stack([LEFT, RIGHT]).expand(2 * T, 2, 3, 2))
    assert report.samples == 2
    (row,) = (layer for layer in report.layers if layer.name == "layer")
    assert row.kind == "synapses"
    assert row.synops <= row.additions
    assert row.effective_acs + row.effective_macs <= row.dense_operations == T * row.ann_macs
    return row.additions / T, row.multiplications / T, row.ann_macs


def scores(left, right, _):
    return left @ right.mT


@pytest.mark.parametrize(
    "of",
    [
        scores,
        lambda q, k, _: torch.bmm(q, k.mT),
        lambda q, k, _: k @ q.mT,
        lambda q, k, _: torch.einsum("bnc,bmc->bnm", q, k),
        lambda q, k, _: torch.einsum("bnc,bmc->bmn", q, k),
        lambda q, k, _: torch.baddbmm(q.new_empty(()), q, k.mT, beta=0),
        lambda q, k, _: (q.unflatten(0, (T, -1)) @ k.unflatten(0, (T, -1)).mT).flatten(0, 1),
        lambda q, k, _: torch.stack([q[t] @ k[t].mT for t in range(len(q))]),
        lambda q, k, _: torch.stack([q[t] @ k[t, m] for m in range(3) for t in range(len(q))]),
    ],
)
@pytest.mark.parametrize(
    ("left", "right", "additions", "multiplications"),
    [
        (1.0, 1.0, 2 * 2 + 1 * 2, 0),  # where both fire
        (1.0, 2.5, 3 * 3, 0),  # three spikes meet three keys each
        (2.5, 1.0, 4 * 3, 0),  # four spikes meet three queries each
        (-1.0, 1.0, 2 * 2 + 1 * 2, 0),
        (2.5, 2.5, 2 * 2 + 1 * 2, 2 * 2 + 1 * 2),  # where neither is 0
    ],
)
def test_products_of_maps_by_hand(of, left, right, additions, multiplications):
    counts = counts_of(Meeting(of, left, right))
    assert counts == (additions, multiplications, 3 * 3 * 2)


@pytest.mark.parametrize(
    ("of", "additions", "dense"),
    [
        # One map beside four heads: 2 * 2 + 1 * 2 pairs each.
        (lambda q, k, _: q[:, None] @ k.mT[:, None].expand(-1, 4, -1, -1), 4 * 6, 4 * 18),
        (lambda q, k, _: torch.einsum("bnc,bhmc->bhnm", q, k[:, None].repeat(1, 4, 1, 1)), 24, 72),
        # Keys by values, over tokens: 2 * 2 + 2 * 1 spikes of both, and the other way round.
        (lambda q, k, _: k.mT @ q, 2 + 2 + 1, 2 * 3 * 2),
        (lambda q, k, _: torch.einsum("bnc,bnd->bdc", k, q), 2 + 2 + 1, 2 * 3 * 2),
        # Every token by itself: the second has two spikes in both.
        (lambda q, k, _: q[:, :, None] @ k[..., None], 2, 3 * 2),
        # A kernel: every one of three spikes meets four weights.
        (lambda q, _, w: q @ w, 3 * 4, 3 * 2 * 4),
        (lambda q, _, w: w.mT @ q.mT, 3 * 4, 3 * 2 * 4),
        (lambda q, _, w: torch.einsum("cd,bnc->bnd", w, q), 3 * 4, 3 * 2 * 4),
        (lambda q, _, w: torch.bmm(q, w.expand(len(q), 2, 4)), 3 * 4, 3 * 2 * 4),
        (lambda q, _, w: q @ w.clone(), 3 * 4, 3 * 2 * 4),
        (lambda q, _, w: torch.stack([torch.mv(x, w[:, 0]) for x in q]), 3, 3 * 2),
        (lambda q, _, w: torch.stack([w[:, 1] @ x.mT for x in q]), 3, 3 * 2),
        (lambda q, _, w: torch.stack([torch.dot(x[1], w[:, 1]) for x in q]), 2, 2),
        # And a sum that it is added to.
        (lambda q, k, _: torch.baddbmm(q.new_ones(3), q, k.mT), 6 + 9, 18),
        (lambda q, k, w: torch.stack([torch.addmv(w[0, :3], x, w[:, 0]) for x in q]), 3 + 3, 6),
    ],
)
def test_products_of_spikes_by_hand(of, additions, dense):
    assert counts_of(Meeting(of)) == (additions, 0, dense)


def test_a_kernel_of_ones_is_no_map_of_spikes():
    network = Meeting(lambda q, _, w: q @ w, left=2.5)
    network.layer.kernel.data.fill_(1.0)
    assert counts_of(network) == (3 * 4, 3 * 4, 24)


def test_what_a_product_is_scaled_by_is_multiplied():
    of = [
        lambda q, k, _: torch.baddbmm(q.new_ones(3), q, k.mT, alpha=0.5),
        lambda q, k, _: torch.baddbmm(q.new_ones(3), q, k.mT, beta=0.5),
        lambda q, k, _: torch.baddbmm(q.new_ones(3), q, k.mT, beta=0, alpha=2),
    ]
    assert [counts_of(Meeting(one))[:2] for one in of] == [(15, 9), (15, 9), (6, 9)]


def test_attention_with_a_softmax_by_hand():
    """Scores of spikes are added up, and scaled; values are multiplied where they are no spikes."""
    attention = nn.functional.scaled_dot_product_attention

    def of(heads, values):
        def call(q, k, _):
            q, k = q[:, None].repeat(1, heads, 1, 1), k[:, None]
            return attention(q, k, values(k), enable_gqa=heads > 1)

        return counts_of(Meeting(call))

    assert of(1, torch.clone) == (6 + 4 * 3, 9, 18 + 18)
    assert of(4, torch.clone) == (4 * (6 + 4 * 3), 4 * 9, 4 * (18 + 18))
    # Every score, which is above 0, meets the four values that are not.
    assert of(1, lambda k: k.where(k == 0, 2.5)) == (6 + 12, 9 + 12, 18 + 18)


def test_a_whole_attention_layer_is_counted():
    """Of three tokens: projections into queries, keys and values, the scores, and back."""
    layer = nn.MultiheadAttention(2, 1, batch_first=True)
    enabled = torch.backends.mha.get_fastpath_enabled()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif, self.layer = rso.RealSpikeLIF(T, decay=0.0), layer

        def forward(self, x):
            x = self.lif(x)
            return self.layer(x, x, x, need_weights=False)[0]

    x = LEFT.expand(2 * T, 3, 2)
    rows = {row.name: row for row in rso.profile(Network().eval(), x).layers}
    assert rows["layer"].ann_macs == 3 * 2 * 6 + 18 + 18 + 3 * 2 * 2
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("frames", [False, True])
def test_layers_of_tokens_count_every_token(frames):
    """Five tokens in front of neurons, behind them, and behind the mean over time."""
    network = nn.Sequential(
        *(nn.Linear(2, 3), nn.Identity() if frames else rso.DirectEncoding(T), rso.RealSpikeLIF(T)),
        *(nn.Linear(3, 4), rso.MeanOverTime(T), nn.Linear(4, 2), nn.Flatten(), nn.Linear(10, 3)),
    ).eval()
    x = normal((3 * T if frames else 3, 5, 2), 1)
    rows = {row.name: row.ann_macs for row in rso.profile(network, x).layers}
    expected = {"0": 5 * 2 * 3, "3": 5 * 3 * 4, "5": 5 * 4 * 2, "7": 10 * 3}
    assert {name: rows[name] for name in expected} == expected


def test_lazy_layers_are_profiled():
    network = nn.Sequential(rso.RealSpikeLIF(1), nn.Flatten(), nn.LazyLinear(3))
    assert rso.profile(network, normal((2, 1, 2, 2), 0)).total("ann_macs") == 4 * 3


def test_the_table_has_units():
    """Counts with k, M, G and T; energies from pJ to mJ; the total adds up every column."""
    counts = [999, 1000, 2_500_000, 3e9, 4e12]
    layers = [
        LayerProfile(
            f"layer{n}",
            "synapses",
            0.125,
            synops=c,
            additions=c,
            ann_macs=c / 1000,
            weight_bytes=n * 1024,
        )
        for n, c in enumerate(counts)
    ]
    *lines, last = str(ProfileReport(7, layers)).splitlines()
    assert (
        last == "One sample takes 4.003 T additions and 3603 mJ, 196 times the 18.41 mJ of the ANN."
    )
    assert lines[0].startswith("per sample, mean of 7; energy: 0.9 pJ per addition, 4.6 pJ per")
    rows = [re.split(r"  +", line) for line in lines[2:]]
    assert [row[-6] for row in rows] == ["999", "1 k", "2.5 M", "3 G", "4 T", "4.003 T"]
    energies = ["899.1 pJ", "900 pJ", "2.25 uJ", "2.7 mJ", "3600 mJ", "3603 mJ"]
    assert [row[-3] for row in rows] == energies
    assert [row[-1] for row in rows] == ["0 B", "1 KiB", "2 KiB", "3 KiB", "4 KiB", "10 KiB"]
    assert [row[2] for row in rows[:-1]] == ["12.5%"] * 5
    assert len({len(line) for line in lines[1:]}) == 1


def test_a_folded_network_is_profiled_by_the_names_of_the_trained_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv_a, self.conv_b = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
            self.lif_a, self.lif = (rso.RealSpikeLIF(2, "element", (2, 4, 4)) for _ in range(2))

        def forward(self, x):
            return self.lif(self.conv_b(self.lif_a(self.conv_a(x))) + x)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 2, 3, padding=1)
            self.encode = rso.DirectEncoding(2)
            self.lif = rso.RealSpikeLIF(2, "element", (2, 4, 4))
            self.blocks = nn.Sequential(Block(), Block())
            self.head_of = nn.Sequential(nn.Flatten(), nn.Linear(32, 3))

        def forward(self, x):
            return self.head_of(self.blocks(self.lif(self.encode(self.first(x)))))

    network, x = Network().eval(), torch.rand(1, 1, 4, 4)
    folded = rso.reparameterize(network, x)
    names = [layer.name for layer in rso.profile(folded, x, names_of=network).layers]
    assert {"blocks.1.lif", "blocks.1.lif_a", "blocks.1.conv_a", "head_of.1"} < set(names)
    assert {"blocks.0.lif from lif", "blocks.1.lif from blocks.1.lif_a"} < set(names)
    by_itself = {layer.name for layer in rso.profile(folded, x).layers}
    assert by_itself - set(names) == {"head_of_1"}, "what holds no neurons is not known"


def test_reports_show_as_tables_in_notebooks():
    layers = [LayerProfile("a<b>", "synapses", 0.5, synops=3.0, additions=3.0, ann_macs=1.0)]
    shown = ProfileReport(2, layers)._repr_html_()
    assert shown.count("<tr>") == 3
    assert "a&lt;b&gt;" in shown
    assert "<a<b>" not in shown
    assert "One sample takes 3 additions and 2.7 pJ, 0.587 times the 4.6 pJ of the ANN." in shown
    report = rso.VerificationReport(4, layers=[rso.LayerReport("lif", flipped_spikes=2)])
    shown = report._repr_html_()
    assert "4 samples: same prediction for 100.00%" in shown
    assert shown.count("<tr>") == 2
    assert ">2</td>" in shown
