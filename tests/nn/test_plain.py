"""nn/plain.py: a module is plain if its call computes what its base's forward computes."""

import copy
import re
import types
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import realspike_ops as rso
from realspike_ops.nn.plain import why_not_plain


class Renamed(nn.Conv2d):
    """Inherits all that runs."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3)

    def reset(self):
        raise AssertionError("nothing calls it")

    def conv2d(self):
        raise AssertionError("forward calls torch's function of this name, not this method")


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class OwnCall(nn.Conv2d):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Doubles(nn.Module):
    def forward(self, x):
        return 2 * super().forward(x)


class Mixed(Doubles, nn.Conv2d):
    pass


class DoublesCalls(nn.Module):
    def _call_impl(self, *args):
        return 2 * super()._call_impl(*args)


class MixedBehind(nn.Conv2d, DoublesCalls):
    """What it mixes in comes behind nn.Conv2d, and still before nn.Module."""


class LeakyDecay(rso.RealSpikeLIF):
    @property
    def decay(self):
        return 0.9


class OwnDimensions(nn.BatchNorm2d):
    def _check_input_dim(self, x):
        x.mul_(2)


def hooked(register, *args, **kwargs):
    conv = nn.Conv2d(2, 2, 3)
    getattr(conv, register)(*args, **kwargs)
    return conv


def replaced(name):
    conv = nn.Conv2d(2, 2, 3)
    own = getattr(conv, name)
    setattr(conv, name, lambda *args: 2 * own(*args))
    return conv


NOT_PLAIN = {
    "forward": (lambda: OwnForward(2, 2, 3), "OwnForward has a forward of its own"),
    "_conv_forward": (lambda: OwnConvolution(2, 2, 3), "_conv_forward"),
    "__call__": (lambda: OwnCall(2, 2, 3), "__call__"),
    "mixin": (lambda: Mixed(2, 2, 3), "forward"),
    "mixin behind": (lambda: MixedBehind(2, 2, 3), "_call_impl"),
    "instance forward": (lambda: replaced("forward"), "forward is replaced on the instance"),
    "instance _conv_forward": (lambda: replaced("_conv_forward"), "_conv_forward"),
    "instance _call_impl": (lambda: replaced("_call_impl"), "_call_impl"),
    "forward hook": (
        lambda: hooked("register_forward_hook", lambda module, x, y: 2 * y),
        "forward hooks.*lambda",
    ),
    "forward hook with kwargs": (
        lambda: hooked("register_forward_hook", lambda m, x, k, y: 2 * y, with_kwargs=True),
        "forward hooks",
    ),
    "forward pre-hook": (
        lambda: hooked("register_forward_pre_hook", lambda module, x: (2 * x[0],)),
        "forward hooks",
    ),
    "pruned": (lambda: prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 0.5), "prune.remove"),
    "weight_norm": (lambda: nn.utils.weight_norm(nn.Conv2d(2, 2, 3)), "WeightNorm"),
    "lazy": (lambda: nn.LazyConv2d(2, 3), "LazyConv2d without weights"),
    "another layer": (lambda: nn.Linear(2, 2), "Linear, not Conv2d or BatchNorm2d or RealSpikeLIF"),
    "a property that forward reads": (lambda: LeakyDecay(2), "decay"),
    "_check_input_dim": (lambda: OwnDimensions(2), "_check_input_dim"),
}
BASES = (nn.Conv2d, nn.BatchNorm2d, rso.RealSpikeLIF)


@pytest.mark.parametrize("name", NOT_PLAIN)
@pytest.mark.filterwarnings("ignore")
def test_what_computes_something_else_is_not_plain(name):
    make, reason = NOT_PLAIN[name]
    found = why_not_plain(make(), BASES)
    assert found is not None
    assert re.search(reason, found), found


def initialised_lazy():
    layer = nn.LazyConv2d(2, 3)
    layer(torch.zeros(1, 2, 3, 3))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(2, 2, 3),
        lambda: Renamed(2),
        lambda: copy.deepcopy(Renamed(2)),
        lambda: parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
        lambda: hooked("register_full_backward_hook", lambda *args: None),
        initialised_lazy,
        lambda: nn.BatchNorm2d(2),
        lambda: rso.RealSpikeLIF(2),
        lambda: type("Preset", (rso.RealSpikeLIF,), {})(2),
    ],
)
def test_what_inherits_its_computation_is_plain(make):
    assert why_not_plain(make(), BASES) is None


def test_the_nearest_base_counts():
    """`OwnForward` is not plain as an nn.Conv2d, and its heirs are as an `OwnForward`."""
    heir = type("Heir", (OwnForward,), {})(2, 2, 3)
    assert "forward" in why_not_plain(heir, nn.Conv2d)
    assert why_not_plain(heir, (nn.Conv2d, OwnForward)) is None


@contextmanager
def global_hook():
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: 2 * y)
    yield
    handle.remove()


@contextmanager
def patched(name, replacement):
    original = getattr(nn.Conv2d, name)
    setattr(nn.Conv2d, name, replacement)
    yield
    setattr(nn.Conv2d, name, original)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (global_hook, "global forward hooks"),
        (lambda: patched("forward", lambda self, x: x), "Conv2d.forward is replaced"),
        (lambda: patched("_conv_forward", lambda self, x, w, b: x), "_conv_forward is replaced"),
    ],
)
def test_what_changes_all_modules_is_seen(changed, reason):
    conv = nn.Conv2d(2, 2, 3)
    with changed():
        found = why_not_plain(conv, nn.Conv2d)
    assert reason in found
    assert why_not_plain(conv, nn.Conv2d) is None


def test_methods_of_closures_are_followed():
    """A function inside forward calls methods too."""

    class Base(nn.Module):
        def forward(self, x):
            return sum(self.part(n, x) for n in range(2))

        def part(self, n, x):
            return n * x

    class Heir(Base):
        def part(self, n, x):
            return x

    layer = Base()
    assert why_not_plain(layer, Base) is None
    assert "part" in why_not_plain(Heir(), Base)
    layer.part = types.MethodType(Heir.part, layer)
    assert "part" in why_not_plain(layer, Base)
