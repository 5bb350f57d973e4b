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
    events = T * 2 * (4 + 9) * 5 / 4
    trained = rso.profile(network.eval(), current)
    by_name = {layer.name: layer for layer in trained.layers}
    assert trained.samples == 4
    assert by_name["1"].synops == by_name["1"].multiplications == events
    assert by_name["1"].firing_rate == by_name["0"].firing_rate == pytest.approx(2 / 9)
    assert by_name["1"].ann_macs == 9 * 5 * 9
    assert by_name["0"].multiplications == 9
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
    assert {name: row.additions for name, row in rows.items()} == dict.fromkeys(lifs, 9.0)
    assert {n: r.multiplications for n, r in rows.items()} == {"if": 0, "lif": 9, "plif": 9}

    class Packed(nn.Module):
        def forward(self, x):
            return rso.lif(x.unflatten(0, (T, -1)), decay=1.0, packed=True)

    (row,) = rso.profile(nn.Sequential(Packed()), current).layers
    assert (row.kind, row.additions, row.multiplications) == ("neurons", 9.0, 0.0)
