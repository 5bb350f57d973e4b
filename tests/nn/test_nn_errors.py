"""Every bad argument of a module raises the right exception, before anything runs, and the message
names the argument, what came, and what is accepted."""

import pytest
import torch
from refusals import SPIKES, assert_refused, zeros
from torch import nn

import realspike_ops as rso

NAN = float("nan")
CONV = nn.Conv2d(4, 7, 3)
LINEAR = nn.Linear(12, 7)


def unshared(**kwargs):
    accepted = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "input_size": (5, 6)}
    return lambda: rso.UnsharedSpikeConv(**(accepted | kwargs))


def unshared_from(*args, **kwargs):
    return lambda: rso.UnsharedSpikeConv.from_conv2d(*(args or (CONV,)), **kwargs)


def shared_from(*args, **kwargs):
    return lambda: rso.SpikeConv2d.from_conv2d(*(args or (CONV,)), **kwargs)


def linear_from(*args, **kwargs):
    return lambda: rso.SpikeLinear.from_linear(*(args or (LINEAR,)), **kwargs)


def layer(*args, **kwargs):
    return lambda: rso.RealSpikeLIF(*(args or (2,)), **kwargs)


CASES = {
    # id: (call, exception, words of the message in their order)
    "layer emission: unknown": (layer(emission="real"), ValueError, ["emission", "ternary"]),
    "layer emission: ternary at threshold 0": (
        layer(emission="ternary", v_threshold=0),
        ValueError,
        ["v_threshold", "positive"],
    ),
    **{
        f"{kind.__name__} {name}: a text": (
            lambda kind=kind, name=name, args=args: kind(*args, **{name: "False"}),
            TypeError,
            [name, "True or False", "str"],
        )
        for kind, args, names in (
            (rso.RealSpikeLIF, (2,), "detach_reset"),
            (rso.SpikeConv2d, (4, 6, 3), "bias check_binary"),
            (rso.SpikeConv2d, (4, 6, 3), "fold_scale"),
            (rso.SpikeLinear, (4, 6), "bias"),
            (rso.SpikeMaxPool2d, (2,), "ceil_mode"),
        )
        for name in names.split()
    },
    "layer granularity: a module": (layer(threshold_granularity=nn.ReLU()), ValueError, ["thresh"]),
    "layer dtype: integers": (
        layer(granularity="layer", dtype=torch.int64),
        TypeError,
        ["dtype", "floating-point", "int64"],
    ),
    "timesteps: beyond all sizes": (layer(2**70), ValueError, ["timesteps", "below 2^62"]),
    "SpikeLinear in_features": (lambda: rso.SpikeLinear(0, 3), ValueError, ["in_features", "1"]),
    "layer reset: unknown": (layer(reset="zero"), ValueError, ["reset", "soft", "zero"]),
    "layer decay_granularity: unknown": (
        layer(decay_granularity="neuron"),
        ValueError,
        ["decay_granularity", "channel", "neuron"],
    ),
    **{
        f"layer decay: {decay} and learnable": (
            layer(decay=decay, decay_granularity="layer"),
            ValueError,
            ["decay", "(0, 1)", f"{decay:g}"],
        )
        for decay in (0.0, 1.0)
    },
    "UnsharedSpikeConv storage": (
        unshared(storage="compressed"),
        ValueError,
        ["storage", "materialized", "factored", "compressed"],
    ),
    "UnsharedSpikeConv dtype": (
        unshared(dtype=torch.float64),
        ValueError,
        ["dtype", "float32", "int8", "float64"],
    ),
    "UnsharedSpikeConv: factored int8": (
        unshared(storage="factored", dtype=torch.int8),
        ValueError,
        ["storage", "factored", "int8"],
    ),
    "UnsharedSpikeConv: more memory than there is": (
        unshared(in_channels=65536, out_channels=65536, input_size=512),
        ValueError,
        ["weight", "[510, 510, 1, 3, 3, 65536, 65536]", "bytes", "cpu", "factored"],
    ),
    "UnsharedSpikeConv1d input_size": (
        lambda: rso.UnsharedSpikeConv1d(4, 6, 3, input_size=(5, 6)),
        TypeError,
        ["input_size", "int", "(5, 6)"],
    ),
    "UnsharedSpikeConv1d spikes: rank": (
        lambda: rso.UnsharedSpikeConv1d(4, 6, 3, input_size=5)(SPIKES),
        ValueError,
        ["spikes", "[N, 4, L]", "[2, 4, 5, 6]"],
    ),
    "from_conv1d conv": (
        lambda: rso.UnsharedSpikeConv1d.from_conv1d(CONV),
        TypeError,
        ["conv", "Conv1d", "Conv2d"],
    ),
    "from_conv1d input_size: missing": (
        lambda: rso.UnsharedSpikeConv1d.from_conv1d(nn.Conv1d(4, 6, 3), zeros(4, 1)),
        ValueError,
        ["input_size", "[C, L]"],
    ),
    "RealSpikeLIF timesteps: 0": (layer(0), ValueError, ["timesteps", "at least 1", "0"]),
    "RealSpikeLIF timesteps: float": (layer(2.0), TypeError, ["timesteps", "int", "float"]),
    "RealSpikeLIF timesteps: bool": (layer(True), TypeError, ["timesteps", "int", "bool"]),
    "RealSpikeLIF granularity: unknown": (
        layer(2, "neuron"),
        ValueError,
        ["granularity", "none, layer, channel, element", "neuron"],
    ),
    "RealSpikeLIF granularity: None": (layer(2, None), ValueError, ["granularity", "none", "None"]),
    "RealSpikeLIF shape: empty": (layer(2, "channel", ()), ValueError, ["shape", "channel"]),
    "RealSpikeLIF shape: 0": (
        layer(2, "element", (4, 0)),
        ValueError,
        ["shape", "at least 1", "0"],
    ),
    "RealSpikeLIF shape: float": (
        layer(2, "element", (4.0,)),
        TypeError,
        ["shape", "int", "float"],
    ),
    "RealSpikeLIF decay": (layer(2, decay=1.1), ValueError, ["decay", "[0, 1]", "1.1"]),
    "RealSpikeLIF v_threshold": (layer(2, v_threshold=NAN), ValueError, ["v_threshold", "nan"]),
    "RealSpikeLIF v_reset": (layer(2, v_reset="soft"), TypeError, ["v_reset", "str"]),
    "RealSpikeLIF surrogate": (layer(2, surrogate="x"), ValueError, ["surrogate", "atan", "x"]),
    "RealSpikeLIF x: batch": (
        lambda: rso.RealSpikeLIF(3)(zeros(4, 5)),
        ValueError,
        ["x", "3 timesteps", "[4, 5]"],
    ),
    "RealSpikeLIF x: not a tensor": (lambda: rso.RealSpikeLIF(3)([1]), TypeError, ["x", "list"]),
    "RealSpikeLIF x: rank 0": (lambda: rso.RealSpikeLIF(3)(zeros()), ValueError, ["x", "[]"]),
    "RealSpikeLIF x: other size": (
        lambda: rso.RealSpikeLIF(2, "element", (4, 5, 6))(zeros(2, 4, 6, 5)),
        ValueError,
        ["amplitude", "[4, 6, 5]", "[4, 5, 6]"],
    ),
    "DirectEncoding timesteps": (lambda: rso.DirectEncoding(0), ValueError, ["timesteps", "0"]),
    "DirectEncoding x": (lambda: rso.DirectEncoding(2)(3), TypeError, ["x", "Tensor", "int"]),
    "MeanOverTime timesteps": (lambda: rso.MeanOverTime(1.5), TypeError, ["timesteps", "float"]),
    "MeanOverTime x": (
        lambda: rso.MeanOverTime(4)(zeros(6, 2)),
        ValueError,
        ["x", "4 timesteps", "[6, 2]"],
    ),
    "SumOverTime x": (lambda: rso.SumOverTime(4)(zeros(6)), ValueError, ["x", "4", "[6]"]),
    "UnsharedSpikeConv in_channels: 0": (unshared(in_channels=0), ValueError, ["in_channels", "0"]),
    "UnsharedSpikeConv out_channels: float": (
        unshared(out_channels=6.0),
        TypeError,
        ["out_channels", "int", "float"],
    ),
    "UnsharedSpikeConv groups: 0": (unshared(groups=0), ValueError, ["groups", "at least 1", "0"]),
    "UnsharedSpikeConv groups: do not divide": (
        unshared(groups=4),
        ValueError,
        ["out_channels", "groups", "4", "6"],
    ),
    "UnsharedSpikeConv kernel_size: 0": (unshared(kernel_size=0), ValueError, ["kernel_size", "0"]),
    "UnsharedSpikeConv kernel_size: too large": (
        unshared(kernel_size=7),
        ValueError,
        ["5 x 6", "(7, 7)", "at least 1"],
    ),
    "UnsharedSpikeConv input_size: float": (
        unshared(input_size=5.0),
        TypeError,
        ["input_size", "int", "5.0"],
    ),
    "UnsharedSpikeConv input_size: 0": (
        unshared(input_size=(0, 5)),
        ValueError,
        ["input_size", "at least 1", "0"],
    ),
    "UnsharedSpikeConv padding: too large": (
        unshared(padding=(1, 2**30)),
        ValueError,
        ["padding (1, 1073741824)", "5 x 2147483652", "2^31"],
    ),
    "UnsharedSpikeConv stride": (unshared(stride=0), ValueError, ["stride", "0"]),
    "UnsharedSpikeConv padding": (unshared(padding="full"), ValueError, ["padding", "full"]),
    "UnsharedSpikeConv dilation": (unshared(dilation=0), ValueError, ["dilation", "0"]),
    "UnsharedSpikeConv spikes: other size": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, input_size=(5, 6))(zeros(2, 4, 7, 6)),
        ValueError,
        ["3 x 4|5 x 6|input_size", "7 x 6"],
    ),
    # With a stride this map gives an output of the same size, but other taps are on the border.
    "UnsharedSpikeConv spikes: other size, same output": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, input_size=8, stride=2, padding=1)(
            zeros(2, 4, 7, 7)
        ),
        ValueError,
        ["8|input_size", "7"],
    ),
    "UnsharedSpikeConv spikes: not a tensor": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, input_size=5)([1]),
        TypeError,
        ["spikes", "Tensor", "list"],
    ),
    "SpikeConv2d spikes: not a tensor": (
        lambda: rso.SpikeConv2d(4, 6, 3)([1]),
        TypeError,
        ["spikes", "Tensor", "list"],
    ),
    "SpikeConv2d spikes: rank": (
        lambda: rso.SpikeConv2d(4, 6, 3)(zeros(4, 5, 6)),
        ValueError,
        ["spikes", "[N, 4, H, W]", "[4, 5, 6]"],
    ),
    "SpikeConv2d spikes: size": (
        lambda: rso.SpikeConv2d(4, 6, 3)(zeros(2, 4, 2, 2)),
        ValueError,
        ["2 x 2", "at least 1"],
    ),
    "SpikeConv2d spikes: channels": (
        lambda: rso.SpikeConv2d(4, 6, 3)(zeros(2, 5, 5, 5)),
        ValueError,
        ["spikes", "4 channels", "5"],
    ),
    "SpikeLinear in_features: 0": (
        lambda: rso.SpikeLinear(0, 3),
        ValueError,
        ["in_(features|channels)", "0"],
    ),
    "SpikeLinear spikes: features": (
        lambda: rso.SpikeLinear(4, 3)(zeros(2, 5)),
        ValueError,
        ["spikes", "[N, 4]", "[2, 5]"],
    ),
    "SpikeLinear spikes: rank": (
        lambda: rso.SpikeLinear(4, 3)(zeros(4)),
        ValueError,
        ["spikes", "[N, 4]", "[4]"],
    ),
    "SpikeLinear spikes: not a tensor": (
        lambda: rso.SpikeLinear(4, 3)(None),
        TypeError,
        ["spikes", "Tensor", "NoneType"],
    ),
    "from_conv2d conv: type": (unshared_from(LINEAR), TypeError, ["conv", "Conv2d", "Linear"]),
    "from_conv2d conv: transposed": (
        unshared_from(nn.ConvTranspose2d(4, 7, 3)),
        TypeError,
        ["conv", "Conv2d", "ConvTranspose2d"],
    ),
    "from_conv2d conv: lazy": (
        unshared_from(nn.LazyConv2d(7, 3)),
        TypeError,
        ["conv", "initialised", "LazyConv2d"],
    ),
    "from_conv2d conv: padding mode": (
        unshared_from(nn.Conv2d(4, 7, 3, padding=1, padding_mode="reflect"), None, 5),
        ValueError,
        ["padding_mode", "zeros", "reflect"],
    ),
    "from_conv2d amplitude: not a tensor": (
        unshared_from(CONV, [1.0]),
        TypeError,
        ["amplitude", "Tensor", "list"],
    ),
    "from_conv2d amplitude: a number": (
        unshared_from(CONV, 2.0, (5, 6)),
        TypeError,
        ["amplitude", "Tensor", "float"],
    ),
    "from_conv2d amplitude: int": (
        unshared_from(CONV, zeros(1, dtype=torch.int32), (5, 6)),
        TypeError,
        ["amplitude", "float32", "int32"],
    ),
    "from_conv2d amplitude: channels": (
        unshared_from(CONV, zeros(3, 5, 6), (5, 6)),
        ValueError,
        ["amplitude", "[4, 5, 6]", "[3, 5, 6]"],
    ),
    "from_conv2d amplitude: size": (
        unshared_from(CONV, zeros(4, 6, 5), (5, 6)),
        ValueError,
        ["amplitude", "[4, 5, 6]", "[4, 6, 5]"],
    ),
    "from_conv2d input_size: missing": (
        unshared_from(CONV, zeros(1)),
        ValueError,
        ["input_size", "(H, W)"],
    ),
    "from_conv2d input_size: too small": (
        unshared_from(CONV, None, 2),
        ValueError,
        ["2 x 2", "at least 1"],
    ),
    "from_conv2d input_size: float": (
        unshared_from(CONV, None, 5.5),
        TypeError,
        ["input_size", "int", "5.5"],
    ),
    "from_conv2d batch_norm: type": (
        unshared_from(CONV, None, 5, nn.ReLU()),
        TypeError,
        ["batch_norm", "batch norm", "ReLU"],
    ),
    "from_conv2d batch_norm: features": (
        unshared_from(CONV, None, 5, nn.BatchNorm2d(4)),
        ValueError,
        ["batch_norm", "7", "4"],
    ),
    "from_conv2d batch_norm: no statistics": (
        unshared_from(CONV, None, 5, nn.BatchNorm2d(7, track_running_stats=False)),
        ValueError,
        ["batch_norm", "running statistics"],
    ),
    "SpikeConv2d.from_conv2d conv": (shared_from(3), TypeError, ["conv", "Conv2d", "int"]),
    "SpikeConv2d.from_conv2d amplitude: element": (
        shared_from(CONV, zeros(4, 5, 6)),
        ValueError,
        ["amplitude", "[4, 1, 1]", "[4, 5, 6]", "UnsharedSpikeConv"],
    ),
    "SpikeConv2d.from_conv2d amplitude: channels": (
        shared_from(CONV, zeros(5, 1, 1)),
        ValueError,
        ["amplitude", "[4, 1, 1]", "[5, 1, 1]"],
    ),
    "SpikeConv2d.from_conv2d amplitude: list": (
        shared_from(CONV, [1.0]),
        TypeError,
        ["amplitude", "Tensor", "list"],
    ),
    "from_linear linear": (linear_from(CONV), TypeError, ["linear", "Linear", "Conv2d"]),
    "from_linear amplitude: list": (
        linear_from(LINEAR, [1.0]),
        TypeError,
        ["amplitude", "Tensor", "list"],
    ),
    "from_linear amplitude: int": (
        linear_from(LINEAR, torch.ones(1, dtype=torch.int32)),
        TypeError,
        ["amplitude", "float32", "int32"],
    ),
    "from_linear amplitude: size": (
        linear_from(LINEAR, zeros(5)),
        ValueError,
        ["amplitude", "12", "[5]"],
    ),
    "from_linear amplitude: too many": (
        linear_from(LINEAR, zeros(24)),
        ValueError,
        ["amplitude", "12", "[24]"],
    ),
    "from_linear amplitude: empty": (
        linear_from(LINEAR, zeros(0)),
        ValueError,
        ["amplitude", "[0]"],
    ),
    "from_linear batch_norm": (
        linear_from(LINEAR, None, nn.BatchNorm1d(12)),
        ValueError,
        ["batch_norm", "7", "12"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    assert_refused(*CASES[case])


def test_the_good_arguments_are_good():
    """What the table varies is accepted unvaried: each row fails for its own reason."""
    unshared()()
    unshared_from(CONV, zeros(4, 5, 6), (5, 6), nn.BatchNorm2d(7))()
    shared_from(CONV, zeros(4, 1, 1))()
    linear_from(LINEAR, zeros(3, 2, 2))()
    layer(2, "element", (4, 5, 6))()


def test_neurons_of_a_folded_network_check_their_numbers_by_name():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\]; got 2"):
        rso.FoldedLIF(2, decay=2.0)
    with pytest.raises(ValueError, match="v_threshold must be positive for ternary"):
        rso.FoldedLIF(2, v_threshold=-1.0, emission="ternary")
    # Tensors take the place of the numbers, and are not checked.
    lif = rso.FoldedLIF(2, decay=torch.full((3, 1, 1), 0.5), v_threshold=-torch.ones(1))
    assert sorted(lif.state_dict()) == ["decay_factor", "v_threshold"]
    assert torch.equal(lif(torch.zeros(2, 3, 1, 1)), torch.ones(2, 3, 1, 1))
