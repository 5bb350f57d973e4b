"""reparameterize, verify and assert_multiplication_free on chains of layers, and what is refused.

The folded network is held to the trained one layer by layer: with the same spikes, a current
differs by no more than the rounding of two float32 sums.
"""

import copy
import json
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from helpers import SLACK, U, assert_within, binary, in_float64, normal, random_batch_norm
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import realspike_ops as rso

GRANULARITIES = ["none", "layer", "channel", "element"]
T = 3


def make_network(granularity="element", seed=0, mean_first=False, **neuron) -> nn.Sequential:
    """Trained, for all that folding can see: nothing in it is trivial."""
    torch.manual_seed(seed)

    def lif(*shape):
        return rso.RealSpikeLIF(T, granularity, shape, **neuron)

    head = [("flatten", nn.Flatten()), ("fc", nn.Linear(128, 10)), ("norm4", nn.BatchNorm1d(10))]
    head.insert(1 if mean_first else 3, ("mean", rso.MeanOverTime(T)))
    network = nn.Sequential(
        OrderedDict(
            [
                ("encode", nn.Conv2d(2, 6, 3, padding=1, bias=False)),
                ("norm1", nn.BatchNorm2d(6)),
                ("repeat", rso.DirectEncoding(T)),
                ("lif1", lif(6, 8, 8)),
                ("conv2", nn.Conv2d(6, 8, 3, stride=2, padding=1)),
                ("norm2", nn.BatchNorm2d(8)),
                ("lif2", lif(8, 4, 4)),
                ("drop", nn.Dropout(0.5)),
                ("conv3", nn.Conv2d(8, 8, 3, padding="same", groups=2, bias=False)),
                ("norm3", nn.BatchNorm2d(8)),
                ("lif3", lif(8, 4, 4)),
                *head,
            ]
        )
    )
    for index, module in enumerate(network):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            random_batch_norm(module, 10 * seed + index)
        if isinstance(module, rso.RealSpikeLIF) and module.amplitude is not None:
            a = normal(module.amplitude.shape, 10 * seed + index)
            module.amplitude.data = torch.where(a < -1, a, 0.5 + a.abs())
    return network.eval()


def images(count=8, seed=1):
    return normal((count, 2, 8, 8), seed)


@torch.no_grad()
def currents_and_outputs(network, x):
    """Return what reaches every LIF layer, and the output."""
    reached = {}
    for name, module in network.named_children():
        if isinstance(module, rso.RealSpikeLIF):
            reached[name] = x
        x = module(x)
    return reached, x


def spikes_of(current, lif):
    current = current.unflatten(0, (T, -1))
    y = rso.lif(current, decay=lif.decay, v_threshold=lif.v_threshold, v_reset=lif.v_reset)
    return y.flatten(0, 1)


@torch.no_grad()
def run_bound(network, names, spikes, amplitude):
    """Rounding errors of the layers `names` on a * o: trained (product, sum, norm, mean) and folded
    (weights rounded once, sum) together."""
    real = spikes.double() * (1 if amplitude is None else amplitude.double())
    magnitude, count = real.abs(), 1
    for name in names:
        module = in_float64(network.get_submodule(name))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            count += module.weight[0].numel()
            module.weight.abs_()
            if module.bias is not None:
                module.bias.abs_()
            magnitude = module(magnitude)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            scale = (module.weight / (module.running_var + module.eps).sqrt()).abs()
            shift = module.running_mean.abs() * scale + module.bias.abs()
            shape = (-1, *(1 for _ in magnitude.shape[2:]))
            magnitude = magnitude * scale.view(shape) + shift.view(shape)
        else:
            magnitude = module(magnitude)
    return 2 * (count + 8 + T) * U * magnitude * SLACK


LAYERS = {"lif2": ["conv2", "norm2"], "lif3": ["conv3", "norm3"]}


