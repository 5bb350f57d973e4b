"""profile: counts by hand, and of whole networks."""

import json

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
    for row, layer in zip(str(report).splitlines()[2:], report.layers, strict=False):
        assert row.startswith(layer.name)
    with pytest.raises(TypeError, match=r"network must be an nn\.Module"):
        rso.profile(3, x)


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
