"""Networks as their users write them: functions, reused layers, changes in place, odd shapes."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from fold_networks import T, as_if_trained, assert_equal_in_float64, assert_rounding_alone
from helpers import normal
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")


def lif(*shape, granularity="channel", **form):
    return rso.RealSpikeLIF(T, granularity, shape, **form)


def norm_conv(Cin, Cout, *args, **kwargs):
    return nn.Sequential(nn.Conv2d(Cin, Cout, *args, bias=False, **kwargs), nn.BatchNorm2d(Cout))


class Written(nn.Module):
    """Encodes images as spikes of 4 channels; `body` makes currents of features of them."""

    size = 8

    def __init__(self):
        super().__init__()
        self.encode, self.repeat = norm_conv(3, 4, 3, padding=1), rso.DirectEncoding(T)
        self.lif, self.mean = lif(4, self.size, self.size), rso.MeanOverTime(T)
        self.make()
        for module in self.modules():
            if type(module) is nn.Conv2d:  # so that all neurons fire
                module.weight.data.mul_(3)

    def make(self):
        self.conv, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.lif2, self.lif3 = lif(4, 8, 8), lif(4, 8, 8, granularity="element")
        self.fc = nn.Linear(256, 5)

    def forward(self, x):
        current = self.repeat(self.encode(x))
        return self.mean(self.fc(self.body(self.lif(current), current).flatten(1)))


class Functions(Written):
    def make(self):
        self.weight, self.bias = nn.Parameter(normal((6, 4, 3, 3), 1)), nn.Parameter(torch.ones(6))
        self.lif2 = lif(6, 4, 4)
        self.scores = nn.Parameter(normal((5, 24), 3))

    def forward(self, x):
        x = self.lif(self.repeat(self.encode(x)))
        x = F.conv2d(input=x, weight=self.weight, bias=self.bias, stride=2, padding=(1, 1))
        x = F.max_pool2d(self.lif2(x), kernel_size=2)
        return F.linear(torch.flatten(x, start_dim=1), self.scores).reshape(T, -1, 5).mean(dim=0)


class Reused(Written):
    def body(self, x, _):
        for _ in range(3):
            x = self.lif2(self.conv(x))
        return self.lif2(self.conv(self.conv2(x)))


class Nested(Written):
    def make(self):
        inner = nn.Sequential(nn.BatchNorm2d(6), lif(6, 8, 8))
        first = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), inner)
        self.layers = nn.ModuleList([first, nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True))])
        self.layers.append(nn.ModuleDict({"drop": nn.Dropout2d()})["drop"])
        self.fc = nn.Linear(96, 5)

    def body(self, x, _):
        for layer in self.layers:
            x = layer(x)
        return x


class CeilModePools(Written):
    size = 9

    def make(self):
        self.conv, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), lif(4, 5, 5)
        self.conv2, self.lif3 = nn.Conv2d(4, 4, 3, padding=1), lif(4, 3, 3)
        self.fc = nn.Linear(16, 5)

    def body(self, x, _):
        x = self.lif2(self.conv(F.max_pool2d(x, 3, 2, 1, ceil_mode=True)))
        x = self.lif3(self.conv2(F.avg_pool2d(x, 3, 2, 1, True, False)))
        return F.max_pool2d(x, 2, 2, 0, 1, True)


class DilatedDepthwise(Written):
    def make(self):
        self.wide = norm_conv(4, 8, 3, padding=2, dilation=2, groups=4)
        self.point, self.lif2 = nn.Conv2d(8, 6, 1), lif(6, 8, 8, granularity="element")
        self.deep = nn.Conv2d(6, 6, 3, padding="same", dilation=3, groups=6)
        self.lif3, self.fc = lif(6, 8, 8, granularity="element"), nn.Linear(6, 5)

    def body(self, x, _):
        return self.lif3(self.deep(self.lif2(self.point(self.wide(x))))).mean(dim=(-2, -1))


class JoinedNeurons(Written):
    """Binary and ternary spikes side by side, into groups that cut through them."""

    def make(self):
        self.left = nn.Sequential(
            nn.Conv2d(4, 3, 3, padding=1), lif(3, 8, 8, granularity="element")
        )
        self.right = nn.Sequential(nn.Conv2d(4, 5, 1), lif(5, 8, 8, emission="ternary"))
        self.join, self.lif2 = nn.Conv2d(12, 6, 3, 2, 1, groups=2), lif(6, 4, 4, granularity="none")
        self.fc = nn.Linear(18 * 16, 5)

    def body(self, x, _):
        maps = torch.cat((self.left(x), x, self.right(x)), dim=1)
        return torch.cat([F.avg_pool2d(maps, 2), self.lif2(self.join(maps))], -3)


class StridedShortcut(Written):
    def make(self):
        self.first, self.lif2 = norm_conv(4, 6, 3, 2, 1), lif(6, 4, 4, granularity="element")
        self.second, self.shortcut = norm_conv(6, 6, 3, 1, 1), norm_conv(4, 6, 1, 2)
        self.lif3, self.fc = lif(6, 4, 4, granularity="element"), nn.Linear(96, 5)

    def body(self, x, _):
        out = self.second(self.lif2(self.first(x)))
        out += self.shortcut(x)
        return self.lif3(out)


class DenselyConnected(Written):
    """Every layer reads the spikes of all before it, then all of them are pooled."""

    def make(self):
        self.convs = nn.ModuleList(nn.Conv2d(4 * n, 4, 3, padding=1) for n in (1, 2, 3))
        self.lifs = nn.ModuleList(lif(4, 8, 8, granularity="none") for _ in range(3))
        self.norm, self.point, self.last = nn.BatchNorm2d(16), nn.Conv2d(16, 6, 1), lif(6, 4, 4)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(96, 5)

    def body(self, x, _):
        maps = [x]
        for conv, neurons in zip(self.convs, self.lifs, strict=True):
            maps.append(neurons(conv(torch.cat(maps, 1))))
        return self.last(self.point(self.norm(self.pool(torch.cat(maps, 1)))))


class OneCurrentForTwo(Written):
    """Two layers of neurons read one current: its synapses are there once."""

    def make(self):
        super().make()
        self.lif3 = lif(4, 8, 8, v_threshold=1.0)

    def body(self, x, _):
        current = self.conv(x)
        return self.lif2(current) - 0.5 * self.lif3(current)


class Scaled(Written):
    def make(self):
        super().make()
        self.gate, self.where = nn.Parameter(normal((1, 4, 1, 1), 1)), normal((4, 8, 8), 2)

    def body(self, x, _):
        spikes = sum([x, 2 * x, x.mul(0.25), self.conv(x * self.gate) * self.where])
        return torch.sub(self.lif2(spikes + self.where / 2), 0.5)


class Parametrized(Written):
    def make(self):
        super().make()
        self.conv, self.conv2 = weight_norm(self.conv), spectral_norm(self.conv2)

    def body(self, x, _):
        return self.lif3(self.conv2(self.lif2(self.conv(x))))


class InPlace(Written):
    def body(self, x, _):
        y = self.conv(x)
        y.add_(x).mul_(0.5)
        y /= 2
        z = self.conv2(self.lif2(y))
        z -= y
        return self.lif3(z)


class TwoNamesOfWhatChanges(Written):
    def body(self, x, _):
        before = x
        x += self.conv(x)
        return self.lif2(before + 0.5 * x)


class EncodingChangesInPlace(Written):
    """What the neurons have read before is changed behind them."""

    def body(self, x, current):
        other = current
        F.relu(current, True)
        torch.relu_(current)
        current *= 0.5
        current.clamp_(max=0.75)
        return self.lif2(self.conv(x) + other)


class ChangedByALayer(Written):
    def make(self):
        super().make()
        self.relu = nn.ReLU(inplace=True)

    def body(self, x, current):
        self.relu(current)
        return self.lif2(self.conv(x) + current)


class SizesThatAreCountedUp(Written):
    def body(self, x, _):
        rows = x.shape[2]
        columns = rows
        columns += 1
        return self.lif2(self.conv(x).view(-1, 4, rows, columns - 1))


class ArgumentsByName(Written):
    """Inputs of layers by their names, and NumPy's names of arguments."""

    def body(self, x, _):
        x = torch.cat([self.conv(input=x), x.mean(axis=1, keepdims=True)], axis=1)
        x = torch.add(
            x1=self.lif2(x=x[:, :4]),
            x2=F.avg_pool2d(input=x[:, 4:], kernel_size=1).repeat(1, 4, 1, 1),
        )
        return self.lif3(x=self.conv2(input=x))


