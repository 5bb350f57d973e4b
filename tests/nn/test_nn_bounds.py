"""Folded layers within the error that their roundings allow: of the weights to their dtype, of the
float32 sum, and, where there are any, of products. Expected: bn(layer(amplitude * spikes)) in
float64, by torch.

With n terms t_i, weights rounded by a relative eta and k roundings of the sum, the error is at most
((1 + eta)(1 + gamma(k)) - 1) sum |t_i|, gamma(k) = k u / (1 - k u).
"""

import copy
import itertools

import pytest
import torch
from helpers import HALF_ULP, SUBNORMAL, U, assert_within, binary, normal
from pairwise import pairwise
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")


def gamma(k):
    return k * U / (1 - k * U)


def as_map(vector):
    return vector.view(-1, 1, 1)


def batch_norm(features: int, kind=nn.BatchNorm2d):
    norm = kind(features).eval()
    with torch.no_grad():
        norm.weight.copy_(normal((features,), 11))
        norm.bias.copy_(normal((features,), 12))
        norm.running_mean.copy_(normal((features,), 13))
        norm.running_var.copy_(normal((features,), 14).abs() + 0.1)
    return norm


def amplitude_of(granularity, channels, size):
    shape = {"layer": (1,), "channel": (channels, *(1 for _ in size)), "element": (channels, *size)}
    return None if granularity is None else normal(shape[granularity], 15)


def expected_and_bound(layer, norm, amplitude, spikes, *, eta, products, subnormal, step=None):
    """Return bn(layer(amplitude * spikes)) in float64 and the bound on the folded layer's error.

    `layer` is an nn.Conv or nn.Linear. step: of int8 weights, [Cout]."""
    layer = copy.deepcopy(layer).double().requires_grad_(False)
    spikes = spikes.double()
    factor = torch.ones(layer.weight.shape[0], dtype=torch.float64)
    shift = torch.zeros_like(factor) if layer.bias is None else layer.bias.clone()
    if norm is not None:
        norm = copy.deepcopy(norm).double().requires_grad_(False)
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = (shift - norm.running_mean) * factor + norm.bias
    tail = (1,) * (spikes.dim() - 2)
    factor, shift = factor.view(-1, *tail), shift.view(-1, *tail)
    layer.bias = None
    real = spikes if amplitude is None else amplitude.double() * spikes
    currents = layer(real) * factor
    signless = copy.deepcopy(layer)
    signless.weight.abs_()
    magnitude = signless(real.abs()) * factor.abs()
    signless.weight.fill_(1.0)
    terms = signless(spikes)
    roundings = terms + products
    if step is None:
        error = ((1 + eta) * (1 + gamma(roundings)) - 1) * magnitude + terms * subnormal
    else:
        # A weight is at most half a step off; the sum is exact, and its product is rounded once.
        half_steps = 0.5 * (1 + 2.0**-20) * step.double().view(-1, *tail) * terms
        error = half_steps + gamma(2) * (currents.abs() + half_steps)
    error = error + ((1 + U) * (1 + gamma(roundings + 1)) - 1) * shift.abs()
    return currents + shift, error


CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 2), "padding": (1, 0), "stride": (2, 1)},
    "dilated": {"kernel_size": (2, 3), "padding": (0, 2), "dilation": (1, 2)},
    "same": {"kernel_size": (3, 4), "padding": "same"},
    "1x1": {"kernel_size": 1, "stride": 2},
}
AXES = {
    "conv": list(CONVOLUTIONS.values()),
    "dimensions": [1, 2],
    "storage": [
        *itertools.product(
            (torch.float32, torch.float16, torch.bfloat16), ("materialized", "factored")
        ),
        (torch.int8, "materialized"),
    ],
    "channels": [(1, 1), (33, 31), (64, 65), (129, 16), (6, 128)],  # per group
    "groups": [1, 2],
    "granularity": [None, "layer", "channel", "element"],
    "bias": [False, True],
    "batch_norm": [False, True],
    "N": [1, 5, 65],
    "packed": [False, True],
    "fold_scale": [False, True],
}


