"""Random graphs of every operation that folding knows, against the trained network in float64."""

import operator

import pytest
import torch
from fold_networks import T, as_if_trained, assert_equal_in_float64, assert_rounding_alone
from helpers import examples, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import realspike_ops as rso

CHANNELS = 4  # of most maps, so that they can be added


class Graph(nn.Module):
    """Every step is (layer or function, indices of the values it reads)."""

    def __init__(self, steps, layers):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        values = [self.layers[0](x)]
        for (function, reads), layer in zip(self.steps, self.layers[1:], strict=True):
            inputs = [values[n] for n in reads]
            values.append(layer(*inputs) if function is None else function(*inputs, layer))
        return values[-1]


class Constant(nn.Module):
    def __init__(self, tensor):
        super().__init__()
        self.tensor = nn.Parameter(tensor)


FUNCTIONS = {
    "add": lambda a, b, _: a + b,
    "sub": lambda a, b, _: torch.sub(a, b),
    "iadd": lambda a, b, _: operator.iadd(a, b),
    "sub_": lambda a, b, _: a.sub_(b),
    "cat": lambda a, b, _: torch.cat((a, b), 1),
    "scale": lambda a, constant: a * constant.tensor,
    "shift": lambda a, constant: constant.tensor - a,
    "halve": lambda a, _: a / 2,
    "features": lambda a, _: a.flatten(1),
    "shuffle": lambda a, _: a.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "half": lambda a, _: a.chunk(2, 1)[1].clone(),
    "transpose": lambda a, _: a.transpose(2, 3).clone(),
    "flip": lambda a, _: a.flip((1, 3)),
    "strided": lambda a, _: a[:, :, ::2, 1:].clone(),
    "option-a": lambda a, _: nn.functional.pad(a[:, :, ::2, ::2], (0, 0, 0, 0, 1, 0)),
    "roll": lambda a, _: torch.roll(a, (1, -1), (2, 3)),
    "upsample": lambda a, _: nn.functional.interpolate(a, scale_factor=(1, 2)),
    "bilinear": lambda a, _: nn.functional.interpolate(a, size=(4, 5), mode="bilinear"),
    "rows": lambda a, _: a.mean(2, keepdim=True),
    "stack": lambda a, _: torch.stack((a, a), 2).flatten(1, 2),
    "matrix": lambda a, constant: torch.einsum("nchw,cd->ndhw", a, constant.tensor),
    "pixels": lambda a, _: a.flatten(2).unsqueeze(3).clone(),
    "global": lambda a, _: torch.mean(a, [2, 3], keepdim=True),
}