class OneOutput(Written):
    """A value for every image, without a dimension of its own."""

    def forward(self, x):
        return super().forward(x)[:, 2]

    def body(self, x, _):
        return self.lif2(self.conv(x))


NETWORKS = [
    *(Functions, Reused, Nested, CeilModePools, DilatedDepthwise, JoinedNeurons, StridedShortcut),
    *(DenselyConnected, OneCurrentForTwo, Scaled, Parametrized, InPlace, TwoNamesOfWhatChanges),
    *(EncodingChangesInPlace, ChangedByALayer, SizesThatAreCountedUp, ArgumentsByName, OneOutput),
]


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_folded_as_written(kind):
    torch.manual_seed(0)
    images = normal((3, 3, kind.size, kind.size), 1)
    network = as_if_trained(kind(), normal((8, 3, kind.size, kind.size), 2), 0)
    trained = network(images)
    assert_equal_in_float64(network, images)
    report = assert_rounding_alone(network, images)
    assert report.samples == 3
    assert all(0 < layer.firing_rate < 1 for layer in report.layers), report
    assert_rounding_alone(network, images, weight_dtype=torch.int8)
    folded = rso.reparameterize(network, images[:1])
    before = images.clone()
    with torch.no_grad():
        expected = folded(images)
    assert torch.equal(folded(images).detach(), expected)
    assert torch.equal(images, before)
    assert torch.equal(network(images), trained)  # it is left as it was