def one_dimension(conv: dict) -> dict:
    return {k: v[-1] if isinstance(v, tuple) else v for k, v in conv.items()}


def make_conv(case):
    torch.manual_seed(1)
    Cin, Cout = (case["groups"] * c for c in case["channels"])
    kind, conv = nn.Conv2d, case["conv"]
    if case["dimensions"] == 1:
        kind, conv = nn.Conv1d, one_dimension(conv)
    return kind(Cin, Cout, groups=case["groups"], bias=case["bias"], **conv)


def rounding_of(dtype, factored: bool):
    """(eta, products): of kernel and amplitude, which are rounded apart in factored storage."""
    half = U if dtype == torch.int8 else HALF_ULP[dtype]
    return ((1 + half) * (1 + U) - 1, 1) if factored else (half, 0)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", pairwise(AXES, lambda case: 1.0), ids=str)
def test_from_conv(case):
    conv = make_conv(case)
    size = (5, 7) if case["dimensions"] == 2 else (11,)
    amplitude = amplitude_of(case["granularity"], conv.in_channels, size)
    kind = nn.BatchNorm2d if case["dimensions"] == 2 else nn.BatchNorm1d
    norm = batch_norm(conv.out_channels, kind) if case["batch_norm"] else None
    dtype, storage = case["storage"]
    fold = {"dtype": dtype, "storage": storage, "fold_scale": case["fold_scale"]}
    if case["dimensions"] == 2:
        layer = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, size, norm, **fold)
    else:
        layer = rso.UnsharedSpikeConv1d.from_conv1d(conv, amplitude, size[0], norm, **fold)
    spikes = binary((case["N"], conv.in_channels, *size), 2, 0.4)
    out = layer(rso.pack_spikes(spikes) if case["packed"] else spikes).detach().double()
    eta, products = rounding_of(dtype, layer.amplitude is not None)
    expected, bound = expected_and_bound(
        *(conv, norm, amplitude, spikes),
        **{"eta": eta, "products": products, "step": layer.scale},
        subnormal=SUBNORMAL.get(dtype, 0.0) * (4 if products else 1),
    )
    if layer.fold_scale:
        scale = layer.scale.double().view(-1, *(1 for _ in size))
        out = out * scale
        bound = bound + gamma(2) * expected.abs()  # of the bias in steps
    assert_within(out, expected, bound, "currents")


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("granularity", [None, "layer", "channel"])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_spike_conv2d(conv, granularity, packed):
    case = {"conv": CONVOLUTIONS[conv], "dimensions": 2, "channels": (33, 17)}
    conv = make_conv(case | {"groups": 2, "bias": packed})
    norm = None if packed else batch_norm(conv.out_channels)
    amplitude = amplitude_of(granularity, conv.in_channels, (5, 7))
    layer = rso.SpikeConv2d.from_conv2d(conv, amplitude, norm)
    spikes = binary((6, conv.in_channels, 5, 7), 2, 0.4)
    out = layer(rso.pack_spikes(spikes) if packed else spikes).detach()
    expected, bound = expected_and_bound(
        *(conv, norm, amplitude, spikes), eta=U, products=0, subnormal=0.0
    )
    assert_within(out, expected, bound, "currents")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("granularity", [None, "layer", "element"])
@pytest.mark.parametrize("features", [(1, 1), (31, 33), (257, 129), (64, 600)], ids=str)
@pytest.mark.parametrize("N", [1, 5, 65])
def test_spike_linear(N, features, granularity, packed):
    torch.manual_seed(1)
    linear = nn.Linear(*features, bias=packed)
    norm = batch_norm(features[1], nn.BatchNorm1d) if N == 5 else None
    amplitude = amplitude_of(granularity, features[0], ())
    layer = rso.SpikeLinear.from_linear(linear, amplitude, norm)
    spikes = binary((N, features[0]), 2, 0.4)
    out = layer(rso.pack_spikes(spikes) if packed else spikes).detach()
    expected, bound = expected_and_bound(
        *(linear, norm, amplitude, spikes), eta=U, products=0, subnormal=0.0
    )
    assert_within(out, expected, bound, "currents")
