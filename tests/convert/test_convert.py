"""convert: networks of ReLU become networks of RealSpikeLIF that train and fold."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import realspike_ops as rso

T = 2


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


X = images(4, 3, 8, 8)


class Basic(nn.Module):
    """torchvision's block: one ReLU is called twice, the sum is in place."""

    def __init__(self, Cin, Cout, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(Cin, Cout, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(Cout), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(Cout, Cout, 3, 1, 1, bias=False), nn.BatchNorm2d(Cout)
        self.downsample = None
        if stride != 1:
            shortcut = nn.Conv2d(Cin, Cout, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(Cout))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Basic(6, 6), Basic(6, 8, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class PreActivation(nn.Module):
    """The shortcut goes around the first neurons, so that images are repeated before the norm."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        self.conv, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.act(self.norm(x)))
        return self.fc(self.act(x).mean((2, 3)))


class InvertedResidual(nn.Sequential):
    def __init__(self, C):
        hidden = 2 * C
        super().__init__(
            *(nn.Conv2d(C, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, C, 1, bias=False), nn.BatchNorm2d(C)),
        )

    def forward(self, x):
        return x + super().forward(x)


class Functions(nn.Module):
    """Every way to write ReLU without a layer, and a size that is read from the batch."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc1, self.fc2, self.fc3 = nn.Linear(96, 12), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        x = torch.relu(self.conv2(F.avg_pool2d(x, 2)))
        x = F.dropout(x, 0.25, training=self.training)
        x = self.fc1(x.view(x.size(0), -1)).relu_()
        return self.fc3(self.fc2(x).clamp(min=0))


def mobile():
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6, 5))
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU6(), InvertedResidual(6), *head)


def vgg():
    return nn.Sequential(
        nn.Sequential(*(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2))),
        *(nn.Flatten(), nn.Sequential(nn.Linear(96, 8), nn.ReLU(True), nn.Dropout())),
        nn.Linear(8, 5),
    )


NETWORKS = {
    "resnet": ResNet,
    "preactivation": PreActivation,
    "mobile": mobile,
    "vgg": vgg,
    "functions": Functions,
}
NAMES = {
    "resnet": ["relu", *(f"layer1.{i}.relu{n}" for i in (0, 1) for n in ("", "_2"))],
    "preactivation": ["act", "act_2"],
    "mobile": ["1", "2.2", "2.4", "3"],
    "vgg": ["0.1", "2.1"],
    "functions": ["relu", "relu_2", "relu_3", "relu_4"],
}


def neurons(network):
    return {n: m for n, m in network.named_modules() if isinstance(m, rso.RealSpikeLIF)}


def lively(model):
    """Larger weights, so that neurons of random networks fire."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.mul_(2)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_converted_trained_folded_and_verified(name):
    torch.manual_seed(0)
    model = lively(NETWORKS[name]())
    before = copy.deepcopy(model.state_dict())
    network = rso.convert(model, X, timesteps=T, granularity="element", norms_at_threshold=True)
    assert [*neurons(network)] == NAMES[name]
    own = {f"{layer}.amplitude" for layer in NAMES[name]}
    assert set(network.state_dict()) == set(before) | own
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = F.cross_entropy(network(X), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())
    optimizer.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    folded = rso.reparameterize(network, X)
    report = rso.verify(network.eval(), folded, X)
    assert report.max_logit_error < 1e-4
    assert sum(layer.flipped_spikes for layer in report.layers) == 0
    assert sum(layer.firing_rate for layer in report.layers) > 0.1


def test_the_converted_network_is_the_one_written_by_hand():
    torch.manual_seed(0)
    model = lively(PreActivation()).eval()
    form = {"decay": 0.5, "v_threshold": 0.25, "v_reset": None, "surrogate": "atan"}
    network = rso.convert(model, X, timesteps=T, granularity="channel", **form)
    lifs = [*neurons(network).values()]
    for lif in lifs:
        lif.amplitude.data.uniform_(0.5, 2)
    encode, mean = rso.DirectEncoding(T), rso.MeanOverTime(T)
    x = encode(model.stem(X))
    x = x + model.conv(lifs[0](model.norm(x)))
    expected = mean(model.fc(lifs[1](x).mean((2, 3))))
    assert torch.equal(network(X), expected)
    torch.testing.assert_close(network(X[:1]), expected[:1])  # any batch
    assert {k: getattr(lifs[0], k) for k in ("decay", "v_threshold", "reset")} == {
        "decay": 0.5,
        "v_threshold": 0.25,
        "reset": "soft",
    }
    assert lifs[0].surrogate == ("atan", 2.0)


def test_shapes_and_granularities_are_those_of_each_call():
    network = rso.convert(ResNet(), X, timesteps=T, granularity="element")
    shapes = [tuple(lif.amplitude.shape) for lif in neurons(network).values()]
    # Max pooling reads the first neurons: it would have to choose between amplitudes of a map.
    assert shapes == [(6, 1, 1), (6, 4, 4), (6, 4, 4), (8, 2, 2), (8, 2, 2)]
    features = rso.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), images(3, 6), timesteps=T)
    assert features(images(5, 6)).shape == (5, 8)
    assert [*features.state_dict()] == ["0.weight", "0.bias"]


class Plain(nn.Module):
    """ReLU between what PyTorch cannot see, and rows that are told apart by their timestep."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 6, 3), [1.0]

    def forward(self, x):
        y = self.conv(x)
        self.scale[0] = 3.0 - self.scale[0]
        return F.relu(y * self.scale[0]).mean((2, 3))