@pytest.mark.parametrize("mean_first", [False, True], ids=["mean-last", "mean-first"])
@pytest.mark.parametrize(
    "neuron",
    [
        pytest.param({}, id="paper"),
        pytest.param({"decay": 0.9, "v_threshold": 0.8, "v_reset": None}, id="soft"),
        pytest.param({"decay": 0.5, "v_reset": -0.2}, id="reset-value"),
    ],
)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_outputs_do_not_change(granularity, neuron, mean_first):
    network, x = make_network(granularity, mean_first=mean_first, **neuron), images()
    folded = rso.reparameterize(network, x[:1])
    trained_currents, trained_out = currents_and_outputs(network, x)
    folded_currents, folded_out = currents_and_outputs(folded, x)
    assert list(folded_currents) == ["lif1", "lif2", "lif3"]
    assert torch.equal(folded_currents["lif1"], trained_currents["lif1"])
    source = "lif1"
    for name, layers in LAYERS.items():
        lif = network.get_submodule(source)
        spikes = spikes_of(trained_currents[source], lif)
        assert 0.05 < spikes.mean() < 0.95
        # Well separated: no spike flips, so the currents may only differ by rounding.
        assert torch.equal(spikes, spikes_of(folded_currents[source], lif))
        bound = run_bound(network, layers, spikes, lif.amplitude)
        assert_within(folded_currents[name], trained_currents[name].double(), bound, name)
        source = name
    spikes = spikes_of(trained_currents["lif3"], network.lif3)
    assert torch.equal(spikes, spikes_of(folded_currents["lif3"], network.lif3))
    head = ["flatten", "fc", "norm4", "mean"]
    bound = run_bound(network, head, spikes, network.lif3.amplitude)
    assert_within(folded_out, trained_out.double(), bound, "logits")

    report = rso.verify(network, folded, x)
    assert report.flipped_spikes == 0
    assert report.max_logit_error == (trained_out - folded_out).abs().max().item()
    assert report.agreement == 1.0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_what_is_left(granularity):
    network = make_network(granularity)
    folded = rso.reparameterize(network, images(1))
    conv = rso.UnsharedSpikeConv if granularity == "element" else rso.SpikeConv2d
    expected = {
        **{"encode": nn.Conv2d, "norm1": nn.BatchNorm2d, "repeat": rso.DirectEncoding},
        **{"lif1": rso.FoldedLIF, "conv2": conv, "lif2": rso.FoldedLIF, "conv3": conv},
        **{"lif3": rso.FoldedLIF, "fc": rso.SpikeLinear},
        "mean": rso.SumOverTime,
    }
    assert {name: type(module) for name, module in folded.named_children()} == expected
    assert not folded.training
    for name, module in folded.named_children():
        if isinstance(module, rso.RealSpikeLIF):
            assert module.amplitude is None, name
            spikes = module(normal((T, 5), 1))
            assert set(spikes.unique().tolist()) <= {0.0, 1.0}


