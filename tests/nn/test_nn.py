"""The modules against stock torch layers on real-valued spikes a * o, in float64 with a bound."""

import copy
import io
import pickle

import pytest
import torch
from helpers import SLACK, U, assert_within, binary, grid, in_float64, normal, random_batch_norm
from torch import nn

import realspike_ops as rso

GRANULARITIES = {"none": None, "layer": (1,), "channel": (6, 1, 1), "element": (6, 5, 4)}
AMPLITUDES = {
    **GRANULARITIES,
    "rows": (6, 5, 1),
    "columns": (6, 1, 4),
    "map": (1, 5, 4),
}


def trained_in_float64(layer, batch_norm, amplitude, spikes):
    """Return batch_norm(layer(a * o)) in float64 and the bound on its folded float32 sum."""
    real = spikes.double()
    real = real if amplitude is None else amplitude.double() * real
    layer, batch_norm = in_float64(layer), in_float64(batch_norm)
    with torch.no_grad():
        out = batch_norm(layer(real))
        # The same with every term positive: what the rounding errors are relative to.
        zero = batch_norm(torch.zeros_like(layer(real)))
        slope = (batch_norm(torch.ones_like(zero)) - zero).abs()
        bias = batch_norm(layer(torch.zeros_like(real))).abs()
        layer.weight.abs_()
        if layer.bias is not None:
            layer.bias.zero_()
        magnitude = slope * layer(real.abs()) + bias
        layer.weight.fill_(1.0)
        terms = layer(spikes.double())
    # One rounding of each folded weight, one per addition.
    return out, (terms + 3) * U * magnitude * SLACK


def make_conv(groups=1, kernel_size=3, seed=0, bias=True, **geometry) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(6, 8, kernel_size, groups=groups, bias=bias, **geometry)


CONVOLUTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "stride": {"padding": 1, "stride": 2},
    "stride-pair": {"padding": (0, 2), "stride": (2, 1), "kernel_size": (2, 3)},
    "same": {"padding": "same", "kernel_size": (2, 4)},
    "valid": {"padding": "valid"},
    "dilation": {"padding": 2, "dilation": 2},
    "groups": {"padding": 1, "groups": 2},
    "no-bias": {"padding": 1, "bias": False},
    "1x1": {"kernel_size": 1},
}


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("with_batch_norm", [False, True], ids=["conv", "conv-bn"])
@pytest.mark.parametrize("amplitude", AMPLITUDES)
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_unshared_from_conv2d(conv, amplitude, with_batch_norm, device):
    conv = make_conv(**CONVOLUTIONS[conv])
    amplitude = AMPLITUDES[amplitude]
    amplitude = None if amplitude is None else normal(amplitude, 1)
    batch_norm = random_batch_norm(nn.BatchNorm2d(8), 2) if with_batch_norm else None
    spikes = binary((3, 6, 5, 4), 3, 0.5)
    expected, bound = trained_in_float64(conv, batch_norm, amplitude, spikes)

    folded = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, (5, 4), batch_norm).to(device)
    out = folded(spikes.to(device)).detach()
    assert_within(out.cpu(), expected, bound, "unshared")
    packed = folded(rso.pack_spikes(spikes.to(device)))
    assert torch.equal(out, packed)

    if amplitude is None or amplitude.shape in ((1,), (6, 1, 1)):
        shared = rso.SpikeConv2d.from_conv2d(conv, amplitude, batch_norm).to(device)
        assert_within(shared(spikes.to(device)).detach().cpu(), expected, bound, "shared")
        assert shared.weight.shape[:2] == (1, 1)


def test_from_conv2d_takes_the_size_from_the_amplitude():
    conv, amplitude = make_conv(), normal((6, 5, 4), 1)
    folded = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude)
    assert folded.input_size == (5, 4)
    assert torch.equal(
        folded.weight, rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, (5, 4)).weight
    )


@pytest.mark.parametrize("amplitude", [(6, 1, 1), (6, 5, 1), (6, 1, 4)], ids=str)
def test_element_amplitude_of_a_thin_map_gives_its_size(amplitude):
    # A map of one row, one column or one pixel is still [C, H, W].
    conv = make_conv(kernel_size=1)
    folded = rso.UnsharedSpikeConv.from_conv2d(conv, normal(amplitude, 1), amplitude[1:])
    assert folded.input_size == amplitude[1:]