def test_what_a_forward_remembers_is_refused():
    with pytest.raises(rso.ReparameterizationError, match=r"followed|other values|something else"):
        rso.convert(Plain(), X, timesteps=T)


class Trace(nn.Module):
    """Filters a current over calls, which here would be one."""

    def __init__(self):
        super().__init__()
        self.conv, self.trace = nn.Conv2d(3, 6, 3), None

    def forward(self, x):
        current = self.conv(x)
        self.trace = current if self.trace is None else 0.5 * self.trace + current
        return F.relu(self.trace).mean((2, 3))


@pytest.mark.parametrize("encode", [True, False])
def test_a_state_of_calls_that_are_timesteps_is_refused(encode):
    with pytest.raises(rso.ReparameterizationError, match=r"'the model' .Trace. reads what"):
        rso.convert(Trace().eval(), X, timesteps=T, encode=encode)


class Drawn(nn.Module):
    """Noise in front of the neurons: of every image, or the same for all."""

    def __init__(self, *shape: int):
        super().__init__()
        self.conv, self.shape = nn.Conv2d(3, 6, 3), shape

    def forward(self, x):
        noise = torch.rand(self.shape) if self.shape else torch.rand_like(x)
        return F.relu(self.conv((noise < x).float()))


def test_random_numbers_are_drawn_at_every_timestep():
    network = rso.convert(Drawn().eval(), X, timesteps=T)
    network.relu.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    seen = []
    network(X)
    steps = seen[0].unflatten(0, (T, -1))
    assert all(not torch.equal(steps[0], step) for step in steps[1:])
    with pytest.raises(rso.ReparameterizationError, match=r"'rand.*without a batch, \(8, 8\)"):
        rso.convert(Drawn(8, 8).eval(), X, timesteps=T)


def test_norms_start_at_the_threshold():
    network = rso.convert(ResNet(), X, timesteps=T, v_threshold=0.8, norms_at_threshold=True)
    block = network.layer1
    starts = {
        "one": (network.bn1, 0.8),
        "inside": (getattr(block, "0").bn1, 0.8),
        "beside spikes": (getattr(block, "0").bn2, 0.8),
        "of two": (getattr(block, "1").bn2, 0.8 / 2**0.5),
        "the other": (getattr(getattr(block, "1").downsample, "1"), 0.8 / 2**0.5),
    }
    for norm, start in starts.values():
        torch.testing.assert_close(norm.weight.data, torch.full_like(norm.weight, start))
    untouched = rso.convert(ResNet(), X, timesteps=T)
    assert (untouched.bn1.weight == 1).all()


def test_mode_device_and_copies():
    model = lively(lively(Functions())).eval()
    network = rso.convert(model, X, timesteps=T, granularity="layer")
    assert not network.training
    assert not network.dropout.training
    assert torch.equal(network(X), network(X))
    network.train()
    assert not torch.equal(network(X), network(X))  # dropout is on again
    network.eval()
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(X), network(X))
        assert twin.state_dict().keys() == network.state_dict().keys()
    half = rso.convert(Functions().bfloat16(), X.bfloat16(), timesteps=T, granularity="layer")
    assert half.relu.amplitude.dtype == torch.bfloat16


def doubled(x):
    return x * math.sqrt(4.0)


