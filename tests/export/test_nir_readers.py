"""Exported networks emit the same spikes in the readers that others use."""

import importlib
import os

import nir_networks
import numpy as np
import pytest
import torch
from fold_networks import Neurons, images_for, make
from nir_readers import PACKAGES, run

import realspike_ops as rso


def needs(reader: str) -> str:
    for package in PACKAGES[reader]:
        pytest.importorskip(package, reason=f"{reader} is not installed: pip install .[peers]")
    return reader


@pytest.fixture(params=["snntorch", "spikingjelly"])
def exact_reader(request):
    """Of LIF neurons with any decay."""
    return needs(request.param)


@pytest.fixture(params=["spikingjelly", "norse"])
def any_dt_reader(request):
    """Of any timestep."""
    return needs(request.param)


@torch.no_grad()
def spikes_of(folded, x):
    """Return what every LIF layer fires, [T*B, ...], and the output."""
    fired, handles = {}, []
    for name, module in folded.named_modules():
        if isinstance(module, rso.FoldedLIF):
            handles.append(
                module.register_forward_hook(
                    lambda module, inputs, spikes, name=name: fired.update({name: spikes.clone()})
                )
            )
    output = folded(x)
    for handle in handles:
        handle.remove()
    return fired, output


def assert_equal_spikes(reader, folded, x, graph, dt=1e-4, output_bound=0.0):
    T = int(graph.metadata["timesteps"])
    expected, output = spikes_of(folded, x)
    frames = x.expand(T, *x.shape) if graph.metadata["encoding"] == "repeat" else None
    frames = x.unflatten(0, (T, -1)) if frames is None else frames
    fired, outputs = run(reader, graph, frames, dt)
    assert set(fired) == set(expected)
    for name, spikes in expected.items():
        assert len(x) == 1 or 0 < spikes.sum() < spikes.numel(), name
        assert torch.equal(fired[name].flatten(), spikes.flatten()), name
    total = outputs.sum(0) if graph.metadata["readout"] == "sum" else outputs.flatten(0, 1)
    assert (total.flatten() - output.flatten()).abs().max() <= output_bound


@pytest.mark.parametrize("name", nir_networks.NAMES)
def test_ties_on_a_grid(exact_reader, name, one_thread):
    for T, decay, granularity in ((1, 0.25, "channel"), (5, 1.0, "layer"), (32, 0.3, "none")):
        model, x = nir_networks.network(
            name, T, decay=decay, granularity="none" if name == "features" else granularity
        )
        folded = rso.reparameterize(model, x)
        graph = rso.export_nir(folded)
        assert_equal_spikes(exact_reader, folded, x, graph)
        assert_equal_spikes(exact_reader, folded, x[:1], graph)


@pytest.mark.parametrize(
    "name", ["vgg", "residual", "depthwise", "even", "features", "lines", "gray"]
)
def test_kernels_of_every_position(exact_reader, name, one_thread):
    model, x = nir_networks.network(name, 4, granularity="element")
    folded = rso.reparameterize(model, x)
    assert_equal_spikes(exact_reader, folded, x, rso.export_nir(folded))


@pytest.mark.parametrize("family", ["vgg-average", "resnet20", "resnet20-odd", "branches"])
@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_trained_weights(exact_reader, family, granularity, tmp_path, one_thread):
    nir = pytest.importorskip("nir")
    model, x = make(family, Neurons(granularity)), images_for(family)
    folded = rso.reparameterize(model, x)
    rso.export_nir(folded, tmp_path / "net.nir")
    # Sums in another order: the spikes are these networks' alone, the currents differ by roundings.
    graph = nir.read(tmp_path / "net.nir")
    assert_equal_spikes(exact_reader, folded, x, graph, output_bound=1e-6)


@pytest.mark.parametrize("granularity", ["channel", "element"])
@pytest.mark.parametrize("name", ["vgg", "residual", "depthwise", "tall-dilated"])
def test_int8_in_steps_of_powers_of_two_is_exact(exact_reader, name, granularity, one_thread):
    """Weights of any size behind an encoding on a grid: outputs too are equal to the last bit."""
    T = 5
    model, x = nir_networks.network(name, T, granularity=granularity, decay=0.3)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("0.", "encode.")):
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=g))
    folded = rso.reparameterize(model, x, weight_dtype=torch.int8, scales="power_of_two")
    rso.assert_exact_sums(folded, x)
    assert_equal_spikes(exact_reader, folded, x, rso.export_nir(folded))


def test_frames_and_spikes_as_output(exact_reader, one_thread):
    T = 3

    class Frames(torch.nn.Sequential):
        pass

    layers = (torch.nn.Conv2d(2, 3, 3), rso.RealSpikeLIF(T, "layer"), torch.nn.Conv2d(3, 4, 2))
    model = nir_networks.on_a_grid(Frames(*layers, rso.RealSpikeLIF(T)))
    x = nir_networks.image(T * 2, 2, 5, 5)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded)
    assert (graph.metadata["encoding"], graph.metadata["readout"]) == ("frames", "none")
    assert_equal_spikes(exact_reader, folded, x, graph)


def test_the_threshold_makes_ties_equal():
    """Without the float below, a tie fires here and not in snnTorch."""
    needs("snntorch")
    model, x = nir_networks.network("vgg", 4)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded)
    assert_equal_spikes("snntorch", folded, x, graph)
    for node in graph.nodes.values():
        if hasattr(node, "v_threshold"):
            assert (node.v_threshold < np.float32(0.5)).all()
            node.v_threshold = np.full_like(node.v_threshold, 0.5)
    with pytest.raises(AssertionError):
        assert_equal_spikes("snntorch", folded, x, graph)


@pytest.mark.parametrize("decay", [0.5, 0.75])
@pytest.mark.parametrize("name", ["vgg", "residual", "wide"])
def test_r_of_one_for_readers_that_ignore_r(any_dt_reader, name, decay, one_thread):
    """Where 1 - decay and dt are powers of two, all roundings on a grid are exact."""
    dt = 2.0**-13
    model, x = nir_networks.network(name, 2, decay=decay, granularity="channel")
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded, dt=dt, fold_r=True)
    assert_equal_spikes(any_dt_reader, folded, x, graph, dt)


@pytest.mark.skipif("REALSPIKE_PEERS" not in os.environ, reason="set where peers are installed")
@pytest.mark.parametrize("reader", sorted(PACKAGES))
def test_readers_are_there_where_they_are_said_to_be(reader):
    for package in PACKAGES[reader]:
        importlib.import_module(package)