def test_the_neurons_are_kept():
    neuron = {"decay": 0.7, "v_threshold": 0.6, "v_reset": None, "surrogate": ("atan", 3.0)}
    network = make_network("channel", detach_reset=True, **neuron)
    folded = rso.reparameterize(network, images(1))
    for name in ("lif1", "lif2", "lif3"):
        for field in ("timesteps", "decay", "v_threshold", "v_reset", "surrogate", "detach_reset"):
            trained = getattr(network.get_submodule(name), field)
            assert getattr(folded.get_submodule(name), field) == trained


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_the_model_is_left_untouched(training):
    network, x = make_network(), images()
    expected = rso.reparameterize(network, x)(x)
    network.train(training)
    network.norm3.eval()  # a frozen layer stays frozen
    modes = {name: module.training for name, module in network.named_modules()}
    state = copy.deepcopy(network.state_dict())
    requires_grad = [p.requires_grad for p in network.parameters()]

    folded = rso.reparameterize(network, x)
    rso.verify(network, folded, x)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.add_(1.0)

    assert {name: module.training for name, module in network.named_modules()} == modes
    assert [p.requires_grad for p in network.parameters()] == requires_grad
    assert all(p.grad is None for p in network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(rso.reparameterize(network, x)(x), expected)


def test_a_model_of_functions_and_nested_modules():
    class Block(nn.Module):
        def __init__(self, Cin, Cout, size):
            super().__init__()
            self.conv = nn.Conv2d(Cin, Cout, 3, padding=1)
            self.norm = random_batch_norm(nn.BatchNorm2d(Cout), Cin)
            self.lif = rso.RealSpikeLIF(T, "element", (Cout, size, size))
            self.lif.amplitude.data = 0.5 + normal((Cout, size, size), Cout).abs()

        def forward(self, x):
            return self.lif(self.norm(self.conv(x)))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.repeat = rso.DirectEncoding(T)
            self.blocks = nn.Sequential(Block(2, 5, 8), Block(5, 6, 8))
            self.fc = nn.Linear(6 * 64, 10)
            self.mean = rso.MeanOverTime(T)

        def forward(self, x):
            x = self.blocks(self.repeat(x))
            x = F.dropout(x, 0.3, self.training).contiguous()
            return self.mean(self.fc(torch.flatten(x, start_dim=1)))

    torch.manual_seed(0)
    network, x = Network().eval(), images()
    folded = rso.reparameterize(network, x)
    report = rso.verify(network, folded, x)
    assert report.flipped_spikes == 0
    assert report.max_logit_error < 1e-5
    assert [layer.name for layer in report.layers] == ["blocks.0.lif", "blocks.1.lif"]


def test_any_batch_size_follows_the_example():
    network, x = make_network(), images(5)
    folded = rso.reparameterize(network, x[:1])
    together = folded(x)
    apart = torch.cat([folded(one[None]) for one in x])
    assert torch.equal(together, apart)
    assert folded(x[:0]).shape == (0, 10)


def test_a_layer_that_is_called_twice():
    """Reused in two places: folded as two layers."""
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
            self.lif = rso.RealSpikeLIF(T, "layer")
            self.lif.amplitude.data.fill_(2.0)

        def forward(self, x):
            x = self.lif(self.first(x))
            x = self.lif(self.second(x))
            return self.second(x)

    network, x = Network().eval(), normal((T * 2, 2, 8, 8), 1)
    folded = rso.reparameterize(network, x)
    assert rso.verify(network, folded, x).flipped_spikes == 0
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


def test_names_that_would_collide():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(2, 2, 1), rso.RealSpikeLIF(T))
            self.a_1 = nn.Conv2d(2, 3, 1)

        def forward(self, x):
            return self.a_1(self.a(x))

    torch.manual_seed(0)
    network, x = Network().eval(), normal((T * 2, 2, 4, 4), 1)
    folded = rso.reparameterize(network, x)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


# --- what is refused ------------------------------------------------------------------------------


class Traced(nn.Module):
    """A network of a LIF layer, a convolution and whatever `forward` makes of them."""

    def __init__(self, forward, granularity="channel"):
        super().__init__()
        self.encode = nn.Conv2d(2, 4, 3, padding=1)
        self.lif = rso.RealSpikeLIF(1, granularity, (4, 8, 8))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.act = rso.RealSpikeLIF(1, granularity, (4, 8, 8))
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(2)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(256, 3)
        self.rows = nn.Linear(8, 1, bias=False)
        self.outside = nn.Parameter(torch.ones(2, 4, 2))
        self.mean, self.mean_of_1 = rso.MeanOverTime(2), rso.MeanOverTime(1)
        self.elements = rso.RealSpikeLIF(1, "element", (4, 8, 8))
        self.act2 = rso.RealSpikeLIF(2)
        self.spike_conv = rso.SpikeConv2d(4, 4, 3)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def after_lif(forward):
    return lambda m, x: forward(m, m.lif(m.encode(x)))