def test_an_encoding_with_weight_norm_can_be_pickled():
    """PyTorch's hook for the keys of old files cannot be: the weights are plain ones here."""
    encode = weight_norm(nn.Conv2d(3, 4, 3))
    network = nn.Sequential(encode, rso.DirectEncoding(T), lif(4, 6, 6), nn.Conv2d(4, 2, 1)).eval()
    images = normal((2, 3, 8, 8), 1)
    folded = rso.reparameterize(network, images)
    assert torch.equal(pickle.loads(pickle.dumps(folded))(images), folded(images))


def test_one_current_for_two_layers_is_computed_once():
    torch.manual_seed(0)
    folded = rso.reparameterize(OneCurrentForTwo().eval(), normal((1, 3, 8, 8), 1))
    reads = {step.name: step.inputs for step in folded.steps}
    assert reads["lif2"] == reads["lif3"] == ("conv",)


class Refused(Written):
    def __init__(self, body):
        super().__init__()
        self.run, self.up = body, nn.ConvTranspose2d(4, 4, 3, 2, 1)

    def body(self, x, current):
        return self.run(self, x)


def view_of_what_changes(m, x):
    y = m.conv(x)
    view = y.view(-1, 256)
    y += x
    return view


def written_to(m, x):
    y = m.conv(x)
    torch.add(x, x, out=y)
    return y


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (view_of_what_changes, r"'flatten'.*'add_' changes 'conv' in place.*under another name"),
        (written_to, r"'add'.*writes to out="),
        (lambda m, x: m.conv(F.pad(x, (1, -1), value=1.0)), r"'pad'.*other constants than zeros"),
        (lambda m, x: m.conv(x.exponential_()), r"'exponential_'.*in place.*no form"),
        (
            lambda m, x: F.avg_pool2d(m.up(x, output_size=(16, 16)), 2),
            r"ConvTranspose2d.*called with output_size: .*their input alone",
        ),
        (
            lambda m, x: F.avg_pool2d(m.up(x, [16, 16]), 2),
            r"ConvTranspose2d.*called with output_size: .*their input alone",
        ),
        (
            lambda m, x: torch.batch_norm(x, *torch.ones(4, 4), False, 0.1, 1e-5, False),
            "'batch_norm'.*arguments that are not known here",
        ),
        (
            lambda m, x: rso.lif(m.conv(x).unflatten(0, (T, -1))),
            r"called as a function \(lif\) and not as a layer \(RealSpikeLIF\)",
        ),
    ],
    ids=[
        "view",
        "out",
        "pad-of-ones",
        "no-other-form",
        "output-size",
        "output-size-by-position",
        "torch.batch_norm",
        "lif-function",
    ],
)
def test_refused_as_written(body, reason):
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.reparameterize(Refused(body).eval(), normal((1, 3, 8, 8), 1))


@pytest.mark.parametrize(
    ("value", "dtype", "reason"),
    [
        (
            1e6,
            torch.float16,
            r"'conv' cannot be float16: weight must be.*65504.*bfloat16.*1e\+06",
        ),
        (math.nan, torch.int8, r"'conv' cannot be int8: weight must be finite"),
        (math.nan, torch.float32, "'conv' cannot be float32: weight must be finite.*nan"),
        (math.inf, torch.bfloat16, "'conv' cannot be bfloat16: weight must be finite.*inf"),
    ],
)
def test_weights_that_a_dtype_cannot_hold(value, dtype, reason):
    network = Reused().eval()
    network.conv.weight.data[1, 2, 1, 1] = value
    x = normal((1, 3, 8, 8), 1)
    if math.isfinite(value):
        rso.reparameterize(network, x)
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.reparameterize(network, x, weight_dtype=dtype)


def test_a_synapse_per_neuron_that_a_dtype_cannot_hold():
    encoding = (nn.Conv2d(3, 4, 1), rso.DirectEncoding(T), lif(4))
    network = nn.Sequential(*encoding, lif(4), rso.MeanOverTime(T)).eval()
    network[2].amplitude.data[1] = 7e4
    x = normal((1, 3, 2, 2), 1)
    rso.reparameterize(network, x, weight_dtype=torch.bfloat16)
    reason = r"weight must be finite in float16.*65504.*its largest weight is 7e\+04"
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.reparameterize(network, x, weight_dtype=torch.float16)
    network[3].amplitude.data[0] = math.nan
    with pytest.raises(rso.ReparameterizationError, match="must be finite"):
        rso.reparameterize(network, x)
