"""from_conv2d, from_conv1d and from_linear: what the torch layers compute now, in eval mode, or why
not."""

import copy

import pytest
import torch
from helpers import normal
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import realspike_ops as rso

AMPLITUDE = 0.5 + torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(1))
SPIKES = (torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(2)) < 0.4).float()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Dropped(nn.Module):
    def forward(self, weight):
        return torch.dropout(weight, 0.5, self.training)


class Noisy(nn.Module):
    def forward(self, weight):
        return weight + torch.randn_like(weight)


def parametrized(layer, name, by):
    parametrize.register_parametrization(layer, name, by)
    return layer


def conv(*args, **kwargs):
    return nn.Conv2d(*(args or (4, 6, 3)), **({"padding": 1} | kwargs))


def narrowed():
    """Its attributes say 6 outputs and stride 1; it computes 5 with stride 2."""
    layer = conv()
    layer.weight = nn.Parameter(layer.weight[:5].clone())
    layer.bias = nn.Parameter(layer.bias[:5].clone())
    layer.stride = 2
    return layer


def trained_norm(kind=nn.BatchNorm2d, channels=6, **form):
    norm = kind(channels, **form)
    norm.running_mean, norm.running_var = normal((channels,), 3), normal((channels,), 4).exp()
    return norm


class Frozen(nn.BatchNorm2d):
    """Never leaves eval mode."""

    def train(self, mode=True):
        return super().train(False)


COMPUTED = {
    "weight_norm": lambda: (parametrizations.weight_norm(conv()), None),
    "spectral_norm": lambda: (parametrizations.spectral_norm(conv()), None),
    "orthogonal": lambda: (parametrizations.orthogonal(conv()), None),
    "bias": lambda: (parametrized(conv(), "bias", Doubled()), None),
    "drops weights in training": lambda: (parametrized(conv(), "weight", Dropped()), None),
    "attributes that are out of date": lambda: (narrowed(), None),
    "a parametrized batch norm": lambda: (
        conv(),
        parametrized(trained_norm(), "weight", Doubled()),
    ),
    "a batch norm's eps": lambda: (conv(), trained_norm(eps=0.5)),
    "a batch norm without weights": lambda: (conv(), trained_norm(affine=False)),
    "a batch norm that never trains": lambda: (conv(), trained_norm(Frozen)),
    "padding beyond the kernel": lambda: (conv(padding=5), trained_norm()),
}


@pytest.mark.parametrize("storage", ["float32", "int8", "factored"])
@pytest.mark.parametrize("name", COMPUTED)
def test_folds_what_the_layer_computes_now(name, storage):
    """In training mode, which folding leaves as it is, and without a forward since the change."""
    layer, norm = COMPUTED[name]()
    modules = [*layer.modules(), *(norm.modules() if norm else ())]
    state = copy.deepcopy(layer.state_dict())
    modes = [module.training for module in modules]
    form = {"storage": "factored"} if storage == "factored" else {"dtype": getattr(torch, storage)}
    folded = rso.UnsharedSpikeConv.from_conv2d(layer, AMPLITUDE, batch_norm=norm, **form)
    assert [module.training for module in modules] == modes
    assert all(torch.equal(state[key], value) for key, value in layer.state_dict().items())
    with torch.no_grad():
        expected = layer.eval()(AMPLITUDE * SPIKES)
        expected = expected if norm is None else norm.eval()(expected)
        largest = 27 * folded.scale.max() if storage == "int8" else 0
        bound = largest / 2 * 4 / 3 + 1e-5 * expected.abs().max()
        assert (folded(SPIKES) - expected).abs().max() <= bound


def test_shared_conv1d_and_linear_fold_what_the_layer_computes_now():
    features = SPIKES[:, :, 0]  # [N, 4, 6]
    shared = parametrizations.weight_norm(conv())
    sequence = parametrizations.weight_norm(nn.Conv1d(4, 6, 3))
    linear = parametrized(nn.Linear(4, 3), "weight", Doubled())
    with torch.no_grad():
        for folded, layer, spikes in (
            (rso.SpikeConv2d.from_conv2d(shared), shared, SPIKES),
            (rso.UnsharedSpikeConv1d.from_conv1d(sequence, None, 6), sequence, features),
            (rso.SpikeLinear.from_linear(linear), linear, SPIKES[:, :, 0, 0]),
        ):
            torch.testing.assert_close(folded(spikes), layer.eval()(spikes), rtol=1e-5, atol=1e-6)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class AlwaysTrains(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Tagged(torch.Tensor):
    pass


def changed(layer, name, value):
    getattr(layer, name).data.view(-1)[1] = value
    return layer


def of_tagged():
    layer = conv()
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Tagged))
    return layer


