"""NIR graphs: their numbers by hand, what is refused, and the way back."""

import itertools
import subprocess
import sys
import warnings

import nir_networks
import numpy as np
import pytest
import torch
from fold_networks import Neurons, images_for, make
from torch import nn

import realspike_ops as rso

nir = pytest.importorskip("nir")


def exported(model, x, **options):
    return rso.export_nir(rso.reparameterize(model, x), **options)


def lif_nodes(graph):
    return {name: node for name, node in graph.nodes.items() if isinstance(node, nir.LIF)}


def chain(*nodes, shape, metadata=None):
    """A graph of nodes one behind the other."""
    names = ["input", *(f"n{n}" for n in range(len(nodes))), "output"]
    ends = nir.Input({"input": np.array(shape)}), nir.Output({"output": None})
    named = dict(zip(names, (ends[0], *nodes, ends[1]), strict=True))
    return nir.NIRGraph(named, list(itertools.pairwise(names)), metadata=metadata or {})


def lif(shape, tau=2e-4, r=2.0, threshold=1.0, leak=0.0, reset=0.0):
    values = (tau, r, leak, threshold, reset)
    return nir.LIF(*(np.full(shape, value, np.float64) for value in values))


# --- export ---------------------------------------------------------------------------------------


def test_nodes_by_hand(tmp_path):
    conv = nn.Conv2d(1, 2, (1, 3), padding=(0, 1), groups=1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2.0, 3.0]]], [[[4.0, 5.0, 6.0]]]]))
    lif = rso.RealSpikeLIF(3, decay=0.75, v_threshold=0.5)
    grouped = nn.Conv2d(2, 2, 1, groups=2)
    with torch.no_grad():
        grouped.weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
        grouped.bias.copy_(torch.tensor([0.25, 0.5]))
    lif1 = rso.RealSpikeLIF(3, decay=1.0, v_threshold=1.0)
    model = nn.Sequential(rso.DirectEncoding(3), conv, lif, grouped, lif1).eval()
    written = exported(model, torch.zeros(1, 1, 4, 5), path=tmp_path / "a.nir", dt=1e-3)
    for graph in (written, nir.read(tmp_path / "a.nir")):
        assert set(graph.edges) == {
            *(("input", "1"), ("1", "2"), ("2", "3"), ("3", "4"), ("4", "output"))
        }
        first, second = graph.nodes["1"], graph.nodes["3"]
        expected = np.zeros((2, 1, 3, 3), np.float32)
        expected[:, 0, 1] = [[1, 2, 3], [4, 5, 6]]  # in the middle row of a square
        assert np.array_equal(first.weight, expected)
        assert (tuple(first.padding), tuple(first.stride)) == ((1, 1), (1, 1))
        assert np.array_equal(first.bias, [0, 0])
        assert np.array_equal(second.weight[:, :, 0, 0], [[2, 0], [0, 3]])
        assert np.array_equal(second.bias, [0.25, 0.5])
        leaky, integrating = graph.nodes["2"], graph.nodes["4"]
        assert leaky.tau.shape == (2, 4, 5)
        assert np.allclose(leaky.tau, 4e-3, rtol=1e-12)
        assert np.allclose(leaky.r, 4, rtol=1e-12)
        assert np.array_equal(leaky.v_threshold.view(np.int32), np.full((2, 4, 5), 0x3EFFFFFF))
        assert not leaky.v_leak.any()
        assert not leaky.v_reset.any()
        assert (integrating.tau == 2**30 * 1e-3).all()
        assert (integrating.r == 2**30).all()
        assert graph.metadata["timesteps"] == 3
        assert graph.metadata["dt"] == 1e-3
        assert graph.metadata["encoding"] == "repeat"
        assert graph.metadata["readout"] == "none"
        assert graph.metadata["realspike_version"] == rso.__version__