REFUSED = {
    # id: (network, what the message must name)
    "shortcut": (after_lif(lambda m, o: m.act(m.conv(o)) + m.relu(o)), r"relu.*ReLU.*not linear"),
    "unknown-function": (after_lif(lambda m, o: m.conv(torch.tanh(o))), r"tanh"),
    "dropout-that-always-drops": (after_lif(lambda m, o: m.conv(F.dropout(o))), r"dropout"),
    "functional-relu": (after_lif(lambda m, o: m.conv(F.relu(o))), r"relu"),
    "a-product": (after_lif(lambda m, o: m.conv(o * o)), r"mul.*not linear"),
    "a-quotient": (after_lif(lambda m, o: m.conv(2.0 / o)), r"truediv.*division by a constant"),
    "a-larger-constant": (after_lif(lambda m, o: o + torch.arange(512.0).view(2, 4, 8, 8)), r"add"),
    "another-view": (after_lif(lambda m, o: m.rows(o.reshape(-1, 8))), r"rows.*\[T\*B, \.\.\.\]"),
    "max-pool-of-elements": (
        after_lif(lambda m, o: m.conv(m.pool(m.elements(o)))),
        r"pool.*MaxPool2d.*elements.*granularity 'channel'",
    ),
    "max-pool-of-sums": (
        after_lif(lambda m, o: m.conv(m.pool(m.act(o) + o))),
        r"pool.*sums of spikes",
    ),
    "max-pool-of-averages": (after_lif(lambda m, o: m.pool(m.average(o))), r"pool.*sums"),
    "max-pool-of-currents": (
        lambda m, x: m.pool(m.lif(m.encode(x)) + m.encode(x)),
        r"pool.*currents",
    ),
    "max-pool-with-indices": (
        after_lif(lambda m, o: F.max_pool2d(o, 2, return_indices=True)[0]),
        r"max_pool2d",
    ),
    "relu-between": (after_lif(lambda m, o: m.act(m.relu(m.conv(o)))), r"relu"),
    "max-pool-outside-of-the-map": (
        lambda m, x: F.max_pool2d(m.lif(m.encode(x)[..., :1]), 2, 1, padding=1, dilation=2),
        r"max_pool2d.*outside of the map.*-inf",
    ),
    "taps-outside-of-the-map": (
        after_lif(lambda m, o: F.conv1d(m.rows(o[:, :, 0]), m.outside, padding=2, dilation=4)),
        r"conv1d.*nothing of the spikes is left",
    ),
    "no-elements": (after_lif(lambda m, o: m.conv(o)[..., :0]), r"getitem.*no elements"),
    "real-and-spikes-joined": (
        lambda m, x: m.conv(torch.cat([m.lif(m.encode(x)), m.encode(x)], 1)[:, :4]),
        r"cat.*real values",
    ),
    "joined-along-samples": (
        after_lif(lambda m, o: m.conv(torch.cat([o, o], 0))),
        r"conv.*rows are not those of single samples",
    ),
    "half-of-the-samples": (
        after_lif(lambda m, o: m.conv(o[: len(o) // 2])),
        r"conv.*rows are not those of single samples",
    ),
    "mean-over-samples": (after_lif(lambda m, o: m.fc(o.flatten(1)).mean(0)), r"mean.*rows of a"),
    "mean-of-all": (after_lif(lambda m, o: o.mean()), r"mean.*rows of a batch"),
    "differences-of-samples": (
        after_lif(lambda m, o: m.conv(o - o.flip(0))),
        r"sub.*rows",
    ),
    "another-type": (after_lif(lambda m, o: m.conv(o).to(torch.float64)), r"to.*float64"),
    "product-over-samples": (
        after_lif(lambda m, o: torch.einsum("nchw,mn->mchw", o[:2, :1, :2, :2], torch.ones(2, 2))),
        r"einsum.*mixes the samples",
    ),
    "sum-of-different-maps": (
        after_lif(lambda m, o: m.conv(o) + m.average(o)[:1, :, :1, :1]),
        r"add.*different sizes",
    ),
    "broadcast-sum": (
        after_lif(lambda m, o: o + F.adaptive_avg_pool2d(o, 1)),
        r"add.*different sizes.*8, 8\] and.*1, 1\]",
    ),
    "mean-over-other-timesteps": (
        after_lif(lambda m, o: m.mean(m.fc(torch.flatten(o, 1)))),
        r"mean.*2",
    ),
    "mean-twice": (
        after_lif(lambda m, o: m.mean_of_1(m.mean_of_1(o))),
        r"mean_of_1.*averages",
    ),
    "neurons-behind-the-mean": (
        after_lif(lambda m, o: m.act(m.mean_of_1(m.conv(o)))),
        r"act.*timesteps",
    ),
    "neurons-of-other-timesteps": (after_lif(lambda m, o: m.act2(m.conv(o))), r"act2.*2.*1"),
    "spikes-of-different-timesteps": (
        lambda m, x: m.lif(m.encode(x)) + m.act2(m.encode(x)),
        r"add.*spikes of 1 and of 2 timesteps",
    ),
    "joined-spikes-of-different-timesteps": (
        lambda m, x: m.conv(torch.cat([m.lif(m.encode(x))[:, 1:], m.act2(m.encode(x))[:, :1]], 1)),
        r"cat.*spikes of 1 and of 2 timesteps",
    ),
    "no-lif": (lambda m, x: m.encode(x), r"RealSpikeLIF"),
    "untraceable": (after_lif(lambda m, o: m.conv(o) if o.sum() > 0 else o), r"Traced.*traced"),
    "scores-of-split-timesteps": (
        after_lif(lambda m, o: m.fc(o.flatten(1)).view(1, 2, 3)),
        r"view.*\[T\*B, \.\.\.\]",
    ),
    "read-after-a-view-of-it-changes-in-place": (
        after_lif(lambda m, o: m.act(changed_through_a_view(m.conv(o), o))),
        r"'add_' changes 'flatten' in place.*under another name",
    ),
    "returned-after-a-view-of-it-changes-in-place": (
        after_lif(lambda m, o: changed_and_returned(m.conv(o))),
        r"'return': 'add_' changes 'flatten' in place.*under another name",
    ),
    "half-folded-model": (after_lif(lambda m, o: m.spike_conv(o)), r"spike_conv.*SpikeConv2d"),
}


def changed_through_a_view(x, y):
    x.flatten(1).add_(y.flatten(1))
    return x + y


def changed_and_returned(x):
    x.flatten(1).add_(1)
    return x


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    forward, names = REFUSED[case]
    network = Traced(forward).eval()
    with pytest.raises(rso.ReparameterizationError, match=names):
        rso.reparameterize(network, normal((2, 2, 8, 8), 1))


def test_a_second_input_is_refused():
    class Network(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(rso.ReparameterizationError, match=r"second input.*y"):
        rso.reparameterize(Network(), images(1))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        pytest.param({"padding_mode": "circular"}, r"conv.*padding_mode.*circular", id="padding"),
    ],
)
def test_convolutions_that_cannot_be_folded(change, names):
    network = Traced(after_lif(lambda m, o: m.conv(o)))
    network.conv = nn.Conv2d(4, 4, 3, padding=1, **change)
    with pytest.raises(rso.ReparameterizationError, match=names):
        rso.reparameterize(network.eval(), normal((2, 2, 8, 8), 1))


def test_hooks_are_refused():
    network = Traced(after_lif(lambda m, o: m.conv(o))).eval()
    network.conv.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(rso.ReparameterizationError, match=r"'conv' \(Conv2d\) has forward hooks"):
        rso.reparameterize(network, normal((2, 2, 8, 8), 1))


def test_a_network_that_was_folded_is_refused():
    layers = [rso.DirectEncoding(2), rso.RealSpikeLIF(2), nn.Flatten(), nn.Linear(4, 3)]
    folded = rso.reparameterize(nn.Sequential(*layers), torch.rand(1, 1, 2, 2))
    for model, name in ((folded, "model"), (nn.Sequential(nn.ReLU(), folded), "'1' of model")):
        with pytest.raises(rso.ReparameterizationError, match=f"^{name} is a FoldedNetwork"):
            rso.reparameterize(model, torch.rand(1, 1, 2, 2))


def test_an_amplitude_that_does_not_fit_is_refused():
    network = Traced(after_lif(lambda m, o: m.conv(o)))
    network.lif = rso.RealSpikeLIF(1, "element", (4, 7, 8))
    with pytest.raises(rso.ReparameterizationError, match=r"lif.*amplitude must have shape"):
        rso.reparameterize(network.eval(), normal((2, 2, 8, 8), 1))


def test_batch_norm_without_statistics_is_refused():
    network = Traced(after_lif(lambda m, o: m.norm(m.conv(o))))
    network.norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(rso.ReparameterizationError, match=r"running statistics"):
        rso.reparameterize(network.eval(), normal((2, 2, 8, 8), 1))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_nothing_before_the_first_lif_is_folded_or_refused(granularity):
    def forward(m, x):
        return m.conv(m.lif(m.conv2(m.relu(m.norm(m.encode(x))))))

    torch.manual_seed(0)
    network = Traced(forward, granularity)
    random_batch_norm(network.norm, 1)
    network.eval()
    x = normal((2, 2, 8, 8), 1)
    folded = rso.reparameterize(network, x)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-5, atol=1e-5)


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "reported", "earlier"),
    [("conv2", "lif2", ["lif1"]), ("conv3", "lif3", ["lif1", "lif2"])],
)
@torch.no_grad()
def test_verify_finds_a_planted_bias(layer, reported, earlier):
    network, x = make_network("channel"), images(16)
    folded = rso.reparameterize(network, x)
    bias = folded.get_submodule(layer).bias
    bias[3] += 0.125
    report = rso.verify(network, folded, x)
    by_name = {entry.name: entry for entry in report.layers}
    for name in earlier:
        assert by_name[name].flipped_spikes == 0
        assert by_name[name].max_current_error < 1e-5
    assert by_name[reported].max_current_error == pytest.approx(0.125, abs=1e-5)

    trained_currents, trained_out = currents_and_outputs(network, x)
    folded_currents, folded_out = currents_and_outputs(folded, x)
    flips = 0
    for name, entry in by_name.items():
        lif = network.get_submodule(name)
        trained = spikes_of(trained_currents[name], lif)
        spikes = spikes_of(folded_currents[name], lif)
        assert entry.flipped_spikes == int((trained != spikes).sum())
        assert entry.spikes == int(spikes.sum())
        assert entry.neuron_timesteps == spikes.numel()
        assert entry.firing_rate == pytest.approx(spikes.mean().item(), abs=1e-6)
        error = (trained_currents[name] - folded_currents[name]).abs().max().item()
        assert entry.max_current_error == error
        flips += entry.flipped_spikes
    assert by_name[reported].flipped_spikes > 0
    assert report.flipped_spikes == flips
    assert report.samples == 16
    assert report.max_logit_error == (trained_out - folded_out).abs().max().item() > 1e-3
    agreement = (trained_out.argmax(1) == folded_out.argmax(1)).float().mean().item()
    assert report.agreement == pytest.approx(agreement)