def test_from_conv2d_reads_a_parameter_and_shares_nothing():
    conv, lif = make_conv(), rso.RealSpikeLIF(2, "channel", (6, 5, 4))
    before = copy.deepcopy(conv.state_dict())
    folded = rso.UnsharedSpikeConv.from_conv2d(conv, lif.amplitude, (5, 4))
    with torch.no_grad():
        folded.weight.zero_()
        folded.bias.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), conv.parameters(), strict=True))


def test_element_fold_differs_only_by_the_amplitude():
    """Eq. 11: K~[k, l, i, j, m] = a[m, k + i, l + j] * K[i, j, m], literally."""
    conv, amplitude = make_conv(bias=False), normal((6, 5, 4), 1)
    folded = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude)
    k, l, i, j, m, n = 2, 1, 0, 2, 4, 5  # noqa: E741
    expected = amplitude[m, k + i, l + j].double() * conv.weight[n, m, i, j].double()
    assert folded.weight[k, l, 0, i, j, m, n].item() == expected.float().item()


LINEAR_AMPLITUDES = {
    "none": None,
    "layer": (1,),
    "features": (12,),
    "channel": (3, 1, 1),
    "element": (3, 2, 2),
    "rows": (3, 2, 1),
    "columns": (3, 1, 2),
    "map": (1, 2, 2),
    "map-rows": (1, 2, 1),
    "map-without-channels": (2, 2),
}


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("with_batch_norm", [False, True], ids=["linear", "linear-bn"])
@pytest.mark.parametrize("amplitude", LINEAR_AMPLITUDES)
def test_from_linear(amplitude, with_batch_norm, bias, device):
    """Either the layer of the amplitude's own meaning, or a ValueError: never another one."""
    torch.manual_seed(1)
    linear = nn.Linear(12, 7, bias=bias)
    shape = LINEAR_AMPLITUDES[amplitude]
    per_feature = given = None
    if shape is not None:
        given = normal(shape, 1)
        maps = (12,) if len(shape) == 1 else (3, 2, 2)
        per_feature = given.expand(maps).reshape(12)
    batch_norm = random_batch_norm(nn.BatchNorm1d(7), 2) if with_batch_norm else None
    spikes = binary((5, 12), 3, 0.5)
    expected, bound = trained_in_float64(linear, batch_norm, per_feature, spikes)
    try:
        folded = rso.SpikeLinear.from_linear(linear, given, batch_norm).to(device)
    except ValueError:
        assert amplitude in ("columns", "map", "map-rows", "map-without-channels")
        return
    assert_within(folded(spikes.to(device)).detach().cpu(), expected, bound, "linear")
    scaled = rso.SpikeLinear.from_linear(linear, given, batch_norm, scale=0.25).to(device)
    out = scaled(spikes.to(device)).detach().cpu()
    assert_within(out, expected / 4, bound / 4, "scaled linear")


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_lif_layer(granularity, memory_format, device):
    neuron = {"decay": 0.5, "v_threshold": 0.75, "v_reset": -0.25, "surrogate": "triangle"}
    layer = rso.RealSpikeLIF(3, granularity, (6, 5, 4), **neuron).to(device)
    amplitude = layer.amplitude
    if granularity == "none":
        assert amplitude is None
        assert list(layer.parameters()) == []
    else:
        assert amplitude.shape == GRANULARITIES[granularity]
        assert torch.equal(amplitude, torch.ones_like(amplitude))
        with torch.no_grad():
            amplitude.copy_(normal(amplitude.shape, 1))
    x = grid((3 * 2, 6, 5, 4), 2).to(device).contiguous(memory_format=memory_format)
    y = layer(x)
    expected = rso.lif(x.view(3, 2, 6, 5, 4), amplitude, **neuron)
    assert torch.equal(y, expected.flatten(0, 1))
    assert y.is_contiguous(memory_format=memory_format)
    # Samples stay apart: the second of the batch alone, at every timestep.
    alone = layer(x[1::2])
    assert torch.equal(y[1::2], alone)
    if amplitude is not None:
        y.sum().backward()
        assert amplitude.grad.abs().sum() > 0