def test_an_element_of_the_matrix_by_hand():
    """An amplitude for every pixel: position (1, 0) of a 1 x 2 kernel reads pixels 2 and 3."""
    lif = rso.RealSpikeLIF(2, "element", (1, 2, 2))
    with torch.no_grad():
        lif.amplitude.copy_(torch.tensor([[[1.0, 2.0], [4.0, 8.0]]]))
    conv = nn.Conv2d(1, 1, (1, 2), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[3.0, 5.0]]]]))
    model = nn.Sequential(lif, conv, rso.RealSpikeLIF(2)).eval()
    graph = exported(model, torch.zeros(2, 1, 2, 2))
    (dense,) = (node for node in graph.nodes.values() if isinstance(node, nir.Affine))
    assert np.array_equal(dense.weight, [[3, 10, 0, 0], [0, 0, 12, 40]])
    (flatten,) = (node for node in graph.nodes.values() if isinstance(node, nir.Flatten))
    assert (flatten.start_dim, flatten.end_dim) == (-3, -1)
    assert graph.nodes["2"].tau.shape == (2,)
    assert list(graph.metadata["output_shape"]) == [1, 2, 1]


@pytest.mark.parametrize("decay", [2.0**-24, 0.1, 0.25, 0.3, 2 / 3, 0.999, 1 - 2.0**-24, 1.0])
def test_decays_to_the_last_bit(decay):
    model = nn.Sequential(rso.RealSpikeLIF(1, decay=decay), nn.Conv2d(1, 1, 1)).eval()
    (node,) = lif_nodes(exported(model, torch.zeros(1, 1, 2, 2))).values()
    for tau in np.unique(node.tau):
        assert np.float32(1 - 1e-4 / tau) == np.float32(decay)
        assert np.float32(1 - 1 / (tau / 1e-4)) == np.float32(decay)


def test_learned_decays_and_thresholds_of_a_layer():
    lif = rso.RealSpikeLIF(1, decay_granularity="layer", threshold_granularity="layer")
    with torch.no_grad():
        lif.v_threshold.fill_(0.75)
    model = nn.Sequential(lif, nn.Conv2d(1, 1, 1)).eval()
    (node,) = lif_nodes(exported(model, torch.zeros(1, 1, 2, 2))).values()
    assert (np.nextafter(node.v_threshold, np.float32(1)) == np.float32(0.75)).all()
    assert (np.float32(1 - 1e-4 / node.tau) == np.float32(lif.decay.item())).all()


def test_the_hash_is_of_layers_and_weights():
    def hash_of(model, x):
        return exported(model, x).metadata["sha256"]

    model, x = nir_networks.network("vgg", 2)
    first = hash_of(model, x)
    assert len(first) == 64
    assert hash_of(model, x) == first
    assert hash_of(nir_networks.network("vgg", 3)[0], x) != first
    assert hash_of(nir_networks.network("vgg", 2, decay=0.26)[0], x) != first
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    assert hash_of(model, x) != first


def test_the_hash_of_a_bias_of_one_channel():
    """One number out of a map, with the stride of the map."""
    model = nn.Sequential(rso.RealSpikeLIF(1, "element", (2, 4, 4)), nn.Conv2d(2, 1, 2)).eval()
    assert exported(model, torch.zeros(1, 2, 4, 4)).metadata["sha256"]


def test_a_file_needs_nir_alone(tmp_path):
    model, x = nir_networks.network("residual", 4, granularity="channel")
    graph = exported(model, x, path=str(tmp_path / "net.nir"))
    program = (
        "import sys, nir\n"
        "graph = nir.read(sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
        "print(len(graph.nodes), len(graph.edges), int(graph.metadata['timesteps']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "net.nir"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(len(graph.nodes)), str(len(graph.edges)), "4"]


def test_names_that_would_hide_something():
    names = ("state", "items", "first", "is_none", "a/b")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            for name in names:
                layer = rso.RealSpikeLIF(1) if name in ("items", "is_none") else nn.Conv2d(1, 1, 1)
                self.add_module(name, layer)

        def forward(self, x):
            for name in names:
                x = getattr(self, name)(x)
            return x

    graph = exported(Model().eval(), torch.zeros(1, 1, 2, 2))
    assert list(graph.nodes) == [
        *("input", "state_2", "node_items", "first", "is_none_2", "a_b", "output")
    ]


def sequence(*layers, T=2):
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), *layers).eval(), torch.zeros(T, 1, 4, 4)