@torch.no_grad()
def test_verify_finds_a_planted_weight():
    network, x = make_network("element"), images(16)
    folded = rso.reparameterize(network, x)
    folded.conv2.weight[1, 2, 0, 1, 1, 4, 5] += 0.5  # read by output (5, 1, 2) alone
    report = rso.verify(network, folded, x)
    lif2 = next(entry for entry in report.layers if entry.name == "lif2")
    assert lif2.max_current_error == pytest.approx(0.5, abs=1e-5)
    assert 0 < lif2.flipped_spikes <= 16 * T


@torch.no_grad()
def test_verify_finds_a_planted_logit():
    network, x = make_network("layer"), images(16)
    folded = rso.reparameterize(network, x)
    folded.fc.bias[7] += 5.0
    report = rso.verify(network, folded, x)
    assert report.flipped_spikes == 0
    assert report.max_logit_error == pytest.approx(T * 5.0, abs=1e-4)
    assert report.agreement < 1


@torch.no_grad()
@pytest.mark.parametrize("layer", ["conv2", "conv3", "fc"])
def test_verify_does_not_hide_nan(layer):
    network, x = make_network("channel"), images()
    folded = rso.reparameterize(network, x)
    folded.get_submodule(layer).bias.fill_(float("nan"))
    report = rso.verify(network, folded, x)
    assert not report.max_logit_error < 1e-3
    if layer != "fc":
        entry = report.layers[1 if layer == "conv2" else 2]
        assert not entry.max_current_error < 1e-3