def test_lif_layer_keeps_no_state(device):
    layer = rso.RealSpikeLIF(2).to(device)
    x = torch.full((2, 3), 0.4, device=device)
    assert torch.equal(layer(x), layer(x))
    assert layer.state_dict() == {}


@pytest.mark.parametrize("shape", [6, (6,), (6, 5, 4), torch.Size((6, 5, 4))], ids=str)
def test_channel_granularity_reads_the_channels_of_the_shape(shape):
    assert rso.RealSpikeLIF(1, "channel", shape).amplitude.shape == (6, 1, 1)


@pytest.mark.parametrize("granularity", ["none", "layer", "element"])
def test_lif_layer_on_features(granularity, device):
    layer = rso.RealSpikeLIF(2, granularity, (7,)).to(device)
    x = grid((2 * 3, 7), 1).to(device)
    assert torch.equal(layer(x), rso.lif(x.view(2, 3, 7)).flatten(0, 1))


def test_time_is_outermost(device):
    x = torch.arange(6.0, device=device).view(2, 3)
    repeated = rso.DirectEncoding(4)(x)
    assert torch.equal(repeated, torch.cat([x] * 4))
    assert torch.equal(rso.MeanOverTime(4)(repeated), x)
    assert torch.equal(rso.SumOverTime(4)(repeated), 4 * x)
    steps = torch.arange(12.0, device=device).view(6, 2)  # T = 3, B = 2
    assert rso.MeanOverTime(3)(steps).tolist() == [[4, 5], [6, 7]]
    assert rso.SumOverTime(3)(steps).tolist() == [[12, 15], [18, 21]]