def neurons(**form):
    return rso.RealSpikeLIF(2, **form)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([neurons(emission="ternary")], "'1'.*emission='ternary'.*train with"),
        ([neurons(v_reset=None)], "'1'.*'soft'.*reset='hard'"),
        ([neurons(reset="none")], "'1'.*'none'"),
        ([neurons(v_reset=0.25)], "'1'.*v_reset=0.25"),
        ([neurons(decay=0.0)], "'1'.*decay 0"),
        ([neurons(decay=1e-9)], "'1'.*decay 1e-09"),
        ([neurons(v_threshold=0.0)], "'1'.*above 0"),
        ([neurons(), nn.MaxPool2d(2)], "'2' is a SpikeMaxPool2d.*average"),
        ([nn.ReLU(), neurons()], r"'1' of the encoding.*\(ReLU\): it is not linear"),
        ([nn.MaxPool2d(2), neurons()], r"'1' of the encoding.*\(MaxPool2d\)"),
    ],
)
def test_refused(layers, message):
    model, x = sequence(*layers, nn.Conv2d(2, 2, 1))
    folded = rso.reparameterize(model, x)
    with pytest.raises(ValueError, match=message):
        rso.export_nir(folded)


class Adding(nn.Module):
    """Adds the spikes of two layers, one of them twice, in front of one convolution."""

    def __init__(self, twice: bool):
        super().__init__()
        self.twice = twice
        self.a, self.lif_a, self.b = nn.Conv2d(1, 2, 1), neurons(), nn.Conv2d(2, 2, 3, padding=1)
        self.lif_b, self.c, self.lif_c = neurons(), nn.Conv2d(2, 3, 3, padding=1), neurons()

    def forward(self, x):
        x = self.lif_a(self.a(x))
        y = self.lif_b(self.b(x))
        return self.lif_c(self.c(x + y + y if self.twice else x + y))


@pytest.mark.parametrize("twice", [False, True])
def test_spikes_that_are_added_meet_in_one_node_if_their_weights_are_equal(twice):
    model, x = nir_networks.on_a_grid(Adding(twice), seed=1), nir_networks.image(6, 1, 5, 4)
    with torch.no_grad():
        model.c.bias.fill_(0.125)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded)
    readers = [name for source, name in graph.edges if source == "lif_b"]
    assert len(readers) == 1
    assert (("lif_a", *readers) in graph.edges) == (not twice)
    into = [name for name, target in graph.edges if target == "lif_c"]
    assert sum(graph.nodes[name].bias for name in into).tolist() == [0.125] * 3
    with torch.no_grad():
        expected = folded(x)
        assert 0 < expected.sum() < expected.numel()
        assert torch.equal(rso.import_nir(graph)(x), expected)


class Repeating(nn.Module):
    """Repeats what it encodes in a way of its own."""

    def __init__(self, repeat):
        super().__init__()
        self.repeat, self.encode = repeat, nn.Conv2d(2, 3, 3)
        self.lif, self.read, self.total = rso.RealSpikeLIF(4), nn.Linear(12, 3), rso.SumOverTime(4)

    def forward(self, x):
        return self.total(self.read(self.lif(self.repeat(self.encode(x))).flatten(1)))


@pytest.mark.parametrize(
    "repeat",
    [
        lambda x: x.repeat(4, 1, 1, 1),
        lambda x: x.unsqueeze(0).repeat(4, 1, 1, 1, 1).flatten(0, 1),
        lambda x: torch.cat([x, x, x, x]),
        lambda x: x[None].expand(4, *x.shape).reshape(4 * x.shape[0], *x.shape[1:]),
        lambda x: torch.cat(torch.cat(x.chunk(3, 1), 1).split([1, 2], 1), 1).repeat(4, 1, 1, 1),
    ],
)
def test_repetition_over_time_is_found_however_it_is_written(repeat):
    model, x = nir_networks.on_a_grid(Repeating(repeat)), nir_networks.image(3, 2, 4, 4)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded)
    assert graph.metadata["encoding"] == "repeat"
    assert list(graph.nodes)[:3] == ["input", "encode", "lif"]
    with torch.no_grad():
        assert torch.equal(rso.import_nir(graph)(x), folded(x))