def test_verify_over_batches():
    network, x = make_network(), images(10)
    folded = rso.reparameterize(network, x)
    with torch.no_grad():
        folded.conv2.bias[0] += 0.25
    whole = rso.verify(network, folded, x)
    labelled = DataLoader(TensorDataset(x, torch.arange(10)), batch_size=4)
    for data in (labelled, [x[:3], x[3:]], (batch for batch in x.split(5)), [x, x[:0]]):
        report = rso.verify(network, folded, data)
        assert report.samples == 10
        assert report.flipped_spikes == whole.flipped_spikes > 0
        assert report.max_logit_error == pytest.approx(whole.max_logit_error, abs=1e-5)
        assert [e.spikes for e in report.layers] == [e.spikes for e in whole.layers]
        assert report.agreement == pytest.approx(whole.agreement)


def test_verify_sees_a_flip_on_a_threshold():
    """A current one ulp below the threshold in one network and on it in the other."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), rso.RealSpikeLIF(1), nn.Conv2d(1, 2, 1)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[0].bias.zero_()
    other = copy.deepcopy(network)
    x = torch.tensor([0.5, 0.5 - 2**-25, 0.25]).view(3, 1, 1, 1)
    assert rso.verify(network, other, x).flipped_spikes == 0
    with torch.no_grad():
        other[0].bias.fill_(-(2**-25))
    report = rso.verify(network, other, x)
    assert report.flipped_spikes == 1
    assert report.layers[0].spikes == 0
    assert report.layers[0].max_current_error == 2**-25


def test_report_as_json_and_text():
    network, x = make_network(), images()
    report = rso.verify(network, rso.reparameterize(network, x), x)
    content = json.loads(report.to_json())
    assert content["samples"] == 8
    assert content["flipped_spikes"] == 0
    assert content["max_logit_error"] == report.max_logit_error
    assert content["agreement"] == 1.0
    assert [layer["name"] for layer in content["layers"]] == ["lif1", "lif2", "lif3"]
    assert content["layers"][1]["firing_rate"] == report.layers[1].firing_rate
    assert all(name in str(report) for name in ("lif1", "lif2", "lif3", "8 samples"))


def test_verify_restores_the_modes():
    network, x = make_network(), images()
    folded = rso.reparameterize(network, x)
    network.train()
    network.norm2.eval()
    modes = [module.training for module in network.modules()]
    report = rso.verify(network, folded, x)
    assert report.max_logit_error < 1e-4
    assert [module.training for module in network.modules()] == modes
    assert not any(module.training for module in folded.modules())


def test_verify_refuses_another_network():
    network, x = make_network(), images()
    with pytest.raises(ValueError, match=r"LIF layers.*3.*1"):
        rso.verify(network, nn.Sequential(*list(network)[:4]), x)


# --- no multiplication ----------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_folded_networks_multiply_nothing(granularity):
    network, x = make_network(granularity), images()
    rso.assert_multiplication_free(rso.reparameterize(network, x), x)
    with pytest.raises(rso.MultiplicationError):
        rso.assert_multiplication_free(network, x)


class Behind(nn.Module):
    """A LIF layer and something behind it."""

    def __init__(self, behind, granularity="none"):
        super().__init__()
        self.encode = nn.Conv2d(2, 4, 3)
        self.lif = rso.RealSpikeLIF(1, granularity, (4, 6, 6))
        self.conv = nn.Conv2d(4, 4, 3)
        self.linear = nn.Linear(6, 3)
        self.norm = nn.BatchNorm2d(4)
        self.behind = behind

    def forward(self, x):
        return self.behind(self, self.lif(self.encode(x)))


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(lambda m, o: m.conv(o), id="conv2d"),
        pytest.param(lambda m, o: m.linear(o), id="linear"),
        pytest.param(lambda m, o: m.norm(o), id="batch-norm"),
        pytest.param(lambda m, o: o * 0.5, id="mul-scalar"),
        pytest.param(lambda m, o: o * o, id="mul"),
        pytest.param(lambda m, o: o.clone().mul_(2), id="mul-inplace"),
        pytest.param(lambda m, o: o / 3, id="div"),
        pytest.param(lambda m, o: o**2, id="pow"),
        pytest.param(lambda m, o: o @ torch.ones(6, 2), id="matmul"),
        pytest.param(lambda m, o: torch.einsum("ncij,cd->ndij", o, torch.ones(4, 2)), id="einsum"),
        pytest.param(lambda m, o: o.mean(), id="mean"),
        pytest.param(lambda m, o: F.avg_pool2d(o, 2), id="average-pool"),
        pytest.param(lambda m, o: F.dropout(o, 0.5, True), id="dropout"),
        pytest.param(lambda m, o: torch.addcmul(o, o, o), id="addcmul"),
        pytest.param(lambda m, o: torch.lerp(o, o, 0.3), id="lerp"),
        pytest.param(lambda m, o: torch.add(o, o, alpha=3), id="add-alpha"),
        pytest.param(lambda m, o: torch.sub(o, o, alpha=3), id="sub-alpha"),
        pytest.param(lambda m, o: o.clone().add_(o, alpha=0.5), id="add-alpha-inplace"),
    ],
)
def test_a_multiplication_behind_the_first_lif_is_found(behind):
    with pytest.raises(rso.MultiplicationError, match=r"LIF layer number 1"):
        rso.assert_multiplication_free(Behind(behind), images(2))


def test_packed_neurons_are_layers_too():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = rso.SpikeConv2d(2, 3, 3).requires_grad_(False)

        def forward(self, x):
            return self.layer(rso.lif(x[None], packed=True)[0])

    rso.assert_multiplication_free(Packed(), images(2))
    doubled = nn.Sequential(Packed(), rso.RealSpikeLIF(1, "layer"))
    with pytest.raises(rso.MultiplicationError, match=r"LIF layer number 2.*amplitude"):
        rso.assert_multiplication_free(doubled, images(2))


@pytest.mark.parametrize(
    ("storage", "reason"),
    [({"storage": "factored"}, "amplitude"), ({"dtype": torch.int8}, "fold_scale=True")],
    ids=["factored", "int8"],
)
def test_weights_that_are_multiplied_are_found(storage, reason):
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    amplitude = torch.rand(2, 5, 5) + 0.5
    layer = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, (5, 5), **storage)
    network = nn.Sequential(rso.RealSpikeLIF(1), layer.requires_grad_(False))
    with pytest.raises(rso.MultiplicationError, match=rf"LIF layer number 1.*{reason}"):
        rso.assert_multiplication_free(network, torch.rand(2, 2, 5, 5))


@pytest.mark.parametrize("granularity", ["layer", "channel", "element"])
def test_real_valued_spikes_are_found(granularity):
    with pytest.raises(rso.MultiplicationError, match=r"LIF layer number 1.*amplitude"):
        rso.assert_multiplication_free(Behind(lambda m, o: o, granularity), images(2))


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(lambda m, o: o.flatten(1), id="flatten"),
        pytest.param(lambda m, o: o + o, id="add"),
        pytest.param(lambda m, o: F.max_pool2d(o, 2), id="max-pool"),
        pytest.param(lambda m, o: o.sum(0), id="sum"),
        pytest.param(lambda m, o: m.lif(o - 0.5).argmax(1), id="another-lif"),
        pytest.param(lambda m, o: torch.cat([o, o], 1).transpose(1, 2).contiguous(), id="moves"),
    ],
)
def test_additions_and_moves_are_free(behind):
    rso.assert_multiplication_free(Behind(behind), images(2))


def test_nothing_to_check_is_an_error():
    with pytest.raises(rso.MultiplicationError, match=r"no LIF layer"):
        rso.assert_multiplication_free(nn.Conv2d(2, 3, 3), images(1))


def test_multiplication_error_is_an_assertion():
    assert issubclass(rso.MultiplicationError, AssertionError)
    assert issubclass(rso.ReparameterizationError, ValueError)


def test_binary_inputs_need_no_amplitude():
    """Folding granularity "none" leaves the weights as they are, up to the batch norm."""
    network = make_network("none")
    folded = rso.reparameterize(network, images(1))
    fc = rso.SpikeLinear.from_linear(network.fc, None, network.norm4, scale=1 / T)
    # It reads maps of 8 x 4 x 4, channels last, which the trained layer read flattened.
    maps = fc.weight.unflatten(5, (8, 4, 4))[0, 0, 0, 0, 0]  # [C, H, W, F]
    assert torch.equal(folded.fc.weight[0, 0, 0], maps.permute(1, 2, 0, 3))
    spikes = binary((4, 128), 1)
    assert torch.equal(folded.fc(spikes), folded.fc(spikes.view(4, 8, 4, 4)))
    torch.testing.assert_close(folded.fc(spikes), fc(spikes))