def test_one_line_swaps(device):
    """nn.ReLU -> RealSpikeLIF trains; nn.Conv2d -> UnsharedSpikeConv infers the same."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        rso.RealSpikeLIF(2, "element", (6, 5, 4)),
        nn.Conv2d(6, 8, 3),
    ).to(device)
    x = normal((4, 2, 5, 4), 1).to(device)
    network(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    network.eval()
    with torch.no_grad():
        network[2].amplitude.copy_(normal((6, 5, 4), 2))
        expected = network(x)
        network[3] = rso.UnsharedSpikeConv.from_conv2d(network[3], network[2].amplitude)
        network[2] = rso.RealSpikeLIF(2)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)


def modules():
    torch.manual_seed(0)
    conv, amplitude = make_conv(padding=1, groups=2), normal((6, 5, 4), 1)
    return {
        "lif": rso.RealSpikeLIF(2, "element", (6, 5, 4), detach_reset=True),
        "lif-plain": rso.RealSpikeLIF(1, surrogate=("atan", 3.0), v_reset=None),
        "unshared": rso.UnsharedSpikeConv(6, 8, 3, input_size=(5, 4), padding=1, groups=2),
        "unshared-no-bias": rso.UnsharedSpikeConv(6, 8, (2, 3), input_size=(5, 4), bias=False),
        "unshared-folded": rso.UnsharedSpikeConv.from_conv2d(conv, amplitude),
        "unshared-int8": rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, dtype=torch.int8),
        "unshared-factored": rso.UnsharedSpikeConv.from_conv2d(
            conv, amplitude, storage="factored", dtype=torch.bfloat16
        ),
        "sequence": rso.UnsharedSpikeConv1d(
            6, 8, 3, input_size=9, padding=1, fold_scale=True, dtype=torch.int8
        ),
        "shared": rso.SpikeConv2d(6, 8, 3, padding="same"),
        "shared-folded": rso.SpikeConv2d.from_conv2d(conv),
        "linear": rso.SpikeLinear(6, 8),
        "linear-folded": rso.SpikeLinear.from_linear(nn.Linear(6, 8), normal((6,), 1)),
        "encoding": rso.DirectEncoding(2),
        "mean": rso.MeanOverTime(2),
        "sum": rso.SumOverTime(2),
    }


def an_input(name):
    if name == "sequence":
        return binary((2, 6, 9), 1)
    return binary((2, 6), 1) if name.startswith("linear") else binary((2, 6, 5, 4), 1)


@pytest.mark.parametrize("name", modules())
def test_copies(name):
    module, x = modules()[name], an_input(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(normal(parameter.shape, 3))
    expected = module(x)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(x), expected)
        assert repr(copied) == repr(module)
        for parameter in copied.parameters():
            parameter.data.zero_()
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("name", modules())
def test_state_dict_round_trip(name):
    module, other, x = modules()[name], modules()[name], an_input(name)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(normal(parameter.shape, 3))
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True), strict=True)
    assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("name", modules())
def test_on_the_meta_device(name):
    module, x = modules()[name], an_input(name)
    expected = module(x)
    out = module.to("meta")(x.to("meta"))
    assert (out.shape, out.dtype, out.stride()) == (
        expected.shape,
        expected.dtype,
        expected.stride(),
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lif", ["timesteps=2", "element", "[6, 5, 4]", "detach_reset=True", "rectangular"]),
        ("lif-plain", ["timesteps=1", "none", "reset='soft'", "atan", "3.0", "decay=0.25"]),
        ("unshared", ["6, 8", "(3, 3)", "groups=2", "(1, 1)", "input_size=(5, 4)", "bias=True"]),
        ("unshared-no-bias", ["(2, 3)", "bias=False"]),
        ("unshared-int8", ["dtype=int8"]),
        ("unshared-factored", ["dtype=bfloat16", "storage='factored'"]),
        ("sequence", ["dtype=int8", "fold_scale=True", "input_size=(1, 9)"]),
        ("shared", ["6, 8", "padding=same"]),
        ("linear", ["6, 8", "bias=True"]),
        ("mean", ["timesteps=2"]),
    ],
)
def test_repr(name, words):
    text = repr(modules()[name])
    assert all(word in text for word in words), text


def test_initial_weights_are_those_of_conv2d_in_range():
    torch.manual_seed(0)
    layer = rso.UnsharedSpikeConv(6, 8, 3, input_size=(5, 4), groups=2)
    bound = (9 * 3) ** -0.5
    assert layer.weight.shape == (3, 2, 2, 3, 3, 3, 4)
    for parameter in (layer.weight, layer.bias):
        assert parameter.isfinite().all()
        assert 0.5 * bound < parameter.abs().max() <= bound


def test_unshared_weights_learn(device):
    layer = rso.UnsharedSpikeConv(3, 4, 3, input_size=(5, 5), padding=1).to(device)
    spikes = binary((2, 3, 5, 5), 1).to(device)
    before = layer(spikes).sum().item()
    layer(spikes).sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * parameter.grad
    assert layer(spikes).sum().item() < before


@pytest.mark.parametrize("shape", [(1,), (2, 1, 1), (2, 1, 3)])
def test_gradients_of_one_to_one_synapses_by_hand(shape):
    """Those of weight * spike: of a weight the sum over the neurons that share it."""
    spikes = torch.tensor([[[[1.0, 0, -1]], [[0, 1, 1]]], [[[1, 1, 0]], [[0, -1, 0]]]])
    grad = torch.tensor([[[[2.0, 3, 5]], [[7, 11, 13]]], [[[17, 19, 23]], [[29, 31, 37]]]])
    weight = torch.arange(2.0, 2 + torch.Size(shape).numel()).view(shape)
    layer = rso.OneToOneSynapses(weight)
    spikes.requires_grad_()
    (layer(spikes) * grad).sum().backward()
    each = torch.tensor([[[19.0, 19, -5]], [[0, -20, 13]]])
    expected = {1: [26], 2: [33, -7], 6: each.flatten().tolist()}[weight.numel()]
    assert layer.weight.grad.flatten().tolist() == expected
    assert layer.weight.grad.shape == shape
    assert torch.equal(spikes.grad, grad * weight)
    # Whichever of the two is asked for.
    frozen = rso.OneToOneSynapses(weight).requires_grad_(False)
    (got,) = torch.autograd.grad((frozen(spikes) * grad).sum(), spikes)
    assert torch.equal(got, grad * weight)
    (got,) = torch.autograd.grad((layer(spikes.detach()) * grad).sum(), layer.weight)
    assert got.flatten().tolist() == expected
