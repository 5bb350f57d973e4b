"""Modules as torch and its tools treat them: arguments, devices, casts, states, gradients."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from helpers import normal
from torch import nn
from torch.nn.utils import skip_init

import realspike_ops as rso

T = 2
LAYERS = {
    "lif": lambda **at: rso.RealSpikeLIF(
        *(T, "element", (4, 5, 6), 0.75, 0.7),
        decay_granularity="layer",
        threshold_granularity="channel",
        **at,
    ),
    "unshared": lambda **at: rso.UnsharedSpikeConv(
        4, 6, 3, 1, 1, groups=2, input_size=(5, 6), **at
    ),
    "int8": lambda **at: rso.UnsharedSpikeConv(
        4, 6, 3, input_size=(5, 6), dtype=torch.int8, fold_scale=True, **at
    ),
    "factored": lambda **at: rso.UnsharedSpikeConv(
        4, 6, 3, input_size=(5, 6), storage="factored", **at
    ),
    "sequence": lambda **at: rso.UnsharedSpikeConv1d(4, 6, 3, padding="same", input_size=6, **at),
    "shared": lambda **at: rso.SpikeConv2d(4, 6, 3, **at),
    "linear": lambda **at: rso.SpikeLinear(4, 6, **at),
}


def binary(*shape, seed=0):
    return (normal(shape, seed) > 0.3).float()


def input_of(name):
    sizes = {"sequence": (4, 4, 6), "linear": (4, 4)}
    return binary(*sizes.get(name, (4, 4, 5, 6)))


# --- the order of arguments -----------------------------------------------------------------------


def test_arguments_are_in_the_order_of_conv2d():
    arguments = (4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, False, "zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = rso.UnsharedSpikeConv(*arguments, input_size=(7, 8))
        shared = rso.SpikeConv2d(*arguments, "cpu", torch.float32)
        sequence = rso.UnsharedSpikeConv1d(4, 6, 3, 2, 1, 2, 2, False, input_size=9)
    conv, conv1d = nn.Conv2d(*arguments), nn.Conv1d(4, 6, 3, 2, 1, 2, 2, False)
    assert layer(binary(2, 4, 7, 8)).shape == conv(torch.zeros(2, 4, 7, 8)).shape
    assert shared(binary(2, 4, 7, 8)).shape == conv(torch.zeros(2, 4, 7, 8)).shape
    assert sequence(binary(2, 4, 9)).shape == conv1d(torch.zeros(2, 4, 9)).shape
    for made in (layer, shared, sequence):
        assert (made.groups, made.bias) == (2, None)


@pytest.mark.parametrize("stride", [{"stride": 2}, {}])
def test_input_size_fourth_still_works(stride):
    """Alone, or with everything behind it: what was the stride is the stride."""
    behind = () if stride else (2, 1, 1, 2, False, "meta")
    with pytest.warns(DeprecationWarning, match=r"UnsharedSpikeConv: input_size.*keyword"):
        layer = rso.UnsharedSpikeConv(4, 6, 3, (7, 8), *behind, **stride)
    assert (layer.input_size, layer.stride) == ((7, 8), (2, 2))
    assert layer.weight.is_meta == (not stride)
    if behind:
        assert (layer.padding, layer.groups, layer.bias) == ((1, 1), 2, None)
    with pytest.warns(DeprecationWarning, match="UnsharedSpikeConv1d: input_size"):
        sequence = rso.UnsharedSpikeConv1d(4, 6, 3, 9, padding=1)
    assert sequence(binary(2, 4, 9)).shape == (2, 6, 9)


@pytest.mark.parametrize(
    ("make", "exception", "reason"),
    [
        (lambda: rso.UnsharedSpikeConv(4, 6, 3), TypeError, "input_size"),
        (lambda: rso.UnsharedSpikeConv1d(4, 6, 3, stride=2), TypeError, "input_size"),
        (
            lambda: rso.UnsharedSpikeConv(4, 6, 3, padding_mode="circular", input_size=5),
            ValueError,
            "padding_mode.*zeros.*circular",
        ),
        (
            lambda: rso.SpikeConv2d(4, 6, 3, padding_mode="reflect"),
            ValueError,
            "padding_mode.*zeros.*reflect",
        ),
        (lambda: rso.SpikeLinear(4, 6, dtype=torch.float64), ValueError, "dtype.*float64"),
    ],
)
def test_refused_arguments(make, exception, reason):
    with pytest.raises(exception, match=reason):
        make()


# --- where and when parameters are made -----------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_made_on_meta_is_initialised_later(name):
    """As torch.distributed does it: to_empty, then reset_parameters of every module."""
    with torch.device("meta"):
        layer = LAYERS[name]()
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    layer.to_empty(device="cpu")
    for tensor in layer.state_dict().values():
        tensor.fill_(math.nan if tensor.is_floating_point() else 7)
    layer.reset_parameters()
    state = layer.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    if name == "lif":
        assert (state["amplitude"] == 1).all()
        torch.testing.assert_close(state["decay_logit"], torch.tensor([math.log(3)]))
        torch.testing.assert_close(state["v_threshold"], torch.full((4, 1, 1), 0.7))
        return
    bound = {"unshared": 18, "linear": 4, "sequence": 12}.get(name, 36) ** -0.5
    if name == "int8":
        assert (int(state["weight"].min()), int(state["weight"].max())) == (1, 255)
        torch.testing.assert_close(state["scale"], torch.full((6,), bound / 127))
        bias = state["bias"] * state["scale"]
    else:
        assert 0.8 * bound < state["weight"].abs().max() <= bound
        bias = state["bias"]
    assert 0.1 * bound < bias.abs().max() <= bound
    if name == "factored":
        assert (state["amplitude"] == 1).all()
    assert layer(input_of(name)).shape[0] == 4


@pytest.mark.parametrize("name", LAYERS)
def test_skip_init(name):
    kind = type(LAYERS[name]())
    if kind is rso.RealSpikeLIF:
        layer = skip_init(kind, T, "layer")
        assert layer.amplitude.shape == (1,)
    elif kind is rso.SpikeLinear:
        assert skip_init(kind, 4, 6).weight.shape[-2:] == (4, 6)
    else:
        size = {} if kind is rso.SpikeConv2d else {"input_size": 6}
        assert skip_init(kind, 4, 6, 3, **size).weight.shape[-2:] == (4, 6)


def test_every_layer_of_a_folded_network_can_be_initialised():
    layers = (
        rso.OneToOneSynapses(torch.full((4, 1, 1), 3.0)),
        rso.PiecewiseSpikeConv(torch.full((1, 1, 1, 2, 2, 4, 3), 3.0), (0,), (0,), 1, (0, 0), 1),
        rso.SynapticCurrent({}, torch.full((4,), 3.0)),
        rso.FoldedLIF(T, v_threshold=torch.full((4, 1, 1), 3.0)),
    )
    for layer in layers:
        layer.reset_parameters()
    assert (layers[0].weight == 1).all()
    assert 0.15 < layers[1].weight.abs().max() <= 0.25
    assert (layers[2].bias == 0).all()
    assert (layers[3].v_threshold == 3).all()


@pytest.fixture
def default_dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("default_dtype", [torch.float64, torch.bfloat16], indirect=True)
@pytest.mark.parametrize("name", LAYERS)
def test_another_default_dtype(name, default_dtype):
    """Layers take float32 spikes whatever dtype torch makes other parameters in."""
    layer = LAYERS[name]()
    if name == "lif":
        expected = torch.float32 if default_dtype == torch.float64 else default_dtype
        assert {p.dtype for p in layer.parameters()} == {expected}
    else:
        assert {p.dtype for p in layer.parameters()} == {torch.float32}
    out = layer(input_of(name))
    assert out.dtype == torch.float32
    if name != "int8":
        out.sum().backward()


@pytest.mark.parametrize("default_dtype", [torch.float64, torch.bfloat16], indirect=True)
def test_folding_under_another_default_dtype_and_device(default_dtype):
    conv, amplitude = nn.Conv2d(4, 6, 3, dtype=torch.float32), normal((4, 5, 6), 1).float()
    norm = nn.BatchNorm2d(6, dtype=torch.float32).eval()
    spikes = binary(2, 4, 5, 6)
    with torch.no_grad():
        expected = norm(conv(amplitude * spikes))
        shared = conv(spikes)
    with torch.device("meta"):
        for form, bound in (
            ({}, 1e-5),
            ({"dtype": torch.int8}, 0.2),
            ({"storage": "factored"}, 1e-5),
        ):
            layer = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, batch_norm=norm, **form)
            assert (layer(spikes) - expected).abs().max() < bound
        torch.testing.assert_close(rso.SpikeConv2d.from_conv2d(conv)(spikes), shared)


# --- features and maps ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8,), 8, (8, 3, 3)])
@pytest.mark.parametrize("size", [(), (5,), (5, 4), (5, 4, 8)])
def test_channels_of_features_and_of_maps_of_any_size(shape, size):
    layer = rso.RealSpikeLIF(
        T, "channel", shape, decay_granularity="channel", threshold_granularity="channel"
    )
    with torch.no_grad():
        for n, parameter in enumerate(layer.parameters()):
            parameter.add_(0.1 * normal(parameter.shape, n))
    x = normal((T * 3, 8, *size), 1)
    by_element = (8, *(1,) * len(size))
    parameters = (layer.amplitude, layer.decay, layer.v_threshold)
    amplitude, decay, threshold = (p.reshape(by_element).expand(8, *size) for p in parameters)
    expected = rso.reference.lif(
        x.unflatten(0, (T, 3)), amplitude, decay=decay, v_threshold=threshold
    )
    assert torch.equal(layer(x), expected.flatten(0, 1))


def test_folds_channels_of_features():
    names = ("granularity", "decay_granularity", "threshold_granularity")
    layer = rso.RealSpikeLIF(T, shape=(8,), **dict.fromkeys(names, "channel"))
    with torch.no_grad():
        for n, parameter in enumerate(layer.parameters()):
            parameter.add_(0.2 * normal(parameter.shape, n))
    model = nn.Sequential(
        nn.Linear(5, 8), rso.DirectEncoding(T), layer, nn.Linear(8, 3), rso.MeanOverTime(T)
    ).eval()
    x = 3 * normal((4, 5), 1)
    folded = rso.reparameterize(model, x)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)


def test_other_channels_are_refused_by_name():
    with pytest.raises(ValueError, match=r"amplitude must have shape.*\[7\].*got \[8\]"):
        rso.RealSpikeLIF(T, "channel", (8,))(torch.zeros(T, 7))


# --- copies, states, casts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_states_after_a_recorded_forward(name):
    layer, x = LAYERS[name](), input_of(name)
    layer(x)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), LAYERS[name]()]
    assert not copies[2].load_state_dict(layer.state_dict()).missing_keys
    for other in copies:
        assert torch.equal(other(x), layer(x))
    state = layer.state_dict()
    key = "weight" if "weight" in state else "amplitude"
    state[key] = state[key][..., :1]
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("name", LAYERS)
def test_casts(name, cast):
    layer, x = LAYERS[name](), input_of(name)
    expected, scale = layer(x), getattr(layer, "scale", None)
    assert getattr(layer, cast)() is layer
    if cast == "double":
        assert {p.dtype for p in layer.parameters()} == {torch.float64}
        assert torch.equal(layer.float()(x), expected)
        layer.double().half()
    assert all(p.dtype != torch.float32 for p in layer.parameters())
    torch.testing.assert_close(layer(x), expected, rtol=0.02, atol=1.0 if name == "int8" else 0.05)
    if scale is not None:
        assert torch.equal(layer.scale, scale)  # the step of all weights is not rounded


@pytest.mark.parametrize("to", [lambda m: m.half(), lambda m: m.to(torch.float16)])
def test_a_cast_that_overflows_changes_nothing(to):
    """Nor the layers before it in a folded network; bfloat16 holds the same."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), rso.DirectEncoding(T), rso.RealSpikeLIF(T), nn.Conv2d(4, 4, 3)),
        *(rso.RealSpikeLIF(T), nn.Flatten(), nn.Linear(16, 3), rso.MeanOverTime(T)),
    )
    nn.init.constant_(model[6].weight, 3e5)
    folded = rso.reparameterize(model.eval(), torch.zeros(1, 3, 4, 4))
    layers = (
        folded,
        folded.get_submodule("6"),
        rso.OneToOneSynapses(torch.tensor([1.0, 7e4])),
        rso.PiecewiseSpikeConv(torch.full((1, 1, 1, 1, 1, 1, 1), 7e4), (0,), (0,), 1, (0, 0), 1),
        rso.SynapticCurrent({}, torch.tensor([7e4])),
        rso.UnsharedSpikeConv.from_weight(
            torch.ones(1, 1, 1, 1, 1, 1, 1), torch.tensor([-7e4]), input_size=2
        ),
    )
    for layer in layers:
        with pytest.raises(ValueError, match=r"(weight|bias) must be finite in float16.*65504"):
            to(layer)
        assert {p.dtype for p in layer.parameters()} == {torch.float32}
    for layer in layers:
        layer.bfloat16()


