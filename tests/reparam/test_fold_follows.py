"""What `forward` says in Python around the layers is folded as it is, or refused."""

import copy
import math
import random
import types
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from helpers import normal
from torch import Tensor, nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

T = 2


class Network(nn.Module):
    """Images, repeated over time, through two layers of neurons; tests replace its parts."""

    def __init__(self, encode=None, body=None, make=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.repeat, self.mean = rso.DirectEncoding(T), rso.MeanOverTime(T)
        self.lif = rso.RealSpikeLIF(T, "element", (4, 6, 6))
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.lif2, self.fc = rso.RealSpikeLIF(T, "element", (4, 6, 6)), nn.Linear(144, 5)
        for name, parameter in self.named_parameters():
            values = torch.rand(parameter.shape, generator=generator)
            parameter.data.copy_(values + 0.5 if "amplitude" in name else values - 0.4)
        self.encode_with, self.body_with = encode, body
        if make is not None:
            make(self)
        self.eval()

    def encode(self, x):
        return self.repeat(self.norm(self.conv(x)))

    def forward(self, x):
        current = self.encode(x) if self.encode_with is None else self.encode_with(self, x)
        spikes = self.lif(current)
        if self.body_with is None:
            spikes = self.lif2(self.conv2(spikes))
        else:
            spikes = self.body_with(self, spikes)
        return self.mean(self.fc(spikes.flatten(1)))


def folds(model, examples=(1, 4), batches=(1, 3, 4, 5)) -> None:
    """The folded network gives the trained one's outputs for every batch, whatever the example's;
    the neurons are not silent."""
    for example in examples:
        folded = rso.reparameterize(model, normal((example, 3, 6, 6), 0))
        for batch in batches:
            x = normal((batch, 3, 6, 6), batch)
            with torch.no_grad():
                torch.manual_seed(1)
                expected = model(x.clone())
                torch.manual_seed(1)
                got = folded(x.clone())
            assert expected.abs().amax() > 0.1
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def refused(model, reason: str, example: int = 4) -> None:
    with pytest.raises(rso.ReparameterizationError, match=reason):
        rso.reparameterize(model, normal((example, 3, 6, 6), 0))


# --- sizes ----------------------------------------------------------------------------------------


def written_step_by_step(m, x):
    out = torch.zeros(T, x.shape[0], 4, 6, 6)
    for t in range(T):
        out[t] = m.norm(m.conv(x)) * (t + 1)
    return out.flatten(0, 1)


def with_a_constant_that_changes(m, x):
    level, out = torch.zeros(4, 1, 1), m.encode(x)
    for _ in range(3):
        level += 0.25
        out = out * (1 + level)
    return out + torch.full_like(out, float("nan")).nan_to_num(0.25)


SIZES = {
    "size": lambda m, x: m.norm(m.conv(x)).repeat(T, 1, 1, 1).view(T * x.size(0), 4, 6, 6),
    "shape": lambda m, x: m.encode(x).reshape(T * x.shape[0], 4, *x.shape[2:]),
    "len": lambda m, x: m.norm(m.conv(x)).expand(T, len(x), 4, 6, 6).reshape(-1, 4, 6, 6),
    "numel": lambda m, x: m.repeat(m.norm(m.conv(x)).view(x.numel() // 108, 4, 6, 6)),
    "prod": lambda m, x: m.encode(x.view(math.prod(x.shape[:2]) // 3, 3, 6, 6)),
    "int": lambda m, x: m.encode(x.view(int(x.shape[0]), 3, 6, 6)),
    "one-less": lambda m, x: m.encode(x) + torch.cat([x[: x.shape[0] - 1], x[-1:]]).sum() / 100,
    "arange": lambda m, x: m.encode(x[torch.arange(x.shape[0] - 1, -1, -1)]),
    "zeros": lambda m, x: m.encode(x) + torch.zeros(T * x.size(0), 1, 6, 6).add(0.25),
    "full": lambda m, x: m.encode(x) + torch.full((T * x.size(0), 1, 1, 1), 0.25),
    "new_ones": lambda m, x: m.encode(x) + 0.25 * x.new_ones(T * x.size(0), 4, 1, 1),
    "empty": lambda m, x: torch.empty(T * x.shape[0], 4, 6, 6).copy_(m.encode(x)),
    "quotient": lambda m, x: m.encode(x) / x.shape[0],
    "step-by-step": written_step_by_step,
    "constant-that-changes": with_a_constant_that_changes,
    "fixed-numbers": lambda m, x: m.encode(x).view(-1, 4, 36).view(-1, 4, 6, 6),
}


@pytest.mark.parametrize("encode", SIZES.values(), ids=SIZES)
def test_sizes_follow_the_batch(encode):
    folds(Network(encode))


def test_frames_of_another_order_and_learned_maps():
    class Frames(Network):  # [B, T, C, H, W]
        def encode(self, x):
            B, steps, C, H, W = x.shape
            x = x.transpose(0, 1).reshape(B * steps, C, H, W)
            return self.norm(self.conv(x)) + self.where.expand(x.shape[0], -1, -1, -1)

    model = Frames(make=lambda m: setattr(m, "where", nn.Parameter(normal((1, 4, 6, 6), 9))))
    for example in (1, 3):
        folded = rso.reparameterize(model, normal((example, T, 3, 6, 6), 0))
        for batch in (1, 4):
            x = normal((batch, T, 3, 6, 6), batch)
            torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-4)


def test_sizes_behind_the_neurons():
    folds(Network(body=lambda m, z: m.lif2(m.conv2(z).view(z.size(0), 4, 6, 6))))
    folds(Network(body=lambda m, z: m.lif2(m.conv2(z).view(T, -1, 4, 6, 6).flatten(0, 1))))
    refused(Network(body=lambda m, z: m.lif2(m.conv2(z) * z.shape[0])), "size of the batch")


def test_an_example_without_images_and_one_that_is_no_batch():
    model, x = Network(), normal((3, 3, 6, 6), 1)
    folded = rso.reparameterize(model, x[:0])
    assert torch.equal(folded(x), rso.reparameterize(model, x)(x))
    with pytest.raises(rso.ReparameterizationError, match="must be a batch"):
        rso.reparameterize(model, x.sum())


def test_a_batch_that_is_a_number_stays_one():
    model = Network(lambda m, x: m.encode(x).view(6, 4, 6, 6))
    folded = rso.reparameterize(model, normal((3, 3, 6, 6), 0))
    x = normal((3, 3, 6, 6), 1)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"x must have 3 rows.*got \[4, 3, 6, 6\]"):
        folded(normal((4, 3, 6, 6), 1))


BRANCHES = {
    "one-image": lambda m, x: m.encode(x) * (2 if x.shape[0] == 1 else 1),
    "another-call": lambda m, x: m.encode(x).mul(2) if len(x) > 1 else m.encode(x),
    "images-one-by-one": lambda m, x: m.encode(torch.stack(list(x))),
    "a-float": lambda m, x: m.encode(x) * (1 / x.shape[0]),
    "a-root": lambda m, x: m.encode(x) * math.sqrt(len(x)),
}


@pytest.mark.parametrize("encode", BRANCHES.values(), ids=BRANCHES)
def test_what_depends_on_the_batch_in_another_way_is_refused(encode):
    for example in (1, 4):
        refused(Network(encode), "batch", example)


# --- names of a tensor ----------------------------------------------------------------------------


def changed(change):
    """Changes the current under another name, then reads it under its own."""

    def encode(m, x):
        current = m.encode(x).clone()
        change(current)
        return current

    return encode


CHANGES = {
    "data": lambda z: z.data.mul_(2),
    "float": lambda z: z.float().mul_(2),
    "to": lambda z: z.to(torch.float32).add_(1),
    "ipow": lambda z: z.__ipow__(2),
    "ifloordiv": lambda z: z.__ifloordiv__(0.5),
    "imod": lambda z: z.__imod__(0.75),
    "setitem": lambda z: z.__setitem__((slice(None), 0), 0.75),
    "masked": lambda z: z.__setitem__(z < 0, 0.5),
    "relu_": lambda z: torch.relu_(z),
    "inplace=True": lambda z: F.relu(z, inplace=True),
    "fill_": lambda z: z.fill_(0.6),
    "copy_": lambda z: z.copy_(z.flip(1)),
    "detach": lambda z: z.detach().clamp_(0, 0.6),
    "reshape-to-itself": lambda z: z.reshape(z.shape).mul_(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_under_another_name_is_seen(change):
    folds(Network(changed(change)), batches=(1, 3))


VIEWS = {
    "view": lambda z: z.view(-1, 4, 36).mul_(2),
    "slice": lambda z: z[:, :2].mul_(2),
    "data-of-a-view": lambda z: z.flatten(1).data.mul_(2),
    "chunk": lambda z: z.chunk(2, 1)[1].zero_(),
}


@pytest.mark.parametrize("change", VIEWS.values(), ids=VIEWS)
def test_a_change_of_a_part_is_refused(change):
    refused(Network(changed(change)), "in place, which it reads under another name")


def test_one_layer_that_changes_its_input_twice():
    def encode(m, x):
        first = m.relu(m.conv(x))
        second = m.norm(first)
        return m.repeat(m.relu(second) + second)

    model = Network(encode, make=lambda m: setattr(m, "relu", nn.ReLU(inplace=True)))
    folds(model)
    assert model.relu.inplace


def test_what_a_buffer_keeps():
    def monitored(m, z):
        m.rate.copy_(z.mean())
        m.rates.append(z.mean())
        return m.lif2(m.conv2(z))

    def make(m):
        m.register_buffer("rate", torch.zeros(()))
        m.rates = []

    folds(Network(body=monitored, make=make))

    def counts(m, x):
        m.rate.add_(1)
        return m.encode(x) * m.rate

    refused(Network(counts, make=make), "other values at every call")


# --- chance and modes -----------------------------------------------------------------------------

DRAWN = {
    "rand": lambda m, x: m.encode(x) + torch.rand(4, 1, 1),
    "rand_like": lambda m, x: m.encode(x) + torch.rand_like(x[:, :1]).repeat(T, 1, 1, 1),
    "randn-of-a-size": lambda m, x: m.encode(x) + torch.randn(T * x.shape[0], 1, 1, 1),
    "of-a-parameter": lambda m, x: m.encode(x) + torch.randn_like(m.norm.weight).view(4, 1, 1),
    "uniform_": lambda m, x: m.encode(x) + torch.empty(4, 1, 1).uniform_(),
    "bernoulli": lambda m, x: torch.bernoulli(m.encode(x).sigmoid()),
    "dropout": lambda m, x: F.dropout(m.encode(x), 0.25),
}


@pytest.mark.parametrize("encode", DRAWN.values(), ids=DRAWN)
def test_random_tensors_are_drawn_at_every_call(encode):
    model = Network(encode)
    folds(model, batches=(1, 3))  # the same seed gives the same numbers in both
    folded, x = rso.reparameterize(model, normal((1, 3, 6, 6), 0)), normal((3, 3, 6, 6), 1)
    assert not torch.equal(folded(x), folded(x))


CHANCE = {
    "python": (lambda m, x: m.encode(x) * random.random(), "other values at every call"),
    "an-item": (lambda m, x: m.encode(x) * torch.rand(()).item(), "depends on the values"),
    "a-generator": (
        lambda m, x: m.encode(x) + torch.rand(4, 1, 1, generator=torch.Generator()),
        "torch.Generator of its own",
    ),
    "a-seed": (
        lambda m, x: m.encode(x) + (torch.manual_seed(0) and torch.rand(4, 1, 1)),
        "cannot be followed",
    ),
}


@pytest.mark.parametrize(("encode", "reason"), CHANCE.values(), ids=CHANCE)
def test_other_chance_is_refused(encode, reason):
    with torch.random.fork_rng():
        refused(Network(encode), reason)


def test_chance_behind_the_neurons_is_refused():
    refused(Network(body=lambda m, z: m.lif2(m.conv2(z) + torch.rand_like(z))), "rand_like")
    noisy = Network(
        body=lambda m, z: m.lif2(
            F.conv2d(z, m.conv2.weight + torch.randn_like(m.conv2.weight), padding=1)
        )
    )
    refused(noisy, "conv2d.*depends on the input, or on chance")


def cast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.encode(x)


def test_autocast_inside_forward_is_refused():
    refused(Network(cast), "autocast")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # around it, it changes nothing
        folded = rso.reparameterize(Network(), normal((1, 3, 6, 6), 0))
    x = normal((3, 3, 6, 6), 1)
    torch.testing.assert_close(folded(x), Network()(x), rtol=0, atol=1e-4)


class StubbornNorm(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class StubbornDropout(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


@pytest.mark.parametrize("layer", [StubbornNorm(4), StubbornDropout(0.5)])
def test_layers_that_stay_in_training_mode_are_refused(layer):
    model = Network(body=lambda m, z: m.lif2(m.layer(z)), make=lambda m: setattr(m, "layer", layer))
    refused(model, r"'layer' \(Stubborn\w+\) stays in training mode")


# --- subclasses, replaced methods, hooks, wrappers ------------------------------------------------


class Preset(rso.RealSpikeLIF):
    def __init__(self):
        super().__init__(T, "element", (4, 6, 6))


class ThresholdNorm(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-3)
        nn.init.constant_(self.weight, 0.5)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Encoding(rso.DirectEncoding):
    pass


class Mean(rso.MeanOverTime):
    pass


class DoubledNeurons(rso.RealSpikeLIF):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclasses_that_inherit_forward_count_as_their_parents():
    def make(m):
        m.norm, m.lif, m.repeat, m.mean = ThresholdNorm(4).eval(), Preset(), Encoding(T), Mean(T)
        m.norm2 = ThresholdNorm(4).eval()

    model = Network(body=lambda m, z: m.lif2(m.norm2(m.conv2(z))), make=make)
    folds(model)
    folded = rso.reparameterize(model, torch.zeros(1, 3, 6, 6))
    assert [step.name for step in folded.steps][:4] == ["conv", "norm", "repeat", "lif"]
    assert folded.neurons == {"lif": ("lif", 1), "lif2": ("lif2", 1)}


def test_layers_with_a_forward_of_their_own():
    def double(m):
        m.conv2 = Doubled(4, 4, 3, padding=1)

    folds(Network(make=double))  # what it calls is linear

    def neurons(m):
        m.lif2 = DoubledNeurons(T)

    refused(Network(make=neurons), "'lif2'.*DoubledNeurons is not a plain RealSpikeLIF")


def test_methods_that_are_replaced_on_an_instance():
    def replace(layer, forward):
        layer.forward = types.MethodType(forward, layer)

    folds(Network(make=lambda m: replace(m.conv2, lambda s, x: 2 * nn.Conv2d.forward(s, x))))
    model = Network(make=lambda m: replace(m.lif2, lambda s, x: 2 * rso.RealSpikeLIF.forward(s, x)))
    refused(model, "lif2.*forward is replaced on the instance")


@torch.fx.wrap
def flatten(x, *_):
    return 3 * x


def test_functions_of_others_under_the_names_of_torch():
    folds(Network(body=lambda m, z: m.lif2(flatten(m.conv2(z), 1))))


def test_modules_with_names_that_are_no_names_in_python():
    def make(m):
        m.add_module("lambda", m.conv2)
        m.add_module("1", nn.Identity())

    folds(Network(body=lambda m, z: m.lif2(getattr(m, "1")(getattr(m, "lambda")(z))), make=make))


def test_hooks_are_refused():
    model = Network()
    model.conv2.register_forward_hook(lambda *_: None)
    refused(model, r"'conv2' \(Conv2d\) has forward hooks")
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        refused(Network(), "hooks on all modules")
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile]
)
def test_wrapped_models(wrap):
    model, x = Network(), normal((3, 3, 6, 6), 1)
    expected = rso.reparameterize(model, x)
    for wrapped in (wrap(model), nn.Sequential(wrap(model))):
        folded = rso.reparameterize(wrapped, x)
        assert torch.equal(folded(x), expected(x))


def test_models_that_keep_what_they_computed():
    model = Network(body=lambda m, z: m.lif2(keep(m, m.conv2(z))))

    def keep(m, z):
        m.kept = {"currents": [z]}
        return z

    model(normal((1, 3, 6, 6), 0)).sum().backward()
    folds(model)
    model.lock = (n for n in range(3))
    refused(model, "cannot be copied")


# --- arguments and outputs ------------------------------------------------------------------------


class Outputs(Network):
    def __init__(self, make_outputs):
        super().__init__()
        self.make_outputs = make_outputs

    def forward(self, *xs, scale=None):
        (x,) = xs
        assert x.dim() == 4
        assert x.shape[1] == 3
        spikes = self.lif(self.encode(x))
        self.rate = spikes.mean()  # nobody reads it
        self.fc(self.lif2(spikes).flatten(1))  # an auxiliary head without a reader
        return self.make_outputs(self, spikes)


def scores(m, z):
    return m.mean(m.fc(m.lif2(m.conv2(z)).flatten(1)))


@pytest.mark.parametrize(
    "make_outputs",
    [
        lambda m, z: (scores(m, z), z),
        lambda m, z: {"scores": scores(m, z), "more": [m.conv2(z), None, 3]},
        lambda m, z: [scores(m, z)],
    ],
    ids=["tuple", "dict", "list"],
)
def test_several_outputs(make_outputs, tmp_path):
    model = Outputs(make_outputs)
    folded = rso.reparameterize(model, normal((1, 3, 6, 6), 0))
    assert sum(isinstance(m, rso.RealSpikeLIF) for m in folded.modules()) == 2
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    x = normal((3, 3, 6, 6), 1)
    with torch.no_grad():
        expected = model(x)
        for network in (folded, copy.deepcopy(folded), loaded):
            torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-4)
    report = rso.verify(model, folded, x, bounds=True)
    assert report.within_bounds
    assert [layer.name for layer in report.layers] == ["lif", "lif2"]
    assert report.flipped_spikes == 0
    assert report.max_logit_error < 1e-4


def test_dimensions_of_constants_may_follow_the_batch():
    def make(m):
        m.token = nn.Parameter(normal((1, 1, 6, 6), 3))

    folds(Network(lambda m, x: m.encode(x) + m.token.expand(T * len(x), -1, -1, -1), make=make))


def test_outputs_that_lose_a_batch_of_one_are_refused():
    for example in (1, 4):
        refused(
            Outputs(lambda m, z: scores(m, z)[:, :1].squeeze()), "squeeze.*a batch of 1", example
        )
    folds(Outputs(lambda m, z: scores(m, z)[:, :1].squeeze(1)))


class Pair(NamedTuple):
    scores: Tensor
    spikes: Tensor


KINDS = {
    "a named tuple": lambda m, z: Pair(scores(m, z), z),
    "a dictionary with numbers as keys": lambda m, z: {0: scores(m, z), 1: z},
    "an ordered dictionary": lambda m, z: OrderedDict(b=scores(m, z), a=z),
    "of torch": lambda m, z: torch.return_types.max((scores(m, z), z)),
}


@pytest.mark.parametrize("make_outputs", KINDS.values(), ids=KINDS)
def test_containers_of_outputs_are_kept_and_no_file_holds_them(make_outputs, tmp_path):
    model = Outputs(make_outputs)
    folded, x = rso.reparameterize(model, normal((1, 3, 6, 6), 0)), normal((3, 3, 6, 6), 1)
    expected, got = model(x), folded(x)
    assert type(got) is type(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"returns .* tuples, lists and dicts|cannot hold: \{0:"):
        rso.save_folded(folded, tmp_path / "a")
    assert not [*tmp_path.iterdir()]


@dataclass
class Result:
    scores: Tensor


def test_outputs_that_are_refused():
    x = normal((1, 3, 6, 6), 0)
    for outputs, kind in ((lambda m, z: Result(scores(m, z)), "Result"), (lambda m, z: "z", "str")):
        with pytest.raises(rso.ReparameterizationError, match=f"returns a {kind}"):
            rso.reparameterize(Outputs(outputs), x)


def test_models_that_are_not_ready():
    lazy = Network(make=lambda m: setattr(m, "fc", nn.LazyLinear(5)))
    refused(lazy, r"'fc' \(LazyLinear\) is lazy and has no weights yet")
    refused(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 6, 6)), "scripted or traced")


def test_another_default_device_and_dtype():
    model, x = Network(), normal((3, 3, 6, 6), 1)
    expected = rso.reparameterize(model, x)
    torch.set_default_device("meta")
    try:
        folded = rso.reparameterize(model, x)
    finally:
        torch.set_default_device(None)
    torch.set_default_dtype(torch.float64)
    try:
        other = rso.reparameterize(model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    for network in (folded, other):
        assert torch.equal(network(x), expected(x))
        assert all(t.dtype == torch.float32 for t in network.parameters() if isinstance(t, Tensor))
