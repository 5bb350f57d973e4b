"""The bound on rounding: its value by hand, and that it holds for every storage and encoding."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fold_networks import T, reference_ops
from helpers import normal
from torch import nn
from torch.utils import _pytree as pytree

import realspike_ops as rso
from realspike_ops.nn import SumOverTime, Synapses
from realspike_ops.reparam.check.bound import _Magnitudes, current_bounds, folded_roundings
from realspike_ops.reparam.check.verify import _compare_with_bounds, _Pair
from realspike_ops.reparam.network import Step

pytestmark = pytest.mark.usefixtures("one_thread")
U = 2.0**-24
SLACK = 1.02


def filled(layer: nn.Module, **values) -> nn.Module:
    for name, value in values.items():
        getattr(layer, name).data.fill_(value)
    return layer.eval()


def bounds_of(network, folded, x, spikes):
    return [b.detach() for b in current_bounds(network.eval(), folded, x, spikes)]


def spiking(count: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Currents [1, count] whose every neuron fires, and the spikes."""
    return torch.ones(1, count), torch.ones(1, count)


@pytest.mark.parametrize("functional", [False, True])
def test_of_a_batch_norm_by_hand(functional):
    """a * o = 2; 1 / sqrt(3 + 1) * |-3| = 1.5; 2 * 1.5 + |-2| * 1.5 + |-0.5| = 6.5."""
    norm = nn.BatchNorm1d(1, eps=1.0)
    filled(norm, weight=-3.0, bias=-0.5, running_mean=-2.0, running_var=3.0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = filled(rso.RealSpikeLIF(1, "layer"), amplitude=-2.0)
            self.norm, self.second = norm, rso.RealSpikeLIF(1)

        def forward(self, x):
            x = self.first(x)
            if not functional:
                return self.second(self.norm(x))
            n = self.norm
            return self.second(
                F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
            )

    network = Network().eval()
    x, spikes = spiking(1)
    folded = rso.reparameterize(network, x)
    # The trained network: a * o, then ten of a batch norm. The folded: a synapse, its sum with
    # nothing and the bias; the weight was rounded to float32.
    assert folded_roundings(folded) == ([0, 3], 0)
    first, second, out = bounds_of(network, folded, x, [spikes, spikes])
    assert first.item() == pytest.approx(SLACK * 1.0 * (0 + 0 + 1) * U, rel=1e-6)
    assert second.item() == pytest.approx(SLACK * 6.5 * (11 + 3 + 1) * U, rel=1e-6)
    assert out.item() == pytest.approx(SLACK * 1.0 * (1 + 0 + 1) * U, rel=1e-6)


def test_of_sums_differences_and_averages_by_hand():
    """o = 1, amplitude 2: linear(o) of three weights -1, then x - 3 * o / 2, then the mean."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = filled(rso.RealSpikeLIF(2, "layer"), amplitude=2.0)
            self.linear = filled(nn.Linear(3, 3), weight=-1.0, bias=-0.25)
            self.mean = rso.MeanOverTime(2)

        def forward(self, x):
            x = self.first(x)
            return self.mean(torch.sub(self.linear(x), x / 2, alpha=3))

    network = Network().eval()
    x = torch.ones(2, 3)
    folded = rso.reparameterize(network, x)
    _, out = bounds_of(network, folded, x, [x])
    # |-1| * 2 * 3 + 0.25, and 3 * 2 / 2 as alpha multiplies both: 3 * (6.25 + 1) at the most.
    magnitude = 3 * (6.25 + 1.0)
    # a * o, four of the linear layer, the difference, the mean of two; then the folded network's.
    own = folded_roundings(folded)[1]
    expected = SLACK * magnitude * (1 + 4 + 2 + (2 + 2) + own + 1) * U
    assert out.shape == (1, 3)
    assert torch.allclose(out, torch.full_like(out, expected), rtol=1e-6)


def test_roundings_of_a_folded_network_by_hand():
    """The deepest of several synapses, how many there are, and the bias; timesteps of a sum."""
    one = rso.OneToOneSynapses(torch.tensor([0.5]))
    conv = rso.SpikeConv2d(4, 4, 3, padding=1)

    modules = {
        "lif": rso.FoldedLIF(3),
        "both": rso.SynapticCurrent({"a": one, "b": conv}),
        "second": rso.FoldedLIF(3),
        "alone": Synapses(rso.OneToOneSynapses(torch.tensor([0.5])), sums=6),
        "sum": SumOverTime(3),
        "real": rso.SynapticCurrent({}),
    }
    reads = ("input",), ("lif", "lif"), ("both",), ("second",), ("alone",), ("sum", "input")
    steps = [Step(name, inputs) for name, inputs in zip(modules, reads, strict=True)]
    folded = rso.FoldedNetwork(steps, modules, "real")
    # both: 3 * 3 * 4 + 2 of the convolution, two maps and a bias. Behind `second`: one weight,
    # six positions, their sum; three timesteps; two summands and no bias.
    assert folded_roundings(folded) == ([0, 38 + 2 + 1], (1 + 6 + 1) + 3 + (2 + 1))


ENCODINGS = {
    "float": lambda x: (x > 0).float(),
    "to": lambda x: (x > 0).to(torch.float32),
    "sums of comparisons": lambda x: ((x > 0) + 2 * (x > 1)).float(),
    "double and back": lambda x: x.double().sigmoid().float(),
    "half and back": lambda x: x.half().float(),
    "bytes": lambda x: (x * 50 + 100).clamp(0, 255).to(torch.uint8).float() / 255,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(0, 1),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    "interpolate": lambda x: F.interpolate(F.interpolate(x, scale_factor=2.0), size=(6, 6)),
}


class Between(nn.Module):
    """Synapses of every kind: shared, piecewise, one to one, linear; a real part is added."""

    def __init__(self, encoding):
        super().__init__()
        self.encoding = encoding
        self.encode, self.repeat = nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T)
        self.first, self.second = (rso.RealSpikeLIF(T, "channel", (4, 6, 6)) for _ in range(2))
        self.pieces = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 4, 3, padding=1))
        self.norm, self.mean = nn.BatchNorm2d(4), rso.MeanOverTime(T)
        self.linear = nn.Linear(144, 5)

    def forward(self, x):
        current = self.repeat(self.encode(self.encoding(x)))
        a = self.first(current)
        return self.mean(
            self.linear(self.second(self.pieces(a) + self.norm(a) + current).flatten(1))
        )


STORAGES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_holds_whatever_the_encoding_does(encoding):
    torch.manual_seed(0)
    network, x = Between(ENCODINGS[encoding]).eval(), normal((2, 3, 6, 6), 1)
    for dtype in STORAGES if encoding == "float" else STORAGES[:1]:
        folded = rso.reparameterize(network, x, weight_dtype=dtype)
        report = rso.verify(network, folded, x, bounds=True)
        assert report.within_bounds, report
        if dtype != torch.float32:  # rounded weights are noticed, and explained by their storage
            assert report.layers[1].error_over_bound > 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_networks_without_convolutions(dtype):
    """One weight per neuron alone: its rounding is half a unit of its dtype."""
    torch.manual_seed(0)
    norm = filled(nn.BatchNorm2d(4), weight=1 / 3)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T), rso.RealSpikeLIF(T)),
        *(norm, rso.RealSpikeLIF(T), nn.Flatten(), rso.MeanOverTime(T)),
    ).eval()
    x = normal((2, 3, 6, 6), 1)
    folded = rso.reparameterize(network, x, weight_dtype=dtype)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    assert report.layers[1].error_over_bound > 0.1


def test_of_weights_below_the_range_of_float16():
    torch.manual_seed(0)
    network = nn.Sequential(rso.RealSpikeLIF(T), filled(nn.Linear(40, 3), weight=3e-8, bias=0.0))
    x = torch.ones(2 * T, 40)
    network.append(rso.MeanOverTime(T)).eval()
    folded = rso.reparameterize(network, x, weight_dtype=torch.float16)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.max_logit_error > 1e-7  # of 1.2e-6: 3e-8 was rounded to the half of 2^-24, or 0
    assert report.within_bounds, report


def test_in_float64():
    torch.manual_seed(0)
    network, x = Between(torch.abs).double().eval(), normal((2, 3, 6, 6), 1).double()
    folded = rso.reparameterize(network, x)
    with reference_ops():
        report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    assert report.max_logit_error < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_defaults(dtype):
    """Tensors made inside are on the device, and of the dtype, that they must have."""
    torch.manual_seed(0)
    network, x = Between(torch.abs).eval(), normal((2, 3, 6, 6), 1)
    for storage in (torch.float32, torch.int8):
        folded = rso.reparameterize(network, x, weight_dtype=storage)
        expected = rso.verify(network, folded, x, bounds=True)
        counts = rso.profile(folded, x).to_json()
        old = torch.get_default_dtype()
        try:
            torch.set_default_dtype(dtype)
            torch.set_default_device("meta")
            assert rso.verify(network, folded, x, bounds=True) == expected
            assert rso.profile(folded, x).to_json() == counts
        finally:
            torch.set_default_dtype(old)
            torch.set_default_device(None)


class Linear(nn.Module):
    """Spikes [2, 4, 6, 6], and a function of them."""

    def __init__(self, function, *layers):
        super().__init__()
        self.lif, self.function = filled(rso.RealSpikeLIF(1, "layer"), amplitude=-1.5), function
        self.layers = nn.ModuleList(layers)
        self.constant = nn.Parameter(normal((6, 6), 3))

    def forward(self, x):
        return self.function(self, self.lif(x))


FUNCTIONS = {
    "chunk": (lambda net, x: torch.sub(*x.chunk(2, 1)),),
    "split": (lambda net, x: x.split([1, 3], 1)[1] - x.split([1, 3], 1)[0],),
    "slices": (lambda net, x: x[:, ::2, 1:, :-1] * -2 + net.constant[1:, 1:],),
    "sub": (lambda net, x: 1 - torch.sub(x, other=net.constant, alpha=-2.0),),
    "negation": (lambda net, x: -x,),
    "matmul": (lambda net, x: x @ net.constant,),
    "einsum": (lambda net, x: torch.einsum("nchw,wk->nckh", x, net.constant),),
    "functional": (lambda net, x: F.linear(x, weight=net.constant),),
    "convolution": (lambda net, x: F.conv2d(x, net.constant.view(3, 4, 3, 1), padding=2),),
    "transposed": (lambda net, x: net.layers[0](x), nn.ConvTranspose2d(4, 3, 3, 2)),
    "one dimension": (lambda net, x: net.layers[0](x.flatten(2)), nn.Conv1d(4, 3, 5, groups=1)),
    "norm": (lambda net, x: net.layers[0](x), filled(nn.BatchNorm2d(4), weight=-2.0, bias=-1.0)),
    "permuted": (lambda net, x: x.permute(0, 2, 1, 3).flatten(1) / -3,),
    "mean": (lambda net, x: x.mean((1, 3)) - x.sum(dim=(1, 2)),),
    "nearest": (lambda net, x: F.interpolate(x, scale_factor=2.0),),
    "bilinear": (lambda net, x: F.interpolate(x, size=(9, 9), mode="bilinear"),),
    "pooling": (lambda net, x: F.avg_pool2d(x, 3, 2, 1) - F.max_pool2d(-x, 3, 2, 1),),
    "padding": (lambda net, x: F.pad(x, (1, 2, 0, 1, 1, 0)),),
    "casts": (lambda net, x: x.to(torch.float32).float().type_as(net.constant) - 1,),
    "stack": (lambda net, x: torch.stack([x, -x, 2 * x]).sum(0),),
    "outputs": (lambda net, x: {"a": (x, x - 3), "b": [x.mean(1)]},),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_magnitudes_are_no_less_than_the_values(name):
    function, *layers = FUNCTIONS[name]
    torch.manual_seed(0)
    network, x = Linear(function, *layers).eval(), normal((2, 4, 6, 6), 1)
    magnitudes = pytree.tree_leaves(_Magnitudes(network, x, [(x >= 0.5).float()]).run(x))
    values = pytree.tree_leaves(network(x))
    assert len(values) == len(magnitudes)
    for value, magnitude in zip(values, magnitudes, strict=True):
        assert magnitude.value.shape == value.shape
        assert magnitude.value.dtype == torch.float64
        assert magnitude.roundings >= 1
        assert (magnitude.value >= value.abs() * (1 - 1e-6)).all()
        assert (magnitude.value <= 100 * value.abs().amax()).all()


def test_samples_are_compared_until_they_flip():
    """Three samples, two timesteps, two neurons; sample 1 flips in the first layer, sample 2 in the
    second: what lies behind is another network's."""

    def of(*samples):  # of each sample the value at (t = 1, neuron 1); 0 elsewhere
        values = torch.zeros(2, 3, 2)
        values[1, :, 1] = torch.tensor(samples)
        return values.flatten(0, 1)

    silent, layers = of(0, 0, 0), [SimpleNamespace(error_over_bound=None) for _ in range(3)]
    pairs = [
        _Pair(of(0.5, 0.25, 0.0), silent, of(0, 1, 0), silent),
        _Pair(of(0.125, 100, 0.75), silent, silent, of(0, 0, 1)),
        _Pair(of(-0.25, 100, 100), silent, silent, silent),
    ]
    report = SimpleNamespace(layers=layers, error_over_bound=None)
    outputs = [of(0.0, 100, 100), torch.tensor([[0.375], [100], [100]])]
    bounds = [2 * torch.ones(6, 2).double()] * 3 + [torch.ones(6, 2), torch.ones(3, 1)]
    _compare_with_bounds(report, pairs, [2, 2, 2], outputs, bounds)
    assert [layer.error_over_bound for layer in layers] == [0.25, 0.375, 0.125]
    assert report.error_over_bound == 0.375
