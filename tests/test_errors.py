"""Every bad argument raises the right exception, before anything runs, and the message names the
argument, what came, and what is accepted."""

import re

import pytest
import torch
from helpers import run_python
from torch import nn

import realspike_ops as rso

NAN, INF = float("nan"), float("inf")


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


X = zeros(2, 3, 4, 5, 6)  # [T, B, C, H, W]
SPIKES = zeros(2, 4, 5, 6)  # [N, Cin, H, W]
WEIGHT = zeros(3, 4, 1, 3, 3, 4, 7)  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
CONV = nn.Conv2d(4, 7, 3)
LINEAR = nn.Linear(12, 7)
NETWORK = nn.Sequential(nn.Conv2d(4, 4, 1), rso.RealSpikeLIF(2, "layer"), nn.Conv2d(4, 2, 1)).eval()


def lif(*args, **kwargs):
    return lambda: rso.lif(*(args or (X,)), **kwargs)


def conv(*args, **kwargs):
    return lambda: rso.unshared_spike_conv(*(args or (SPIKES, WEIGHT)), **kwargs)


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
    "lif x: not a tensor": (lif([1.0]), TypeError, ["x", "Tensor", "list"]),
    "lif x: None": (lif(None), TypeError, ["x", "Tensor", "NoneType"]),
    "lif x: int64": (lif(zeros(2, 3, dtype=torch.int64)), TypeError, ["x", "float32", "int64"]),
    "lif x: bool": (lif(zeros(2, 3, dtype=torch.bool)), TypeError, ["x", "float32", "bool"]),
    "lif x: complex": (
        lif(zeros(2, 3, dtype=torch.cfloat)),
        TypeError,
        ["x", "float32", "complex"],
    ),
    "lif x: float64": (
        lif(zeros(2, 3, dtype=torch.float64)),
        TypeError,
        ["x", "float32, float16, bfloat16", "float64", "reference"],
    ),
    "lif x: sparse": (lif(zeros(2, 3).to_sparse()), TypeError, ["x", "dense", "sparse"]),
    "lif x: rank 0": (lif(zeros()), ValueError, ["x", "2 dimensions", "[]"]),
    "lif x: rank 1": (lif(zeros(3)), ValueError, ["x", "2 dimensions", "[3]"]),
    "lif x: T = 0": (lif(zeros(0, 3)), ValueError, ["x", "T >= 1", "[0, 3]"]),
    "lif decay: above 1": (lif(decay=1.5), ValueError, ["decay", "[0, 1]", "1.5"]),
    "lif decay: below 0": (lif(decay=-0.1), ValueError, ["decay", "[0, 1]", "-0.1"]),
    "lif decay: a time constant": (lif(decay=2), ValueError, ["decay", "[0, 1]", "2"]),
    "lif decay: NaN": (lif(decay=NAN), ValueError, ["decay", "[0, 1]", "nan"]),
    "lif decay: None": (lif(decay=None), TypeError, ["decay", "number", "NoneType"]),
    "lif decay: bool": (lif(decay=True), TypeError, ["decay", "number", "bool"]),
    "lif decay: text": (lif(decay="0.5"), TypeError, ["decay", "number", "str"]),
    "lif decay: a string": (lif(decay="0.5"), TypeError, ["decay", "number", "str"]),
    "lif decay: integers": (
        lif(decay=torch.tensor([1])),
        TypeError,
        ["decay", "float32", "int64"],
    ),
    "lif v_threshold: NaN": (lif(v_threshold=NAN), ValueError, ["v_threshold", "finite", "nan"]),
    "lif v_threshold: inf": (lif(v_threshold=INF), ValueError, ["v_threshold", "finite", "inf"]),
    "lif v_threshold: None": (lif(v_threshold=None), TypeError, ["v_threshold", "number"]),
    "lif v_threshold: a huge int": (lif(v_threshold=10**400), ValueError, ["v_threshold"]),
    "lif v_reset: NaN": (lif(v_reset=NAN), ValueError, ["v_reset", "finite", "nan"]),
    "lif v_reset: text": (lif(v_reset="soft"), TypeError, ["v_reset", "number", "str"]),
    "lif surrogate: unknown": (
        lif(surrogate="relu"),
        ValueError,
        ["surrogate", "rectangular", "atan", "sigmoid", "triangle", "relu"],
    ),
    "lif surrogate: None": (lif(surrogate=None), TypeError, ["surrogate", "NoneType|None"]),
    "lif surrogate: a number": (lif(surrogate=3), TypeError, ["surrogate", "3|int"]),
    "lif surrogate: no scale": (lif(surrogate=("atan",)), (TypeError, ValueError), ["surrogate"]),
    "lif surrogate: scale 0": (lif(surrogate=("atan", 0)), ValueError, ["surrogate", "scale", "0"]),
    "lif surrogate: scale NaN": (
        lif(surrogate=("atan", NAN)),
        ValueError,
        ["surrogate", "scale", "nan"],
    ),
    "lif surrogate: scale inf": (lif(surrogate=("atan", INF)), ValueError, ["surrogate", "inf"]),
    "lif surrogate: scale text": (
        lif(surrogate=("atan", "x")),
        (TypeError, ValueError),
        ["surrogate"],
    ),
    "lif surrogate: name unhashable": (
        lif(surrogate=([], 1.0)),
        (TypeError, ValueError),
        ["surrogate"],
    ),
    "lif amplitude: not a tensor": (lif(X, 2.0), TypeError, ["amplitude", "Tensor", "float"]),
    "lif amplitude: float64": (
        lif(X, zeros(1, dtype=torch.float64)),
        TypeError,
        ["amplitude", "float32", "float64"],
    ),
    "lif amplitude: int": (
        lif(X, zeros(1, dtype=torch.int32)),
        TypeError,
        ["amplitude", "float32", "int32"],
    ),
    "lif amplitude: sparse": (
        lif(X, zeros(4, 1, 1).to_sparse()),
        TypeError,
        ["amplitude", "dense"],
    ),
    "lif amplitude: other device": (
        lif(X, zeros(1, device="meta")),
        ValueError,
        ["amplitude", "device", "cpu", "meta"],
    ),
    "lif x: other device": (
        lif(X.to("meta"), zeros(1)),
        ValueError,
        ["amplitude", "device", "meta", "cpu"],
    ),
    **{
        f"lif amplitude: {list(shape)}": (
            lif(X, zeros(*shape)),
            ValueError,
            ["amplitude", "[1]", "[4, 1, 1]", "[4, 5, 6]", str(list(shape))],
        )
        for shape in [(4,), (2,), (3, 1, 1), (5, 4, 6), (4, 5), (1, 4, 5, 6), (0,), (3, 4, 5, 6)]
    },
    "lif amplitude: enlarges x": (lif(zeros(2, 3, 1), zeros(4)), ValueError, ["amplitude", "[4]"]),
    "lif emission: unknown": (lif(emission="real"), ValueError, ["emission", "ternary", "real"]),
    "lif emission: None": (lif(emission=None), ValueError, ["emission", "binary", "None"]),
    "lif emission: ternary at threshold 0": (
        lif(emission="ternary", v_threshold=0.0),
        ValueError,
        ["v_threshold", "positive", "ternary", "0"],
    ),
    "lif emission: ternary below 0": (
        lif(emission="ternary", v_threshold=-0.5),
        ValueError,
        ["v_threshold", "positive", "-0.5"],
    ),
    "lif reset: unknown": (lif(reset="zero"), ValueError, ["reset", "hard, soft, none", "zero"]),
    "lif reset: a number": (lif(reset=0.0), ValueError, ["reset", "hard", "0"]),
    "lif reset: hard without a value": (
        lif(reset="hard", v_reset=None),
        ValueError,
        ["v_reset", "number", "None"],
    ),
    "lif decay: shape": (lif(decay=zeros(4)), ValueError, ["decay", "[4, 1, 1]", "[4]"]),
    "lif decay: tensor on another device": (
        lif(decay=zeros(1, device="meta")),
        ValueError,
        ["decay", "cpu", "meta"],
    ),
    "lif v_threshold: shape": (
        lif(v_threshold=zeros(3, 1, 1)),
        ValueError,
        ["v_threshold", "[4, 1, 1]", "[3, 1, 1]"],
    ),
    "lif v_threshold: float64": (
        lif(v_threshold=zeros(1, dtype=torch.float64)),
        TypeError,
        ["v_threshold", "float32", "float64"],
    ),
    "lif packed: an amplitude": (
        lif(X, zeros(4, 1, 1), packed=True),
        ValueError,
        ["amplitude", "None", "packed", "[4, 1, 1]"],
    ),
    "lif packed: a gradient": (
        lambda: rso.lif(X.clone().requires_grad_(), packed=True),
        ValueError,
        ["packed", "inference", "no_grad"],
    ),
    "lif packed: a learnable decay": (
        lambda: rso.lif(X, decay=torch.nn.Parameter(zeros(1)), packed=True),
        ValueError,
        ["packed", "inference"],
    ),
    "lif packed: no channels": (
        lif(zeros(2, 3), packed=True),
        ValueError,
        ["x", "[T, B, C, ...]", "[2, 3]"],
    ),
    "layer emission: unknown": (layer(emission="real"), ValueError, ["emission", "ternary"]),
    "layer emission: ternary at threshold 0": (
        layer(emission="ternary", v_threshold=0),
        ValueError,
        ["v_threshold", "positive"],
    ),
    "layer reset: unknown": (layer(reset="zero"), ValueError, ["reset", "soft", "zero"]),
    "layer decay_granularity: unknown": (
        layer(decay_granularity="neuron"),
        ValueError,
        ["decay_granularity", "channel", "neuron"],
    ),
    "layer threshold_granularity: no shape": (
        layer(threshold_granularity="channel"),
        ValueError,
        ["shape", "threshold_granularity", "None"],
    ),
    **{
        f"layer decay: {decay} and learnable": (
            layer(decay=decay, decay_granularity="layer"),
            ValueError,
            ["decay", "(0, 1)", f"{decay:g}"],
        )
        for decay in (0.0, 1.0)
    },
    "lif v_init: not a tensor": (lif(v_init=0.0), TypeError, ["v_init", "Tensor", "float"]),
    "lif v_init: shape": (
        lif(v_init=zeros(3, 4, 5, 1)),
        ValueError,
        ["v_init", "[3, 4, 5, 6]", "[3, 4, 5, 1]"],
    ),
    "lif v_init: shape of x": (lif(v_init=X), ValueError, ["v_init", "[3, 4, 5, 6]"]),
    "lif v_init: dtype": (lif(v_init=X[0].long()), TypeError, ["v_init", "float32", "int64"]),
    "lif v_init: other device": (
        lif(v_init=X[0].to("meta")),
        ValueError,
        ["v_init", "device", "cpu", "meta"],
    ),
    "pack spikes: not a tensor": (lambda: rso.pack_spikes([[1]]), TypeError, ["spikes", "list"]),
    "pack spikes: int64": (
        lambda: rso.pack_spikes(zeros(2, 3, dtype=torch.int64)),
        TypeError,
        ["spikes", "bool", "uint8", "int64"],
    ),
    "pack spikes: rank 1": (
        lambda: rso.pack_spikes(zeros(3)),
        ValueError,
        ["spikes", "2 dimensions", "[3]"],
    ),
    "pack spikes: sparse": (
        lambda: rso.pack_spikes(zeros(2, 3).to_sparse()),
        TypeError,
        ["spikes", "dense", "sparse"],
    ),
    "pack spikes: real values": (
        lambda: rso.pack_spikes(zeros(2, 3) + 0.5),
        ValueError,
        ["spikes", "0 or 1"],
    ),
    "unpack packed: not a tensor": (lambda: rso.unpack_spikes(3, 3), TypeError, ["packed", "int"]),
    "unpack packed: float": (
        lambda: rso.unpack_spikes(zeros(2, 1), 3),
        TypeError,
        ["packed", "int32", "float32"],
    ),
    "unpack packed: words": (
        lambda: rso.unpack_spikes(zeros(2, 1, dtype=torch.int32), 33),
        ValueError,
        ["packed", "2", "33 channels", "[2, 1]"],
    ),
    "unpack packed: rank 1": (
        lambda: rso.unpack_spikes(zeros(1, dtype=torch.int32), 32),
        ValueError,
        ["packed", "[1]"],
    ),
    "unpack channels: 0": (
        lambda: rso.unpack_spikes(zeros(2, 0, dtype=torch.int32), 0),
        ValueError,
        ["channels", "at least 1", "0"],
    ),
    "unpack channels: bool": (
        lambda: rso.unpack_spikes(zeros(2, 1, dtype=torch.int32), True),
        TypeError,
        ["channels", "int", "bool"],
    ),
    "conv spikes: not a tensor": (conv([1], WEIGHT), TypeError, ["spikes", "Tensor", "list"]),
    "conv spikes: int64": (conv(SPIKES.long(), WEIGHT), TypeError, ["spikes", "uint8", "int64"]),
    "conv spikes: rank 3": (
        conv(SPIKES[0], WEIGHT),
        ValueError,
        ["spikes", "[N, Cin, H, W]", "[4, 5, 6]"],
    ),
    "conv spikes: rank 5": (conv(X, WEIGHT), ValueError, ["spikes", "[N, Cin, H, W]"]),
    "conv spikes: channels": (
        conv(SPIKES[:, :3], WEIGHT),
        ValueError,
        ["spikes", "4 channels", "3"],
    ),
    "conv spikes: words": (
        conv(zeros(2, 5, 6, 2, dtype=torch.int32), WEIGHT),
        ValueError,
        ["spikes", "4 channels", "[2, 5, 6, 2]"],
    ),
    "conv spikes: size": (conv(SPIKES[..., 1:], WEIGHT), ValueError, ["weight", "3 x 4", "3 x 3"]),
    "conv spikes: smaller than the kernel": (
        conv(SPIKES[..., :2, :2], WEIGHT),
        ValueError,
        ["2 x 2", "kernel", "0 x 0", "at least 1"],
    ),
    "conv spikes: sparse": (conv(SPIKES.to_sparse(), WEIGHT), TypeError, ["spikes", "dense"]),
    "conv spikes: real values": (conv(SPIKES + 0.5, WEIGHT), ValueError, ["spikes", "0 or 1"]),
    "conv weight: not a tensor": (conv(SPIKES, None), TypeError, ["weight", "Tensor", "NoneType"]),
    "conv weight: float64": (
        conv(SPIKES, WEIGHT.double()),
        TypeError,
        ["weight", "float32", "float64"],
    ),
    "conv weight: int8": (
        conv(SPIKES, WEIGHT.to(torch.int8)),
        TypeError,
        ["weight", "uint8", "int8", "128 added", "quantize_weight"],
    ),
    "conv algorithm": (
        conv(SPIKES, WEIGHT, algorithm="dense"),
        ValueError,
        ["algorithm", "gather", "matmul", "auto", "dense"],
    ),
    "conv amplitude: shape": (
        conv(SPIKES, WEIGHT[:1, :1], amplitude=zeros(4, 5, 5)),
        ValueError,
        ["amplitude", "[4, 5, 6]", "[4, 5, 5]"],
    ),
    "conv amplitude: with unshared weights": (
        conv(SPIKES, WEIGHT.clone(), amplitude=zeros(4, 5, 6)),
        ValueError,
        ["amplitude", "factored", "[1, 1, ...]"],
    ),
    "conv amplitude: with int8 weights": (
        conv(SPIKES, WEIGHT[:1, :1].to(torch.uint8), amplitude=zeros(4, 5, 6)),
        ValueError,
        ["amplitude", "floating", "uint8"],
    ),
    "conv amplitude: dtype": (
        conv(SPIKES, WEIGHT[:1, :1], amplitude=zeros(4, 5, 6).half()),
        TypeError,
        ["amplitude", "float32", "float16"],
    ),
    "conv scale: with float weights": (
        conv(SPIKES, WEIGHT, scale=zeros(7)),
        ValueError,
        ["scale", "uint8", "float32"],
    ),
    "conv scale: shape": (
        conv(SPIKES, WEIGHT.to(torch.uint8), scale=zeros(4)),
        ValueError,
        ["scale", "[7]", "[4]"],
    ),
    "conv spikes: bits beyond the channels": (
        conv(torch.full((2, 5, 6, 1), 16, dtype=torch.int32), WEIGHT),
        ValueError,
        ["spikes", "beyond 4 channels"],
    ),
    "conv spikes: the highest bit beyond the channels": (
        conv(torch.full((2, 5, 6, 1), -(2**31), dtype=torch.int32), WEIGHT),
        ValueError,
        ["spikes", "beyond 4 channels"],
    ),
    "quantize_weight: dtype": (
        lambda: rso.quantize_weight(WEIGHT.to(torch.int8)),
        TypeError,
        ["weight", "float32", "int8"],
    ),
    "quantize_weight: rank": (
        lambda: rso.quantize_weight(CONV.weight),
        ValueError,
        ["weight", "[OH, OW", "[7, 4, 3, 3]"],
    ),
    "quantize_weight: not finite": (
        lambda: rso.quantize_weight(torch.full((1,) * 7, float("nan"))),
        ValueError,
        ["weight", "finite"],
    ),
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
        lambda: rso.UnsharedSpikeConv1d(4, 6, 3, (5, 6)),
        TypeError,
        ["input_size", "int", "(5, 6)"],
    ),
    "UnsharedSpikeConv1d spikes: rank": (
        lambda: rso.UnsharedSpikeConv1d(4, 6, 3, 5)(SPIKES),
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
    "conv weight: that of a Conv2d": (
        conv(SPIKES, CONV.weight.detach()),
        ValueError,
        ["weight", "[OH, OW, groups, KH, KW, Cin/groups, Cout/groups]", "[7, 4, 3, 3]"],
    ),
    "conv weight: size 0": (conv(SPIKES, WEIGHT[..., :0]), ValueError, ["weight", "at least 1"]),
    "conv weight: other device": (
        conv(SPIKES, WEIGHT.to("meta")),
        ValueError,
        ["weight", "device", "cpu", "meta"],
    ),
    "conv bias: not a tensor": (conv(SPIKES, WEIGHT, [0.0] * 7), TypeError, ["bias", "Tensor"]),
    "conv bias: shape": (
        conv(SPIKES, WEIGHT, zeros(6)),
        ValueError,
        ["bias", "[7]", "[7, 3, 4]", "[6]"],
    ),
    "conv bias: map": (
        conv(SPIKES, WEIGHT, zeros(7, 4, 3)),
        ValueError,
        ["bias", "[7, 3, 4]", "[7, 4, 3]"],
    ),
    "conv bias: dtype": (
        conv(SPIKES, WEIGHT, zeros(7, dtype=torch.float64)),
        TypeError,
        ["bias", "float32", "float64"],
    ),
    "conv bias: other device": (
        conv(SPIKES, WEIGHT, zeros(7, device="meta")),
        ValueError,
        ["bias", "device", "cpu", "meta"],
    ),
    "conv stride: 0": (conv(stride=0), ValueError, ["stride", "at least 1", "0"]),
    "conv stride: negative": (conv(stride=(1, -2)), ValueError, ["stride", "at least 1", "-2"]),
    "conv stride: float": (conv(stride=1.0), TypeError, ["stride", "int", "1.0"]),
    "conv stride: bool": (conv(stride=True), TypeError, ["stride", "int", "True"]),
    "conv stride: pair of bools": (conv(stride=(True, 1)), TypeError, ["stride", "int", "True"]),
    "conv stride: three": (conv(stride=(1, 1, 1)), TypeError, ["stride", "pair", "(1, 1, 1)"]),
    "conv stride: None": (conv(stride=None), TypeError, ["stride", "int", "None"]),
    "conv padding: negative": (conv(padding=-1), ValueError, ["padding", "at least 0", "-1"]),
    "conv padding: float": (conv(padding=0.5), TypeError, ["padding", "int", "0.5"]),
    "conv padding: unknown": (
        conv(padding="full"),
        ValueError,
        ["padding", "same", "valid", "full"],
    ),
    "conv padding: same with stride": (
        conv(padding="same", stride=2),
        ValueError,
        ["padding", "same", "stride", "2"],
    ),
    "conv dilation: 0": (conv(dilation=0), ValueError, ["dilation", "at least 1", "0"]),
    "conv dilation: too large": (conv(dilation=3), ValueError, ["5 x 6", "at least 1"]),
    "RealSpikeLIF timesteps: 0": (layer(0), ValueError, ["timesteps", "at least 1", "0"]),
    "RealSpikeLIF timesteps: float": (layer(2.0), TypeError, ["timesteps", "int", "float"]),
    "RealSpikeLIF timesteps: bool": (layer(True), TypeError, ["timesteps", "int", "bool"]),
    "RealSpikeLIF granularity: unknown": (
        layer(2, "neuron"),
        ValueError,
        ["granularity", "none, layer, channel, element", "neuron"],
    ),
    "RealSpikeLIF granularity: None": (layer(2, None), ValueError, ["granularity", "none", "None"]),
    "RealSpikeLIF shape: missing": (
        layer(2, "element"),
        ValueError,
        ["shape", "element", "(C, H, W)", "None"],
    ),
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
    "UnsharedSpikeConv stride": (unshared(stride=0), ValueError, ["stride", "0"]),
    "UnsharedSpikeConv padding": (unshared(padding="full"), ValueError, ["padding", "full"]),
    "UnsharedSpikeConv dilation": (unshared(dilation=0), ValueError, ["dilation", "0"]),
    "UnsharedSpikeConv spikes: other size": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, (5, 6))(zeros(2, 4, 6, 6)),
        ValueError,
        ["3 x 4|5 x 6|input_size", "6 x 6"],
    ),
    # With a stride this map gives an output of the same size, but other taps are on the border.
    "UnsharedSpikeConv spikes: other size, same output": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, 8, stride=2, padding=1)(zeros(2, 4, 7, 7)),
        ValueError,
        ["8|input_size", "7"],
    ),
    "UnsharedSpikeConv spikes: not a tensor": (
        lambda: rso.UnsharedSpikeConv(4, 6, 3, 5)([1]),
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
    "reparameterize model": (
        lambda: rso.reparameterize(3, SPIKES),
        TypeError,
        ["model", "Module", "int"],
    ),
    "reparameterize example_input": (
        lambda: rso.reparameterize(NETWORK, [1]),
        TypeError,
        ["example_input", "Tensor", "list"],
    ),
    "verify model": (
        lambda: rso.verify(3, NETWORK, SPIKES),
        TypeError,
        ["model", "Module", "int"],
    ),
    "verify folded": (
        lambda: rso.verify(NETWORK, 3, SPIKES),
        TypeError,
        ["folded", "Module", "int"],
    ),
    "verify data": (lambda: rso.verify(NETWORK, NETWORK, 3), TypeError, ["data", "int"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    call, exception, words = CASES[case]
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    patterns = [word if "|" in word else re.escape(word) for word in words]
    for pattern in patterns:
        assert re.search(pattern, message), f"{pattern!r} is not in: {message}"


def test_the_good_arguments_are_good():
    """What the table varies is accepted unvaried: each row fails for its own reason."""
    rso.lif(X)
    rso.lif(X, zeros(4, 5, 6), v_init=X[0])
    rso.unshared_spike_conv(SPIKES, WEIGHT, zeros(7, 3, 4))
    rso.unshared_spike_conv(rso.pack_spikes(SPIKES), WEIGHT, zeros(7))
    unshared()()
    unshared_from(CONV, zeros(4, 5, 6), (5, 6), nn.BatchNorm2d(7))()
    shared_from(CONV, zeros(4, 1, 1))()
    linear_from(LINEAR, zeros(3, 2, 2))()
    layer(2, "element", (4, 5, 6))()
    rso.verify(NETWORK, rso.reparameterize(NETWORK, SPIKES), SPIKES)


def test_a_device_without_kernels():
    class Elsewhere:
        """Stands in for a tensor of a device that this machine lacks."""

    from realspike_ops import _checks

    fake = Elsewhere()
    fake.device = torch.device("xpu")
    with pytest.raises(ValueError, match=r"x is on xpu.*cpu and cuda.*reference"):
        _checks.check_supported_device("x", fake)


MISSING_EXTENSION = """
import sys
sys.modules["realspike_ops._C"] = None
import torch
import realspike_ops as rso
calls = {
    "lif": lambda: rso.lif(torch.zeros(2, 3)),
    "pack_spikes": lambda: rso.pack_spikes(torch.zeros(2, 3)),
    "unpack_spikes": lambda: rso.unpack_spikes(torch.zeros(2, 1, dtype=torch.int32), 3),
    "unshared_spike_conv": lambda: rso.unshared_spike_conv(
        torch.zeros(1, 1, 2, 2), torch.zeros(2, 2, 1, 1, 1, 1, 1)
    ),
    "build_info": rso.build_info,
}
for name, call in calls.items():
    try:
        call()
    except ImportError as error:
        assert "pip install" in str(error) and "realspike_ops" in str(error), error
        print(name)
assert not rso.reference.lif(torch.zeros(2, 3)).any()
"""


def test_a_missing_extension_names_the_command_that_builds_it():
    """And nothing falls back to the reference."""
    printed = run_python("-c", MISSING_EXTENSION).split()
    assert printed == ["lif", "pack_spikes", "unpack_spikes", "unshared_spike_conv", "build_info"]


def test_save_must_be_asked_for_where_a_gradient_is_required():
    x = zeros(2, 3).requires_grad_()
    with pytest.raises(RuntimeError, match=r"save must not be 0"):
        torch.ops.realspike.lif_fwd(
            x, *[None] * 4, *(0.25, 0.5, 0.0, "hard", False, False, "rectangular", 1.0, 0, False)
        )


@pytest.mark.parametrize("value", ["sse2", "AVX2", "neon"])
def test_unknown_instruction_set(value):
    with pytest.raises(AssertionError, match=f"REALSPIKE_CPU_ISA.*avx2.*{value}"):
        run_python("-c", "import realspike_ops as r; r.build_info()", REALSPIKE_CPU_ISA=value)