def test_a_number_of_the_whole_batch_is_refused():
    model, x = Repeating(lambda x: (x - x.min()).repeat(4, 1, 1, 1)), torch.rand(1, 2, 4, 4)
    with pytest.raises(ValueError, match=r"of the encoding.*'min_1'.*not linear"):
        rso.export_nir(rso.reparameterize(model.eval(), x))


def test_neurons_that_read_the_image_and_neurons():
    layers = (neurons(), neurons(v_threshold=1.0), nn.Conv2d(1, 1, 1))
    folded = rso.reparameterize(nn.Sequential(*layers).eval(), torch.zeros(2, 1, 2, 2))
    graph = rso.export_nir(folded)
    assert graph.edges[:2] == [("input", "0"), ("0", "1")]
    with pytest.warns(UserWarning, match="'0', '1'"):
        relayed = rso.export_nir(folded, fold_r=True, dt=1.0)
    gains = [n.weight.item() for n in relayed.nodes.values() if isinstance(n, nir.Conv2d)]
    assert gains == pytest.approx([1 / 0.75, 1 / 0.75, layers[2].weight.item()])


@pytest.mark.parametrize("field", ["threshold", "decay"])
def test_numbers_of_single_neurons_are_refused(field):
    lif = neurons(shape=(2, 4, 4), **{f"{field}_granularity": "channel"})
    with torch.no_grad():
        parameter = lif.v_threshold if field == "threshold" else lif.decay_logit
        parameter[0] += 0.5
    model, x = sequence(lif, nn.Conv2d(2, 2, 1))
    with pytest.raises(ValueError, match=f"'1': its {field} must be one number.*2 different"):
        exported(model, x)


def test_int8_in_steps_of_any_scale_is_refused():
    model, x = nir_networks.network("vgg", 2)
    with torch.no_grad():
        model[2].weight.mul_(0.3)
    folded = rso.reparameterize(model, x, weight_dtype=torch.int8)
    with pytest.raises(ValueError, match=r"int8.*scales='power_of_two'.*float32"):
        rso.export_nir(folded)


def test_int8_in_steps_of_powers_of_two_is_what_it_stands_for(one_thread):
    """Weights of up to 127/128 or 127/64 are whole steps of 1/128 and 1/64: nothing is rounded."""
    model, x = nir_networks.network("vgg", 3)
    for name, layer in model.named_children():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and name in ("2", "8"):
            with torch.no_grad():
                steps = torch.tensor([1 / 128, 1 / 64]).repeat(4)[: len(layer.weight)]
                steps = steps.view(-1, *(1,) * (layer.weight.dim() - 1))
                layer.weight.copy_((layer.weight * 32).round() * steps)
                layer.weight.flatten(1)[:, 0] = 127 * steps.flatten()
    # What follows the pooling is folded with it: four weights of a quarter.
    with torch.no_grad():
        model[5].weight.copy_(model[5].weight.round() / 4)
        model[5].weight[:, 0, 0, 0] = 127 / 64
    exact = rso.reparameterize(model, x)
    folded = rso.reparameterize(model, x, weight_dtype=torch.int8)
    graph, expected = rso.export_nir(folded), rso.export_nir(exact)
    for node, other in zip(graph.nodes.values(), expected.nodes.values(), strict=True):
        for field in ("weight", "bias", "tau", "v_threshold"):
            if hasattr(node, field):
                assert np.array_equal(getattr(node, field), getattr(other, field))
    with torch.no_grad():
        assert torch.equal(rso.import_nir(graph)(x), folded(x))


def test_several_outputs_are_refused():
    class Two(Adding):
        def forward(self, x):
            y = self.lif_a(self.a(x))
            return y, self.lif_b(self.b(y))

    with pytest.raises(ValueError, match=r"several outputs, 'lif_a', 'lif_b', .*one tensor"):
        exported(Two(False).eval(), torch.zeros(2, 1, 3, 3))