REFUSED = {
    # (layer, batch norm), exception, what the message says
    "forward": (lambda: (OwnForward(4, 6, 3), None), ValueError, "conv must.*OwnForward.*forward"),
    "pruned": (
        lambda: (prune.l1_unstructured(conv(), "weight", 0.5), None),
        ValueError,
        "conv must.*L1Unstructured.*prune.remove",
    ),
    "old weight_norm": (
        lambda: (nn.utils.weight_norm(conv()), None),
        ValueError,
        "conv must.*WeightNorm.*remove_weight_norm",
    ),
    "old spectral_norm": (lambda: (nn.utils.spectral_norm(conv()), None), ValueError, "Spectral"),
    "noise": (
        lambda: (parametrized(conv(), "weight", Noisy()), None),
        ValueError,
        "conv.weight.*computed anew",
    ),
    "complex": (lambda: (conv(dtype=torch.complex64), None), TypeError, "conv.weight.*complex64"),
    "meta": (lambda: (conv(device="meta"), None), ValueError, "conv.weight.*meta"),
    "tensor subclass": (lambda: (of_tagged(), None), TypeError, "conv.weight.*plain.*Tagged"),
    "weight of inf": (
        lambda: (changed(conv(), "weight", torch.inf), None),
        ValueError,
        "conv.weight must be finite",
    ),
    "bias of NaN": (
        lambda: (changed(conv(), "bias", torch.nan), None),
        ValueError,
        "conv.bias must be finite",
    ),
    "batch norm: forward": (lambda: (conv(), OwnNorm(6)), ValueError, "batch_norm.*OwnNorm"),
    "batch norm: trains": (lambda: (conv(), AlwaysTrains(6)), ValueError, "batch_norm.*eval()"),
    "batch norm: lazy": (lambda: (conv(), nn.LazyBatchNorm2d()), TypeError, "LazyBatchNorm2d"),
    "batch norm: instance norm": (
        lambda: (conv(), nn.InstanceNorm2d(6, track_running_stats=True)),
        TypeError,
        "batch_norm.*InstanceNorm2d",
    ),
    "batch norm: dtype": (
        lambda: (conv(), nn.BatchNorm2d(6).double()),
        TypeError,
        "batch_norm.*float64.*float32",
    ),
    "batch norm: meta": (lambda: (conv(), nn.BatchNorm2d(6, device="meta")), ValueError, "meta"),
    "batch norm: mean of NaN": (
        lambda: (conv(), changed(nn.BatchNorm2d(6), "running_mean", torch.nan)),
        ValueError,
        "batch_norm.running_mean must be finite",
    ),
    "batch norm: negative variance": (
        lambda: (conv(), changed(nn.BatchNorm2d(6), "running_var", -1.0)),
        ValueError,
        "running_var",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refuses_what_it_cannot_know(name):
    make, exception, reason = REFUSED[name]
    layer, norm = make()
    with pytest.raises(exception, match=reason):
        rso.UnsharedSpikeConv.from_conv2d(layer, None, (5, 6), norm)
    with pytest.raises(exception, match=reason):
        rso.SpikeConv2d.from_conv2d(layer, None, norm)


def test_other_layers_are_checked_too():
    hooked = nn.Linear(4, 3)
    hooked.register_forward_hook(lambda module, x, y: 2 * y)
    with pytest.raises(ValueError, match=r"linear must compute.*forward hooks"):
        rso.SpikeLinear.from_linear(hooked)
    sequence = nn.Conv1d(4, 6, 3)
    sequence.forward = lambda x: x
    with pytest.raises(ValueError, match=r"conv must compute.*replaced on the instance"):
        rso.UnsharedSpikeConv1d.from_conv1d(sequence, None, 6)
    norm = changed(nn.BatchNorm1d(3), "running_var", torch.inf)
    with pytest.raises(ValueError, match=r"batch_norm.running_var must be finite"):
        rso.SpikeLinear.from_linear(nn.Linear(4, 3), batch_norm=norm)
    with pytest.raises(ValueError, match="scale must be finite"):
        rso.SpikeLinear.from_linear(nn.Linear(4, 3), scale=float("nan"))


@pytest.mark.parametrize(
    ("amplitude", "exception", "reason"),
    [
        (torch.full((4, 5, 6), torch.nan), ValueError, "amplitude must be finite"),
        (torch.ones(4, 5, 6, device="meta"), ValueError, "amplitude.*device.*meta"),
        (torch.ones(4, 5, 6, dtype=torch.complex64), TypeError, "amplitude.*complex64"),
    ],
)
def test_refuses_an_amplitude(amplitude, exception, reason):
    for fold, layer in (
        (rso.UnsharedSpikeConv.from_conv2d, conv()),
        (rso.SpikeConv2d.from_conv2d, conv()),
        (rso.SpikeLinear.from_linear, nn.Linear(120, 3)),
    ):
        with pytest.raises(exception, match=reason):
            fold(layer, amplitude)


# --- numbers that a type does not hold ------------------------------------------------------------


def of_one(weight, bias=0.0, dtype=torch.float64):
    """A 1 x 1 convolution of one channel."""
    layer = nn.Conv2d(1, 1, 1, dtype=dtype)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("storage", ["materialized", "factored"])
def test_the_largest_float16_is_the_last(constant, storage):
    """65519 is nearer to 65504 than to what would follow it, 65536; 65520 is not."""
    amplitude = torch.ones(1, 1, 2) if constant else torch.tensor([[[0.5, 1.0]]])
    form = {"dtype": torch.float16, "storage": storage}
    layer = rso.UnsharedSpikeConv.from_conv2d(of_one(65519.0), amplitude, (1, 2), **form)
    assert layer.weight.max() == 65504
    with pytest.raises(ValueError, match=r"weight.*float16.*65504.*bfloat16"):
        rso.UnsharedSpikeConv.from_conv2d(of_one(65520.0), amplitude, (1, 2), **form)
    form["dtype"] = torch.bfloat16
    rso.UnsharedSpikeConv.from_conv2d(of_one(65520.0), amplitude, (1, 2), **form)


@pytest.mark.parametrize("amplitude", [torch.ones(1), torch.tensor([[[0.5, 1.0]]])])
@pytest.mark.parametrize("weight", [1e-37, 1e39])
def test_a_step_of_int8_neither_vanishes_nor_overflows(weight, amplitude):
    """1e-37 / 127 is below the least normal float32, 1.2e-38."""
    with pytest.raises(ValueError, match=r"int8.*magnitude.*0 or from 1.5e-36 to 3.4e\+38"):
        rso.UnsharedSpikeConv.from_conv2d(of_one(weight), amplitude, (1, 2), dtype=torch.int8)
    layer = rso.UnsharedSpikeConv.from_conv2d(of_one(0.0), amplitude, (1, 2), dtype=torch.int8)
    assert layer.scale == 1
    assert (layer.weight == 128).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: rso.UnsharedSpikeConv.from_conv2d(of_one(1.0, bias=1e39), None, 2),
        lambda: rso.SpikeConv2d.from_conv2d(of_one(1.0, bias=1e39)),
        lambda: rso.UnsharedSpikeConv.from_conv2d(
            of_one(1e-6, bias=1e38), None, 2, dtype=torch.int8, fold_scale=True
        ),
    ],
)
def test_a_bias_that_overflows_is_refused(make):
    with pytest.raises(ValueError, match="bias must be finite in float32"):
        make()


