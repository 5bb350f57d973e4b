"""The CUDA kernels of unshared_conv, executed on the CPU.

Expected values come from a float64 computation written here. Weight rows that no sample of the call
uses, and rows of taps outside the map, are NaN in what the kernel sees: adding one of them shows.
"""

import ctypes
import itertools

import pytest
import simt_kernels as simt
import torch
import torch.nn.functional as F
from simt_conv import SCALE, Case, call, make_inputs
from torch import Tensor

pytestmark = [simt.needs_compiler, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def lib() -> ctypes.CDLL:
    return simt.library()


CASES = [
    # channels in: whole words, a word more or less by one, several words
    *(Case(cin=cin, cout=cout) for cin in (1, 31, 32, 33, 64, 65) for cout in (1, 3, 4, 16)),
    # channels out: idle lanes, several channel tiles, rows that are not a multiple of four
    *(Case(cin=33, cout=cout, samples=n) for cout in (20, 132) for n in (1, 3, 9, 17)),
    Case(cin=33, cout=128, samples=5),
    Case(cin=40, cout=130, samples=2),
    Case(cin=40, cout=33, samples=5),
    # kernel, stride, padding and dilation
    *(
        Case(cin=33, kernel=(k, k), stride=(s, s), padding=(p, p), dilation=(d, d), size=(9, 10))
        for k, s, p, d in itertools.product((1, 3, 5), (1, 2), (0, 1, 2), (1, 2))
        if (k, d) != (1, 2)
    ),
    Case(kernel=(3, 1), padding=(1, 0), size=(3, 7)),
    Case(kernel=(1, 5), padding=(0, 2), size=(7, 3)),
    Case(kernel=(2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), size=(5, 8)),
    Case(kernel=(3, 2), stride=(1, 3), padding=(2, 1), dilation=(2, 1), size=(6, 7)),
    Case(kernel=(5, 5), padding=(2, 2), size=(1, 1)),  # most taps lie outside
    Case(kernel=(1, 1), padding=(2, 2), size=(2, 2)),  # border positions read nothing
    # groups: boundaries at, inside and across words
    Case(cin=64, cout=32, groups=2),
    Case(cin=66, cout=8, groups=2),
    Case(cin=40, cout=20, groups=5),
    Case(cin=90, cout=12, groups=3, bias="element"),
    Case(cin=210, cout=6, groups=3),
    Case(cin=33, cout=33, groups=33, samples=9),  # depthwise
    Case(cin=65, cout=130, groups=65, kernel=(1, 1), padding=(0, 0)),
    Case(cin=36, cout=144, groups=36, samples=2),
    # samples: partly filled tiles, several tiles
    *(Case(cin=40, samples=n, cout=cout) for n in (1, 2, 3, 4, 8, 9, 17, 35) for cout in (8, 5)),
    # rates
    *(Case(cin=65, cout=20, samples=5, rate=rate) for rate in (0.0, 0.05, 0.5, 1.0)),
    *(Case(cin=65, cout=3, samples=5, rate=rate, bias="channel") for rate in (0.0, 1.0)),
    # layouts and biases
    *(
        Case(cin=34, cout=cout, bias=bias, out=out, shared=shared, samples=4)
        for cout in (6, 20)
        for bias in ("none", "channel", "element")
        for out in ("nchw", "nhwc")
        for shared in (False, True)
    ),
    Case(cin=66, cout=8, groups=2, shared=True, stride=(2, 2)),
    # every shipped kernel, whatever the launcher would choose for these few blocks
    *(
        Case(cin=100, cout=40, samples=19, size=(2, 2), vec=vec, tile=tile, bias="channel")
        for vec in (1, 4)
        for tile in (1, 2, 8)
    ),
    *(
        Case(
            cin=70, cout=140, samples=6, size=(2, 3), vec=vec, lanes=lanes, tile=tile, shares=shares
        )
        for lanes, tile, shares in (
            *((32, 1, 8), (32, 4, 1), (16, 2, 4), (16, 16, 1), (8, 8, 4), (8, 1, 32), (4, 8, 2)),
            *((2, 16, 8), (1, 32, 4)),
        )
        for vec in (1, 4)
    ),
    # every type of weights: whole vectors and single weights, idle lanes, several channel tiles
    *(
        Case(cin=cin, cout=cout, samples=n, weight=weight, bias="element", size=(3, 4))
        for weight in ("float16", "bfloat16", "int8", "int8-scaled")
        for cin, cout, n in ((33, 16, 3), (70, 5, 4), (64, 48, 9), (31, 1, 1))
    ),
    *(
        Case(cin=100, cout=48, samples=19, size=(2, 2), vec=vec, tile=tile, weight=weight)
        for weight in ("float16", "bfloat16", "int8")
        for vec in (1, 4)
        for tile in (1, 4)
    ),
    # int8: all bits of more words than 16-bit lanes hold, in the one stream of a block
    *(
        Case(
            **{
                "cin": 200,
                "cout": 512,
                "samples": 2,
                "size": (2, 2),
                "rate": rate,
                "weight": "int8",
            },
            **{"lanes": 32, "shares": 1, "splits": 1, "vec": vec},
        )
        for rate in (0.5, 1.0)
        for vec in (1, 4)
    ),
    # more words than a list takes: 90 in the middle of the map
    *(
        Case(cin=300, cout=8, samples=n, rate=rate, size=(3, 3), weight=weight, bias="channel")
        for n in (1, 5)
        for rate in (0.05, 1.0)
        for weight in ("float32", "int8")
    ),
    Case(cin=66, cout=32, groups=2, weight="int8-scaled", shared=True, out="nhwc", bias="channel"),
    Case(cin=66, cout=32, groups=2, weight="bfloat16", shared=True, stride=(2, 2), out="nhwc"),
    # several blocks share the receptive field
    *(
        Case(cin=70, cout=20, samples=3, splits=splits, tile=4, weight=weight, bias="channel")
        for splits in (2, 3, 16)
        for weight in ("float32", "bfloat16", "int8", "int8-scaled")
    ),
    Case(cin=200, cout=8, samples=17, kernel=(1, 1), padding=(0, 0), size=(1, 1), splits=4),
    # the kernel for many samples
    *(
        Case(
            **{"cin": cin, "cout": cout, "samples": n, "weight": weight, "bias": "channel"},
            **{"lanes": lanes, "tile": tile, "staged": True},
        )
        for weight in ("float32", "float16", "bfloat16", "int8", "int8-scaled")
        for cin, cout, n, lanes, tile in (
            (33, 16, 3, 4, 4),
            (64, 80, 37, 32, 4),
            (31, 48, 70, 8, 8),
        )
    ),
    # more streams than rows of a stage; outputs that are written 16 bytes at a time, and not
    *(
        Case(cin=40, cout=12, samples=9, lanes=4, threads=256, staged=True, out=out, weight=weight)
        for out in ("nchw", "nhwc")
        for weight in ("float32", "int8-scaled")
    ),
    *(
        Case(
            cin=33, cout=16, kernel=(k, k), stride=(s, s), padding=(p, p), size=(6, 5), staged=True
        )
        for k, s, p in itertools.product((1, 3), (1, 2), (0, 2))
    ),
    *(
        Case(cin=cin, cout=48, groups=groups, samples=5, staged=True, shared=shared, out="nhwc")
        for cin, groups, shared in ((66, 3, False), (210, 3, True), (40, 1, False))
    ),
    *(Case(cin=300, cout=16, weight="int8", rate=r, size=(2, 2), staged=True) for r in (0.0, 1.0)),
    Case(cin=40, cout=40, samples=70, bias="element", blocks=3, staged=True, kernel=(1, 1)),
    # the launcher's own choice of that kernel (test_unshared_conv_config_simt.py)
    Case(cin=33, cout=16, samples=33, size=(14, 14), bias="channel"),
    Case(cin=20, cout=32, groups=2, samples=33, size=(11, 12), weight="int8-scaled", out="nhwc"),
    # nothing that a tile, a word or a vector divides
    *(
        Case(**sizes, bias="element", weight=weight)
        for weight, sizes in (
            ("float32", {"cin": 7, "cout": 129, "samples": 129, "size": (3, 1), "kernel": (5, 1)}),
            ("bfloat16", {"cin": 91, "cout": 217, "groups": 7, "samples": 23, "stride": (3, 2)}),
            ("float16", {"cin": 65, "cout": 31, "samples": 257, "size": (1, 2), "rate": 0.05}),
            ("int8-scaled", {"cin": 195, "cout": 51, "groups": 3, "samples": 63, "size": (2, 1)}),
        )
    ),
    # fewer blocks than tiles: a block works on several, one after the other
    Case(cin=40, cout=40, samples=9, bias="element", blocks=1),
    Case(cin=40, cout=40, samples=9, bias="element", blocks=7, tile=4),
    Case(cin=70, cout=48, samples=9, blocks=5, weight="int8"),
    # and lists so long that the sums of the shares, which take their place, reach beyond the first
    *(
        Case(cin=128, cout=128, samples=n, rate=0.6, size=(2, 2), tile=1, shares=4, blocks=blocks)
        for n, blocks in ((1, 0), (3, 2))
    ),
]


def expect(case: Case, spikes: Tensor, weight: Tensor, bias: Tensor | None):
    """Returns the output, its error bound and the number of samples that use each weight."""
    OH, OW = case.out_size
    taps = F.unfold(
        spikes.double(), case.kernel, case.dilation, case.padding, case.stride
    )  # [N, Cin * KH * KW, P]
    taps = taps.unflatten(1, (case.groups, -1, *case.kernel)).unflatten(-1, (OH, OW))
    weight = weight.double().expand(OH, OW, *weight.shape[2:])
    equation = "ngiklhw,hwgklio->ngohw"
    out = torch.einsum(equation, taps, weight).flatten(1, 2)
    magnitude = torch.einsum(equation, taps, weight.abs()).flatten(1, 2)
    terms = torch.einsum(equation, taps, torch.ones_like(weight)).flatten(1, 2)
    if case.weight.startswith("int8"):  # a sum of integers is exact: one term
        terms, magnitude = torch.ones_like(terms), out.abs()
    if case.weight == "int8-scaled":
        factor = SCALE[: case.cout].double()[:, None, None]
        out, magnitude, terms = out * factor, magnitude * factor, terms + 1
    if bias is not None:
        bias = bias.double().reshape(case.cout, *((OH, OW) if bias.dim() == 3 else (1, 1)))
        out, magnitude, terms = out + bias, magnitude + bias.abs(), terms + 1
    # A sum of n float32 numbers, in any order, has n - 1 roundings.
    growth = (terms - 1).clamp(min=0) * 2.0**-24
    bound = growth / (1 - growth) * magnitude
    uses = taps.sum(0).permute(4, 5, 0, 2, 3, 1).unsqueeze(-1)  # [OH, OW, G, KH, KW, Cin_g, 1]
    return out, bound, uses


def assert_within(out: Tensor, expected: Tensor, bound: Tensor) -> None:
    error = (out.double() - expected).abs()
    assert (error <= bound).all(), f"largest excess {(error - bound).nan_to_num(1e30).max():.3g}"


def run_and_compare(lib, case: Case, spikes: Tensor | None = None) -> None:
    spikes, weight, bias = make_inputs(case, spikes)
    expected, bound, uses = expect(case, spikes, weight, bias)
    # [OH, OW, ...] or, for a shared kernel, whether any position uses the row.
    uses = uses.sum((0, 1), keepdim=True) if case.shared else uses
    weight = torch.where(uses > 0, weight, torch.nan).contiguous()
    out = call(lib, case, spikes, weight, bias)
    assert_within(out, expected, bound)
    # The order of the threads and blocks must not matter, to the last bit.
    again = call(lib, case, spikes, weight, bias, shuffle=1)
    assert torch.equal(again.view(torch.int32), out.view(torch.int32))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_equals_float64(lib, case):
    run_and_compare(lib, case)


@pytest.mark.parametrize("channel", [0, 31, 32, 63, 64, 69])
@pytest.mark.parametrize("corner", ["top-left", "bottom-right"])
def test_conv_of_a_single_spike(lib, corner, channel):
    case = Case(cin=70, cout=12, samples=3, groups=2)
    spikes = torch.zeros(3, 70, *case.size)
    h, w = (0, 0) if corner == "top-left" else (-1, -1)
    spikes[1, channel, h, w] = 1
    run_and_compare(lib, case, spikes)


def test_conv_of_samples_with_nothing_in_common(lib):
    """Sample n fires in the channels c with c % 17 == n: each row is used by one sample."""
    case = Case(cin=65, cout=20, samples=17)
    fires = torch.arange(65) % 17 == torch.arange(17)[:, None]
    run_and_compare(lib, case, fires[:, :, None, None].expand(17, 65, *case.size).float())


def test_conv_without_input_channels_is_the_bias(lib):
    case = Case(cin=0, cout=8, bias="channel")
    bias = torch.randn(8)
    weight = torch.zeros(*case.out_size, 1, 3, 3, 0, 8)
    out = call(lib, case, torch.zeros(3, 0, 4, 5), weight, bias)
    assert torch.equal(out, bias.view(8, 1, 1).expand_as(out))


@pytest.mark.parametrize(("samples", "cout"), [(0, 4), (3, 0)])
def test_conv_without_outputs_launches_nothing(lib, samples, cout):
    case = Case(samples=samples, cout=cout)
    assert call(lib, case, *make_inputs(case)).numel() == 0


def test_conv_of_unaligned_weights(lib):
    """Rows that do not start at a multiple of 16 bytes are read one weight at a time."""
    case = Case(cin=40, cout=16)
    spikes, weight, bias = make_inputs(case)
    memory = torch.empty(weight.numel() + 1)
    unaligned = memory[1:].view(weight.shape).copy_(weight)
    assert unaligned.data_ptr() % 16 != 0
    expected, bound, _ = expect(case, spikes, weight, bias)
    assert_within(call(lib, case, spikes, unaligned, bias), expected, bound)


@pytest.mark.parametrize("staged", [False, True])
def test_conv_of_more_than_2_to_31_weights(lib, staged):
    case = Case(cin=33, kernel=(1, 1), padding=(0, 0), size=(1, 3), staged=staged)
    spikes, weight, bias = make_inputs(case)
    far = simt.far_apart(weight, dim=1, stride=2**31 + 16)
    expected, bound, _ = expect(case, spikes, weight, bias)
    assert_within(call(lib, case, spikes, far, bias), expected, bound)


def test_conv_of_a_sample_tile_without_kernel_is_an_error(lib):
    with pytest.raises(AssertionError, match="no kernel for this sample tile"):
        run_and_compare(lib, Case(tile=16, staged=True))