def test_hooks_are_refused():
    model, x = nir_networks.network("vgg", 2)
    folded = rso.reparameterize(model, x)
    handle = folded.get_submodule("3").register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="'3' has forward hooks"):
        rso.export_nir(folded)
    handle.remove()
    folded.get_submodule("3").forward = lambda x: -x
    with pytest.raises(ValueError, match="'3' has a forward of its own"):
        rso.export_nir(folded)


def test_arguments_are_checked():
    model, x = nir_networks.network("features", 2)
    folded = rso.reparameterize(model, x)
    with pytest.raises(TypeError, match=r"FoldedNetwork.*Sequence"):
        rso.export_nir(model)
    with pytest.raises(ValueError, match="dt must be above 0"):
        rso.export_nir(folded, dt=0.0)
    with pytest.raises(ValueError, match=r"weights must be one of.*int8"):
        rso.export_nir(folded, weights="int8")
    with pytest.raises(ValueError, match="max_bytes"):
        rso.export_nir(folded, max_bytes=0)
    with pytest.raises(TypeError, match="path must be"):
        rso.import_nir(3)
    with pytest.raises(ValueError, match="granularity must be one of"):
        rso.import_nir(rso.export_nir(folded), granularity="pixel")


def test_dense_matrices_are_guarded():
    """16 channels on 32 x 32: 16384 x 16384 float32 are 1 GiB, and nothing of it is allocated."""
    lif = rso.RealSpikeLIF(1, "element", (16, 32, 32))
    with torch.no_grad():
        lif.amplitude[0, 0, 0] = 2
    layers = (lif, nn.Conv2d(16, 16, 3, padding=1), rso.RealSpikeLIF(1))
    folded = rso.reparameterize(nn.Sequential(*layers).eval(), torch.zeros(1, 16, 32, 32))
    with pytest.raises(ValueError, match=r"bytes\), more than max_bytes \(1 GiB\)") as raised:
        rso.export_nir(folded)
    for word in (
        "the largest are '1' 1 GiB",
        "(1,074,659,328 bytes)",
        "'channel'",
        "save_folded",
        "Or raise max_bytes",
    ):
        assert word in str(raised.value)


def test_weights_in_float16_are_exact_or_refused():
    model, x = nir_networks.network("vgg", 2)
    folded = rso.reparameterize(model, x)
    half = rso.export_nir(folded, weights="float16")
    for name, node in rso.export_nir(folded).nodes.items():
        if hasattr(node, "weight"):
            assert half.nodes[name].weight.dtype == np.float16
            assert np.array_equal(half.nodes[name].weight, node.weight)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = 1 / 3
    with pytest.raises(ValueError, match="weights='float16' would round the weights of '0'"):
        exported(model, x, weights="float16")


def test_r_of_one_warns_where_weights_are_rounded():
    model, x = nir_networks.network("features", 2, decay=0.25)
    with pytest.warns(UserWarning, match="fold_r=True rounds the weights that reach '1', '3'"):
        graph = exported(model, x, fold_r=True)
    assert all((node.r == 1).all() for node in lif_nodes(graph).values())
    plain = exported(model, x)
    assert np.allclose(graph.nodes["2"].weight, plain.nodes["2"].weight / 0.75, rtol=1e-6)
    assert np.array_equal(graph.nodes["4"].weight, plain.nodes["4"].weight)  # class currents
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exported(nir_networks.network("features", 2, decay=0.5)[0], x, fold_r=True)


# --- import ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "granularity"),
    [
        *((name, "none" if name == "features" else "channel") for name in nir_networks.NAMES),
        *((name, "element") for name in ("vgg", "depthwise", "even", "strided-uneven", "lines")),
    ],
)
def test_round_trip_of_a_grid(name, granularity, tmp_path, one_thread):
    model, x = nir_networks.network(name, 4, decay=0.3, granularity=granularity)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded, tmp_path / "net.nir")
    imported = rso.import_nir(tmp_path / "net.nir").eval()
    with torch.no_grad():
        expected = folded(x)
        assert torch.equal(imported(x), expected)
        again = rso.reparameterize(imported, x)
        assert torch.equal(again(x), expected)
    assert_equal_arrays(rso.export_nir(again), graph)