def test_a_weight_that_overflows_in_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match="weight must be finite in float32"):
        rso.SpikeLinear.from_linear(nn.Linear(4, 3), torch.ones(1), scale=1e300)


def test_given_weights_are_checked():
    weight = torch.ones(1, 1, 1, 1, 1, 4, 3)
    assert rso.SpikeLinear.from_weight(weight).in_features == 4
    layer = rso.UnsharedSpikeConv.from_weight(weight, input_size=(5, 6))
    assert (layer.input_size, layer.out_channels) == ((5, 6), 3)
    with pytest.raises(ValueError, match=r"weight must have shape.*\[4, 3\]"):
        rso.SpikeLinear.from_weight(torch.ones(4, 3))
    with pytest.raises(ValueError, match="bias must be finite"):
        rso.SpikeConv2d.from_weight(weight, torch.full((3,), torch.inf))
    steps = torch.full(weight.shape, 129, dtype=torch.uint8)
    with pytest.raises(ValueError, match="scale must be finite"):
        rso.SpikeConv2d.from_weight(steps, scale=torch.full((3,), torch.nan))


@pytest.mark.parametrize("argument", ["padding_mode", "dtype", "bias_", "held"])
def test_a_ready_weight_takes_no_argument_that_would_be_passed_over(argument):
    with pytest.raises(
        TypeError, match=rf"from_weight\(\) has no argument '{argument}'; it has str"
    ):
        rso.SpikeConv2d.from_weight(torch.ones(1, 1, 1, 1, 1, 4, 3), **{argument: None})


def test_a_ready_weight_of_lines_has_the_pairs_of_maps_with_one_row():
    weight = torch.ones(1, 3, 1, 1, 3, 1, 1)
    pairs = {"stride": (1, 2), "padding": (0, 1), "dilation": (1, 1), "input_size": (1, 5)}
    layer = rso.UnsharedSpikeConv1d.from_weight(weight, **pairs)
    current = layer(torch.ones(1, 1, 5))  # taps -1 0 1, 1 2 3 and 3 4 5 of 5 spikes
    assert torch.equal(current, torch.tensor([[[2.0, 3.0, 2.0]]]))


def test_a_shared_kernel_leaves_int8_currents_in_steps_on_request():
    layers = []
    for folds in (False, True):
        torch.manual_seed(0)
        layers.append(rso.SpikeConv2d(3, 2, 3, dtype=torch.int8, fold_scale=folds))
    scaled, in_steps = layers
    spikes = (torch.rand(2, 3, 5, 5) < 0.5).float()
    steps = in_steps(spikes)
    torch.testing.assert_close(steps * scaled.scale[:, None, None], scaled(spikes))
    # Without the bias they are whole numbers of steps.
    whole = steps - in_steps.bias[:, None, None]
    torch.testing.assert_close(whole, whole.round(), rtol=0, atol=1e-4)
    assert torch.equal(in_steps.threshold(0.5), 0.5 / scaled.scale[:, None, None])