class Builder:
    """Draws one step after the other; what a value may be used for is decided by its shape, by
    whether it has a real part, and by whether it is a map of spikes that can be pooled."""

    def __init__(self, draw):
        self.draw = draw
        self.steps, self.layers = [], []
        size = (draw(st.integers(3, 8)), draw(st.integers(3, 8)))
        self.image = (3, *size)
        first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        encode = nn.Sequential(first, nn.BatchNorm2d(CHANNELS), rso.DirectEncoding(T))
        self.values = [{"shape": (CHANNELS, *size), "real": True, "spikes": False}]
        self.layers.append(encode)
        self.unread: set[int] = {0}
        self.lif(0)
        # In one graph of four, later layers read the current of the encoding too.
        self.first = 0 if draw(st.integers(0, 3)) == 0 else 1

    def append(self, function, reads, layer, **changes):
        with torch.no_grad():
            layer.eval()
            shapes = [torch.zeros(T, *self.values[n]["shape"]) for n in reads]
            out = layer(*shapes) if function is None else FUNCTIONS[function](*shapes, layer)
        layer.train()
        real = any(self.values[n]["real"] for n in reads)
        value = {"shape": tuple(out.shape[1:]), "real": real, "spikes": False} | changes
        self.steps.append((function and FUNCTIONS[function], reads))
        self.layers.append(layer)
        self.values.append(value)
        self.unread -= set(reads)
        self.unread.add(len(self.values) - 1)

    def lif(self, n):
        C = self.values[n]["shape"][0]
        granularity = self.draw(st.sampled_from(["none", "layer", "channel", "element", "element"]))
        form = {"emission": "ternary"} if self.draw(st.integers(0, 3)) == 0 else {}
        neurons = rso.RealSpikeLIF(T, granularity, self.values[n]["shape"], **form)
        layer = nn.Sequential(nn.BatchNorm2d(C), neurons)
        self.append(None, (n,), layer, real=False, spikes=granularity != "element")

    def conv(self, n):
        draw, C = self.draw, self.values[n]["shape"][0]
        groups = draw(st.sampled_from([g for g in (1, 2, C) if C % g == 0 and CHANNELS % g == 0]))
        stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        padding = draw(st.sampled_from([0, 1, 2, (0, 2)] + (["same"] if stride == 1 else [])))
        kernel = draw(st.sampled_from([1, 2, 3, (1, 3), (3, 2)]))
        layer = nn.Conv2d(
            C, CHANNELS, kernel, stride, padding, dilation, groups, draw(st.booleans())
        )
        self.append(None, (n,), layer)

    def average(self, n):
        k = self.draw(st.sampled_from([1, 2, 3, (2, 3)]))
        smallest = min(k) if isinstance(k, tuple) else k
        layer = nn.AvgPool2d(
            k,
            self.draw(st.sampled_from([None, 1, 2])),
            self.draw(st.integers(0, smallest // 2)),
            self.draw(st.booleans()),
            self.draw(st.booleans()),
        )
        self.append(None, (n,), layer)

    def adaptive(self, n):
        size = (self.draw(st.integers(1, 4)), self.draw(st.sampled_from([None, 1, 2, 5])))
        self.append(None, (n,), nn.AdaptiveAvgPool2d(size))

    def max_pool(self, n):
        if self.values[n]["spikes"]:
            k = self.draw(st.integers(2, 3))
            layer = nn.MaxPool2d(k, self.draw(st.integers(1, 2)), self.draw(st.integers(0, 1)))
            self.append(None, (n,), layer, spikes=True)

    def norm(self, n):
        self.append(None, (n,), nn.BatchNorm2d(self.values[n]["shape"][0]))

    def constant(self, n):
        C, H, W = self.values[n]["shape"]
        shape = self.draw(st.sampled_from([(1,), (C, 1, 1), (1, C, 1, 1), (C, H, W)]))
        function = self.draw(st.sampled_from(["scale", "shift", "halve"]))
        self.append(function, (n,), Constant(1 + normal(shape, len(self.values))))

    def move(self, n):
        C, H, W = self.values[n]["shape"]
        names = ["transpose", "flip", "strided", "option-a", "roll", "bilinear", "rows"]
        names += ["shuffle", "half"] * (C % 2 == 0) + ["upsample", "stack"] * (C * W < 40)
        names += ["matrix", "pixels"] * (C * H * W < 200)
        name = self.draw(st.sampled_from(names))
        if name == "matrix" and self.values[n]["real"]:
            return
        self.append(name, (n,), Constant(normal((C, CHANNELS), n)))

    def transposed(self, n):
        draw, C = self.draw, self.values[n]["shape"][0]
        stride = draw(st.integers(1, 3))
        layer = nn.ConvTranspose2d(
            *(C, CHANNELS, draw(st.sampled_from([2, 3, (1, 4)])), stride),
            *(draw(st.integers(0, 1)), draw(st.integers(0, stride - 1))),
        )
        if C * self.values[n]["shape"][1] * self.values[n]["shape"][2] < 200:
            self.append(None, (n,), layer)

    def join(self, n):
        value = self.values[n]
        function = self.draw(st.sampled_from(["add", "sub", "iadd", "sub_", "cat", "cat"]))
        fits = [
            m
            for m, other in enumerate(self.values)
            if m >= self.first
            and other["shape"][function == "cat" :] == value["shape"][function == "cat" :]
        ]
        m = self.draw(st.sampled_from(fits))
        if function == "cat":
            spiking = not (value["real"] or self.values[m]["real"])
            if not spiking or value["shape"][0] + self.values[m]["shape"][0] > 12:
                return
        pools = value["spikes"] and self.values[m]["spikes"] and function == "cat"
        self.append(function, (n, m), nn.Identity(), spikes=pools)
        if function in ("iadd", "sub_"):  # whoever reads it later reads the sum
            self.values[n] = self.values[-1]

    def step(self):
        kinds = [self.conv, self.conv, self.lif, self.lif, self.join, self.join, self.average]
        kinds += [self.adaptive, self.max_pool, self.norm, self.constant]
        kinds += [self.move, self.move, self.transposed]
        index = self.draw(st.integers(self.first, len(self.values) - 1))
        # Mostly go on from the newest values, so that compositions get deep.
        index = max(index, len(self.values) - 3) if self.draw(st.booleans()) else index
        kind = self.draw(st.sampled_from(kinds))
        if min(self.values[index]["shape"][1:]) < 3 and kind in (self.average, self.max_pool):
            return
        try:
            kind(index)
        except RuntimeError as error:  # a kernel larger than the map
            assert "ernel size" in str(error) or "utput size" in str(error), error  # noqa: PT017

    def finish(self) -> Graph:
        """Everything that nothing reads becomes class scores, which are added and averaged."""
        ends = sorted(self.unread)
        scores = []
        for n in ends:
            if self.draw(st.booleans()):
                self.append("global", (n,), nn.Identity())
                n = len(self.values) - 1
            self.append("features", (n,), nn.Identity())
            features = self.values[-1]["shape"][0]
            self.append(None, (len(self.values) - 1,), nn.Linear(features, 5))
            scores.append(len(self.values) - 1)
        while len(scores) > 1:
            self.append("add", (scores.pop(), scores.pop()), nn.Identity())
            scores.append(len(self.values) - 1)
        if not self.values[scores[0]]["real"]:
            self.append(None, (scores[0],), rso.MeanOverTime(T))
        return Graph(self.steps, self.layers)


@st.composite
def networks(draw):
    torch.manual_seed(draw(st.integers(0, 99)))
    builder = Builder(draw)
    for _ in range(draw(st.integers(2, 12))):
        builder.step()
    return builder.finish(), builder.image


@pytest.mark.usefixtures("one_thread")
@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(networks())
def test_random_graphs(drawn):
    network, shape = drawn
    images = normal((4, *shape), 3)
    network = as_if_trained(network, images, 0)
    assert_equal_in_float64(network, images)
    assert_rounding_alone(network, images)
    folded = rso.reparameterize(network, images)
    with torch.no_grad():  # bits between the layers
        assert torch.equal(folded(images), _dense(folded, images))
    assert_rounding_alone(network, images, weight_dtype=torch.int8)


def _dense(folded, images):
    with torch.enable_grad():
        return folded(images).detach()