@pytest.mark.parametrize("family", ["vgg-average", "resnet20", "branches"])
@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_round_trip_of_trained_weights(family, granularity, one_thread):
    model, x = make(family, Neurons(granularity)), images_for(family)
    folded = rso.reparameterize(model, x)
    graph = rso.export_nir(folded)
    assert_equal_arrays(rso.export_nir(rso.reparameterize(rso.import_nir(graph), x)), graph)


def assert_equal_arrays(graph, expected):
    assert len(graph.edges) == len(expected.edges)
    kinds = [[type(node) for node in g.nodes.values()] for g in (graph, expected)]
    assert kinds[0] == kinds[1]
    for node, other in zip(graph.nodes.values(), expected.nodes.values(), strict=True):
        for field in ("weight", "bias", "tau", "r", "v_threshold", "stride", "padding"):
            if hasattr(node, field):
                assert np.array_equal(getattr(node, field), getattr(other, field)), field


def test_imported_layers_train_and_fold():
    model, x = nir_networks.network("vgg", 2)
    imported = rso.import_nir(exported(model, x), granularity="element")
    neurons = [m for m in imported.modules() if isinstance(m, rso.RealSpikeLIF)]
    assert [tuple(lif.amplitude.shape) for lif in neurons] == [
        *((4, 6, 6), (4, 6, 6), (6, 3, 3), (8,))
    ]
    kinds = {type(m) for m in imported.children()}
    assert kinds == {
        *(nn.Conv2d, nn.Linear, nn.Flatten, rso.RealSpikeLIF, rso.DirectEncoding),
        rso.SumOverTime,
    }
    optimizer = torch.optim.SGD(imported.parameters(), lr=0.01)
    imported(x).pow(2).sum().backward()
    optimizer.step()
    assert any((lif.amplitude != 1).any() for lif in neurons)
    folded = rso.reparameterize(imported, x)
    report = rso.verify(imported.eval(), folded, x)
    assert report.flipped_spikes == 0
    assert report.max_logit_error < 1e-5


def test_thresholds_of_nir_are_exceeded():
    node = nir.LIF(*(np.full((3,), v, np.float32) for v in (2e-4, 2.0, 0.0, 1.0, 0.0)))
    network = rso.import_nir(chain(node, shape=(3,)), timesteps=1)
    above = np.nextafter(np.float32(1), np.float32(2))
    assert network(torch.tensor([[0.5, 1.0, above]])).tolist() == [[0, 0, 1]]


def test_a_step_of_nir_by_hand():
    """tau = 4 dt and r = 2: h = 3/4 v + 1/2 x, above 1."""
    network = rso.import_nir(chain(lif((1,), tau=4e-4, r=2.0), shape=(1,)), timesteps=4)
    currents = torch.tensor([[1.0], [1.0], [1.5], [2.5]])
    # 0.5; 0.875; 0.65625 + 0.75 = 1.40625 fires; from 0: 1.25 fires
    assert network(currents).flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("r", [1.0, 1e4])
def test_integrate_and_fire(r):
    node = nir.IF(np.full((1,), r), np.full((1,), 1.0), np.zeros(1))
    network = rso.import_nir(chain(node, shape=(1,)), timesteps=4)
    # 0.5; 1.0 is not above 1; 1.5 fires; from 0
    assert network(torch.full((4, 1), 0.5)).flatten().tolist() == [0, 0, 1, 0]