def test_a_state_that_overflows_is_refused():
    layer = rso.SpikeConv2d(2, 3, 1, dtype=torch.float16)
    state = {"weight": torch.full((1, 1, 1, 1, 1, 2, 3), 7e4), "bias": torch.zeros(3)}
    with pytest.raises(RuntimeError, match=r"1.weight must be finite in float16"):
        nn.Sequential(nn.Identity(), layer).load_state_dict(
            {f"1.{key}": value for key, value in state.items()}
        )


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_steps_and_weights_are_not_taken_for_each_other(strict, assign):
    whole, steps = rso.SpikeConv2d(2, 3, 1), rso.SpikeConv2d(2, 3, 1, dtype=torch.int8)
    pieces = [
        rso.PiecewiseSpikeConv(layer.weight.detach(), (0, 0), (0,), 1, (0, 0), 1)
        for layer in (whole, steps)
    ]
    for one, other in ((whole, steps), (steps, whole), pieces, pieces[::-1]):
        before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
        types = f"{one.weight.dtype}.*got {other.weight.dtype}"
        with pytest.raises(RuntimeError, match=f"0.weight must have dtype {types}"):
            nn.Sequential(one).load_state_dict(
                {f"0.{name}": tensor for name, tensor in other.state_dict().items()},
                strict=strict,
                assign=assign,
            )
        assert all(torch.equal(one.state_dict()[name], before[name]) for name in before)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_gradients_have_the_strides_of_their_parameters(channels, grouped, size):
    """All of them, also where a size is 1: DistributedDataParallel compares them."""
    C, groups, form = channels, channels if grouped else 1, {"input_size": size}
    arguments = (C, C, 3 if size > 1 else 1, 1, 1 if size > 1 else 0, 1, groups)
    spikes = binary(T * 2, C, size, size)
    shape = (C, size, size)
    layers = [
        rso.SpikeConv2d(*arguments),
        rso.SpikeConv2d.from_conv2d(nn.Conv2d(*arguments)),
        rso.UnsharedSpikeConv(*arguments, **form),
        rso.UnsharedSpikeConv(*arguments, **form, storage="factored"),
        rso.UnsharedSpikeConv.from_conv2d(nn.Conv2d(*arguments), torch.rand(shape), size),
        *(
            rso.RealSpikeLIF(T, granularity, shape)
            for granularity in ("layer", "channel", "element")
        ),
        rso.OneToOneSynapses(torch.rand(C, 1, 1)),
        rso.OneToOneSynapses(torch.rand(shape)),
    ]
    runs = [
        (layer, form) for layer in layers for form in (torch.contiguous_format, torch.channels_last)
    ]
    for layer, memory_format in runs:
        layer.zero_grad()
        layer(spikes.contiguous(memory_format=memory_format)).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.stride() == parameter.stride(), (layer, name)
    features = (
        (rso.SpikeLinear(C, 3), spikes[:, :, 0, 0]),
        (rso.RealSpikeLIF(T, "channel", C), spikes[:, :, 0, 0]),
    )
    sequence = rso.UnsharedSpikeConv1d(C, C, 1, groups=groups, input_size=size)
    for layer, x in (*features, (sequence, spikes[:, :, 0])):
        layer(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.stride() == parameter.stride(), (layer, name)