TENSORS_MADE_IN_FORWARD = {
    "zeros": lambda x, _: x + torch.zeros(x.shape[0], 6, 8, 8),
    "zeros of a tuple": lambda x, _: x + torch.zeros((x.shape[0], 6, 1, 1)),
    "of one size": lambda x, _: x + torch.ones(x.shape[0])[:, None, None, None],
    "of a shape": lambda x, _: x + torch.ones(*x.shape, dtype=x.dtype, device=x.device),
    "empty": lambda x, _: x + torch.empty(2 * x.shape[0], 3, 8, 8, device="cpu").fill_(1).sum(1)[0],
    "full": lambda x, _: x + torch.full((x.shape[0], 1, 1, 1), math.pi, dtype=torch.float32),
    "arange": lambda x, _: x + 0 * torch.arange(x.shape[0], dtype=x.dtype)[:, None, None, None],
    "like": lambda x, _: (
        x + torch.zeros_like(x, dtype=torch.float64) + x.new_ones(x.shape[0], 1, 1, 1)
    ),
    "layout": lambda x, _: x + torch.zeros(x.shape[0], 6, 8, 8, layout=torch.strided),
    "buffer": lambda x, b: x + b.expand(x.shape[0], -1, -1, -1),
    "of buffers": lambda x, b: x + (b * 2 + torch.ones(6, 1, 1)).expand(x.shape[0], 6, 1, 1),
    "functions of the module": lambda x, _: doubled(x) / math.e,
}


@pytest.mark.parametrize("of", TENSORS_MADE_IN_FORWARD.values(), ids=TENSORS_MADE_IN_FORWARD)
def test_what_makes_tensors_is_read_back_and_follows_them(of, tmp_path):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(384, 5)
            self.register_buffer("offset", images(1, 6, 1, 1))

        def forward(self, x):
            return self.fc(of(F.relu(self.conv(x)), self.offset).to(x.dtype).flatten(1))

    network = rso.convert(lively(Network()), X, timesteps=T, granularity="layer").eval()
    torch.save(network, tmp_path / "network.pt")
    read = torch.load(tmp_path / "network.pt", weights_only=False)
    for twin in (
        read,
        copy.deepcopy(network),
        copy.deepcopy(read),
        pickle.loads(pickle.dumps(read)),
    ):
        assert twin.state_dict().keys() == network.state_dict().keys()
        for x in (X, X[:1]):
            assert torch.equal(twin(x), network(x))
        if hasattr(network, "offset"):  # a buffer is read where it is, not as it was
            other = copy.deepcopy(network)
            twin.offset.add_(1)
            other.offset.add_(1)
            assert torch.equal(twin(X), other(X))
            assert not torch.equal(twin(X), network(X))


def test_one_layer_under_two_names_and_layers_made_inside_forward():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(384, 5)
            self.first = nn.ReLU()
            self.second = self.first

        def forward(self, x):
            x = self.second(nn.AvgPool2d(1)(self.first(self.conv(x))))
            return self.fc(nn.Flatten()(nn.ReLU()(x)))

    network = rso.convert(Odd(), X, timesteps=T, granularity="channel")
    assert [*neurons(network)] == ["first", "first_2", "relu"]
    assert network(X).shape == (4, 5)


def test_frames_and_the_end_of_a_network():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    frames = rso.convert(model, X, timesteps=T, encode=False)
    assert not hasattr(frames, "encoding")
    spikes = frames.get_submodule("1")(model[0](X))
    assert torch.equal(frames(X), model[3](spikes.flatten(1)).unflatten(0, (T, -1)).mean(0))
    scores = rso.convert(nn.Sequential(*model, nn.LogSoftmax(1)), X, timesteps=T)
    rates = rso.convert(model, X, timesteps=T)
    torch.testing.assert_close(scores(X), rates(X).log_softmax(1))


def test_several_outputs_are_averaged():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), nn.Linear(6, 4)

        def forward(self, x):
            x = F.relu(self.conv(x)).mean((2, 3))
            return {"a": self.a(x), "b": (self.b(x),)}

    out = rso.convert(Two(), X, timesteps=T)(X)
    assert (out["a"].shape, out["b"][0].shape) == ((4, 5), (4, 4))


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.conv, self.fc, self.norm = nn.Conv2d(3, 6, 3), nn.Linear(216, 5), nn.BatchNorm1d(5)
        self.as_written = forward

    def forward(self, x):
        return self.as_written(self, x, F.relu(self.conv(x)))


def hooked():
    model = vgg()
    model[0][0].register_forward_hook(lambda *_: None)
    return model