def test_pools_scale_flatten_and_sums_by_hand():
    ones = np.array([2, 2]), np.array([2, 2]), np.array([0, 0])
    x = torch.arange(16.0).view(1, 1, 4, 4)
    sums = [[10.0, 18.0], [42.0, 50.0]]  # 0 + 1 + 4 + 5, ...
    pooled = rso.import_nir(chain(nir.SumPool2d(*ones), shape=(1, 4, 4)), timesteps=1)
    assert pooled(x)[0, 0].tolist() == sums
    averaged = rso.import_nir(chain(nir.AvgPool2d(*ones), shape=(1, 4, 4)), timesteps=1)
    assert averaged(x)[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    scale = nir.Scale(np.arange(3.0))
    scaled = rso.import_nir(chain(scale, nir.Linear(np.eye(3) * 2), shape=(3,)), timesteps=1)
    assert scaled(torch.tensor([[1.0, 1.0, 2.0]])).tolist() == [[0, 2, 8]]
    flatten = nir.Flatten({"input": np.array([2, 1, 2])}, 0, -1)
    flat = rso.import_nir(chain(flatten, shape=(2, 1, 2)), timesteps=1)
    assert flat(torch.arange(4.0).view(1, 2, 1, 2)).tolist() == [[0, 1, 2, 3]]
    nodes = {
        "input": nir.Input({"input": np.array([1])}),
        "a": nir.Linear(np.array([[2.0]])),
        "b": nir.Affine(np.array([[3.0]]), np.array([0.5])),
        "lif": lif((1,), threshold=100.0),
        "output": nir.Output({"output": np.array([1])}),
    }
    edges = [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output")]
    nodes.pop("lif")
    summed = rso.import_nir(nir.NIRGraph(nodes, edges), timesteps=1)
    assert summed(torch.tensor([[1.0]])).tolist() == [[5.5]]


def test_any_names_of_nodes_are_read():
    names = ["in.put", "lambda", "train", "forward", "0.lif", "out"]
    eye = [nir.Linear(np.eye(1) * n) for n in (2, 3, 5)]
    nodes = [nir.Input({"input": np.array([1])}), *eye, lif((1,), threshold=20.0)]
    named = dict(zip(names, [*nodes, nir.Output({"output": np.array([1])})], strict=True))
    network = rso.import_nir(nir.NIRGraph(named, list(itertools.pairwise(names))), timesteps=1)
    assert network.eval()(torch.tensor([[0.5], [1.0]])).tolist() == [[0.0], [1.0]]


def cuba(shape):
    values = (1e-3, 1e-3, 1.0, 0.0, 1.0, 0.0, 1.0)
    return nir.CubaLIF(*(np.full(shape, v) for v in values))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (lambda: cuba((1,)), "'n0' is a nir.CubaLIF; these are read"),
        (lambda: nir.Threshold(np.ones(1)), "'n0' is a nir.Threshold"),
        (lambda: lif((1,), leak=0.5), "'n0': v_leak must be 0"),
        (lambda: lif((1,), reset=0.5), "'n0': v_reset must be 0"),
        (lambda: lif((1,), tau=5e-5), "'n0': tau must be at least dt"),
        (lambda: nir.IF(np.full(1, 3.0), np.ones(1), np.zeros(1)), "'n0': r of a nir.IF"),
    ],
)
def test_nodes_that_are_not_read(node, message):
    with pytest.raises(ValueError, match=message):
        rso.import_nir(chain(node(), shape=(1,)), timesteps=1)


def test_graphs_that_are_not_read():
    two = lif((2,))
    two.v_threshold = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="'n0': v_threshold must be one number"):
        rso.import_nir(chain(two, shape=(2,)), timesteps=1)
    with pytest.raises(ValueError, match="timesteps must be given"):
        rso.import_nir(chain(lif((1,)), shape=(1,)))
    nodes = {
        "input": nir.Input({"input": np.array([1])}),
        "lif": lif((1,)),
        "back": nir.Linear(np.array([[1.0]])),
        "output": nir.Output({"output": np.array([1])}),
    }
    edges = [("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output")]
    with pytest.raises(ValueError, match=r"recurrent.*'lif'"):
        rso.import_nir(nir.NIRGraph(nodes, edges), timesteps=1)


def test_the_package_is_named_where_it_is_missing(monkeypatch):
    model, x = nir_networks.network("features", 1)
    folded = rso.reparameterize(model, x)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(ImportError, match="pip install nir"):
        rso.export_nir(folded)
    with pytest.raises(ImportError, match="pip install nir"):
        rso.import_nir("net.nir")
