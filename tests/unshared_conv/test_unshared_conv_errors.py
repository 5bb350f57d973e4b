"""Every bad argument of unshared_spike_conv and quantize_weight raises the right exception, before
anything runs, and the message names the argument, what came, and what is accepted."""

import pytest
import torch
from refusals import SPIKES, assert_refused, zeros
from torch import nn

import realspike_ops as rso

CONV = nn.Conv2d(4, 7, 3)
WEIGHT = zeros(3, 4, 1, 3, 3, 4, 7)  # [OH, OW, G, KH, KW, Cin/G, Cout/G]


def conv(*args, **kwargs):
    return lambda: rso.unshared_spike_conv(*(args or (SPIKES, WEIGHT)), **kwargs)


CASES = {
    # id: (call, exception, words of the message in their order)
    "conv spikes: not a tensor": (conv([1], WEIGHT), TypeError, ["spikes", "Tensor", "list"]),
    "conv spikes: int64": (conv(SPIKES.long(), WEIGHT), TypeError, ["spikes", "uint8", "int64"]),
    "conv spikes: rank 3": (
        conv(SPIKES[0], WEIGHT),
        ValueError,
        ["spikes", "[N, Cin, H, W]", "[4, 5, 6]"],
    ),
    "conv spikes: rank 5": (conv(SPIKES[None], WEIGHT), ValueError, ["spikes", "[N, Cin, H, W]"]),
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
        conv(SPIKES, WEIGHT, algorithm="fast"),
        ValueError,
        ["algorithm", "gather", "fast"],
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
}


@pytest.mark.parametrize("case", CASES)
def test_bad_argument(case):
    assert_refused(*CASES[case])


def test_the_good_arguments_are_good():
    """What the table varies is accepted unvaried: each row fails for its own reason."""
    rso.unshared_spike_conv(SPIKES, WEIGHT, zeros(7, 3, 4))
    rso.unshared_spike_conv(rso.pack_spikes(SPIKES), WEIGHT, zeros(7))


@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("channels", [1, 31, 32, 33, 63, 64, 65])
def test_every_bit_beyond_the_channels_is_seen(channels, layout):
    words = -(-channels // 32)
    weight = torch.zeros(1, 1, 1, 1, 1, channels, 1)
    for bit in range(32):
        packed = torch.zeros(2, 3, 4, words * (2 if layout == "strided" else 1), dtype=torch.int32)
        packed = packed[..., :words]
        packed[1, 2, 3, -1] = torch.tensor(1 << bit).to(torch.int32)
        if bit + 32 * (words - 1) < channels:
            rso.unshared_spike_conv(packed, weight)
            continue
        with pytest.raises(ValueError, match=f"no bits beyond {channels} channels"):
            rso.unshared_spike_conv(packed, weight)