REFUSED = {
    "another activation": (nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.ReLU()), "'1'.*gelu"),
    "a function of another": (Net(lambda s, x, y: F.leaky_relu(y)), "leaky_relu"),
    "an activation by another name": (Net(lambda s, x, y: F.threshold(y, 0, 0)), "threshold"),
    "a special function": (Net(lambda s, x, y: torch.special.expit(y) * y), "sigmoid"),
    "log-sigmoid in the middle": (Net(lambda s, x, y: 2 * F.logsigmoid(y)), "logsigmoid"),
    "sigmoid in the middle": (Net(lambda s, x, y: s.fc((y * y.sigmoid()).flatten(1))), "sigmoid"),
    "no neurons": (nn.Sequential(nn.Conv2d(3, 6, 3)), "no ReLU"),
    "ours": (nn.Sequential(nn.Conv2d(3, 6, 3), rso.RealSpikeLIF(2), nn.ReLU()), "'1'.*converted"),
    "over the batch": (Net(lambda s, x, y: s.fc(y.flatten(1)).softmax(0)), "neighbours"),
    "no batch": (Net(lambda s, x, y: y.sum()), "neighbours"),
    "a batch as a number": (Net(lambda s, x, y: s.fc(y.view(4, -1))), "number"),
    "training": (Net(lambda s, x, y: y * 2 if s.training else y), "training mode"),
    "more in training": (Net(lambda s, x, y: (y, y + 1) if s.training else y), "training mode"),
    "F.batch_norm": (
        Net(lambda s, x, y: F.batch_norm(y, torch.zeros(6), torch.ones(6), training=s.training)),
        "training mode",
    ),
    "computed weights": (
        Net(lambda s, x, y: F.linear(y.flatten(1), 2 * s.fc.weight)),
        "linear.*parameters",
    ),
    "new weights": (
        Net(lambda s, x, y: s.fc(nn.LayerNorm(216)(y.flatten(1)))),
        "new weights.*each",
    ),
    "values": (Net(lambda s, x, y: y if y.max() > 0 else x), "values"),
    "a hook": (hooked(), "'0.0'.*hook"),
    "the number of a class": (Net(lambda s, x, y: s.fc(y.flatten(1)).argmax(1)), "argmax.*int64"),
    "channels first": (
        Net(lambda s, x, y: F.relu(s.conv(x).transpose(0, 1)).transpose(0, 1)),
        "relu_1.*not the batch",
    ),
    "two views side by side": (
        Net(lambda s, x, y: s.fc(F.relu(s.conv(torch.cat([x, x.flip(3)]))).flatten(1)).chunk(2)[0]),
        "'relu' would take images for timesteps",
    ),
    "rows in another order": (
        Net(lambda s, x, y: s.fc(y.flatten(1)).repeat_interleave(2, 0).unflatten(0, (2, -1))[0]),
        "neighbours|cannot be followed: the output would be another",
    ),
    "rows but one": (Net(lambda s, x, y: s.fc(y[: x.shape[0] - 1].flatten(1))), "batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_networks(name):
    model, reason = REFUSED[name]
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.convert(model, X, timesteps=T)


@pytest.mark.parametrize("encode", [True, False])
def test_many_timesteps_are_proven_with_fewer(encode):
    model, reason = REFUSED["two views side by side"]
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.convert(model, X, timesteps=300, encode=encode)
    model = Net(lambda s, x, y: s.fc(y.flatten(1)))
    network = rso.convert(model, X, timesteps=300, encode=encode, granularity="layer")
    assert network.relu.timesteps == network.mean_over_time.timesteps == 300
    assert network(X[:1] if encode else X[:1].repeat(300, 1, 1, 1)).shape == (1, 5)
    assert torch.equal(network.conv.weight, model.conv.weight)


@pytest.mark.parametrize(
    ("arguments", "exception", "reason"),
    [
        ({"timesteps": 0}, ValueError, "timesteps"),
        ({"timesteps": T, "granularity": "pixel"}, ValueError, "granularity.*pixel"),
        ({"timesteps": T, "tau": 2.0}, TypeError, "'tau'.*decay"),
        ({"timesteps": T, "decay": 2.0}, ValueError, r"decay.*\[0, 1\]"),
        ({"timesteps": T, "surrogate": "relu"}, ValueError, "surrogate.*relu"),
        ({"timesteps": T, "example_input": [1.0]}, TypeError, "example_input"),
        ({"timesteps": T, "model": F.relu}, TypeError, "model"),
    ],
)
def test_refused_arguments(arguments, exception, reason):
    given = {"model": Functions(), "example_input": X} | arguments
    model, example = given.pop("model"), given.pop("example_input")
    with pytest.raises(exception, match=reason):
        rso.convert(model, example, **given)
