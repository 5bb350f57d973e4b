"""Every two settings of the unshared convolution together, against sums in float64.

A sum of n float32 numbers, in any order, is within gamma(n - 1) * sum |terms| of the true one,
where gamma(k) = k u / (1 - k u) and u = 2^-24; what is rounded beside adds to k, and nothing else
is tolerated. The rows of the weight that no sample may add, and the amplitudes of silent elements,
are NaN.
"""

import contextlib
import itertools

import pytest
import torch
from helpers import (
    U,
    assert_within,
    binary,
    generator,
    grid,
    normal,
    paddings,
    windows,
)
from pairwise import pairwise

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

CHANNELS = [1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
SAMPLES = [0, 1, 3, 4, 5, 16, 17, 63, 64, 65]
# (map, kernel, stride, padding, dilation)
GEOMETRIES = [
    ((1, 1), (1, 1), (1, 1), (0, 0), (1, 1)),
    ((3, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    ((4, 3), (3, 3), (2, 2), (1, 1), (1, 1)),
    ((1, 19), (1, 5), (1, 1), (0, 2), (1, 1)),
    ((20, 1), (4, 1), (3, 1), (0, 0), (1, 1)),
    ((5, 4), (2, 3), (1, 2), (0, 2), (3, 1)),
    ((2, 3), (3, 2), (1, 1), (3, 1), (1, 2)),  # windows that see nothing but the border
    ((3, 5), (2, 4), (1, 1), "same", (1, 1)),
    ((5, 7), (3, 3), (2, 3), "valid", (2, 2)),
    ((1, 1), (5, 5), (1, 1), (2, 2), (1, 1)),
]
# (dtype, how the weights are stored)
STORAGES = [
    *itertools.product((torch.float32, torch.float16, torch.bfloat16), ("unshared", "factored")),
    *((torch.uint8, storage) for storage in ("unshared", "scaled", "shared")),
    (torch.float32, "shared"),
]
AXES = {
    "storage": STORAGES,
    "N": SAMPLES,
    "Cin": CHANNELS,  # per group
    "Cout": CHANNELS,
    "groups": [1, 2, 3],
    "geometry": GEOMETRIES,
    "bias": [None, "channel", "element", "strided"],
    "layout": ["contiguous", "channels_last", "sliced", "packed", "packed-strided"],
    "dtype": [torch.float32, torch.bfloat16, torch.float64, torch.bool, torch.int8],
    "rate": [0.0, 0.05, 0.5, 1.0],
    "threads": [1, 2, 3],
}


def gamma(k):
    return k * U / (1 - k * U)


@contextlib.contextmanager
def threads_for_the_kernel(count: int):
    """The sums in float64 are small: threads would only wait for each other."""
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(1)


def options_of(geometry):
    return dict(zip(("stride", "padding", "dilation"), geometry[2:], strict=True))


def output_size(geometry):
    size, kernel, stride, padding, dilation = geometry
    return tuple(
        (n + sum(p) - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            size, kernel, stride, paddings(padding, kernel, dilation), dilation, strict=True
        )
    )


def cost(case) -> float:
    """What the float64 sums take; the rest of a case weighs as much as 2^22 products."""
    positions, kernel = output_size(case["geometry"]), case["geometry"][1]
    size = torch.Size((*positions, *kernel)).numel() * case["groups"]
    return 2.0**22 + size * case["Cin"] * case["Cout"] * (20 + case["N"])


def name_of(case) -> str:
    dtype, storage = case["storage"]
    size, kernel, stride, padding, dilation = case["geometry"]
    text = f"{storage}-{dtype}-n{case['N']}-g{case['groups']}x{case['Cin']}to{case['Cout']}"
    text += f"-{size}-k{kernel}-s{stride}-p{padding}-d{dilation}-bias_{case['bias']}"
    text += f"-{case['layout']}-{case['dtype']}-r{case['rate']}-t{case['threads']}"
    return text.replace("torch.", "").replace(" ", "")


def lay_out(spikes, layout):
    if layout == "channels_last":
        return spikes.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.ones(*spikes.shape[:3], 2 * spikes.shape[3], dtype=spikes.dtype)
        wide[..., 1::2] = spikes
        return wide[..., 1::2]
    if layout == "packed":
        return rso.pack_spikes(spikes)
    if layout == "packed-strided":
        return rso.pack_spikes(spikes).transpose(0, 2).contiguous().transpose(0, 2)
    return spikes


class Sums:
    """Of the terms that every output adds, in float64: all as [P, G, N, Cout/G]."""

    def __init__(self, spikes, values, geometry):  # values [P, G, KH, KW, Cin/G, Cout/G]
        self.size = output_size(geometry)
        G, KH, KW, Cin_g = values.shape[1:5]
        seen = windows(spikes.double(), (KH, KW), **options_of(geometry))
        self.seen = (
            seen.flatten(2, 3).unflatten(1, (G, Cin_g)).permute(3, 1, 0, 4, 5, 2).flatten(3)
        )  # [P, G, N, KH * KW * Cin/G]
        self.rows = values.flatten(2, 4)  # [P, G, KH * KW * Cin/G, Cout/G]
        self.total = self.seen @ self.rows
        self.terms = self.seen.sum(-1, keepdim=True)

    @property
    def magnitude(self):
        return self.seen @ self.rows.abs()

    def as_map(self, sums):  # -> [N, Cout, OH, OW]
        _, G, N, _ = sums.shape
        OH, OW = self.size
        return sums.permute(2, 1, 3, 0).reshape(N, G * sums.shape[3], OH, OW)


def used(sums, positions_share: bool):
    """Whether any sample adds the row: [P, G, KH * KW * Cin/G, 1]."""
    fired = (sums.seen > 0).any(2)
    return (fired.any(0, keepdim=True) if positions_share else fired).unsqueeze(-1)


def amplitude_windows(amplitude, groups, geometry):
    """The amplitude that every row is multiplied by: [P, G, KH, KW, Cin/G, 1], 0 at the border."""
    kernel = geometry[1]
    seen = windows(amplitude.double()[None], kernel, **options_of(geometry))[0]
    seen = seen.reshape(groups, -1, *seen.shape[1:]).flatten(2, 3)  # [G, Cin/G, P, KH, KW]
    return seen.permute(2, 0, 3, 4, 1).unsqueeze(-1)


def inputs_of(case, seed: int = 1):
    """Return spikes, the weight's values [1 or P, G, KH, KW, Cin/G, Cout/G] as they are stored,
    amplitude, scale and bias."""
    dtype, storage = case["storage"]
    size, kernel, *_ = case["geometry"]
    OH, OW = output_size(case["geometry"])
    G, Cin, Cout = case["groups"], case["Cin"], case["Cout"]
    spikes = binary((case["N"], G * Cin, *size), seed, case["rate"])
    positions = OH * OW if storage in ("unshared", "scaled") else 1
    shape = (positions, G, *kernel, Cin, Cout)
    if dtype == torch.uint8:
        values = torch.randint(-128, 128, shape, generator=generator(seed + 1)).double()
    else:
        values = normal(shape, seed + 1).to(dtype).double()
    amplitude = normal((G * Cin, *size), seed + 2) if storage == "factored" else None
    scale = normal((G * Cout,), seed + 3) if storage == "scaled" else None
    bias = None
    if case["bias"] is not None:
        bias = normal((G * Cout, OH, OW), seed + 4)
        bias = bias[:, 0, 0].contiguous() if case["bias"] == "channel" else bias
    if case["bias"] == "strided":
        bias = bias.transpose(0, 2).contiguous().transpose(0, 2)
    return spikes, values, amplitude, scale, bias


def stored(values, case):
    """Return the weight [OH, OW, ...] as the op takes it."""
    dtype, storage = case["storage"]
    position = output_size(case["geometry"]) if values.shape[0] > 1 else (1, 1)
    if dtype == torch.uint8:
        values = values.nan_to_num(77.0) + 128
    weight = values.to(dtype).unflatten(0, position)
    if storage == "shared":
        weight = weight.expand(*output_size(case["geometry"]), *weight.shape[2:])
    return weight


def expect(case, sums, scale, bias):
    """Return the result in float64 and the bound on its error."""
    exact = case["storage"][0] == torch.uint8
    roundings = (sums.terms - 1).clamp(min=0)  # of the sum
    if case["storage"][1] == "factored":
        roundings = sums.terms  # and one of every product
    total, magnitude = sums.as_map(sums.total), sums.as_map(sums.total.abs())
    roundings = sums.as_map(roundings.expand_as(sums.total))
    if exact:
        roundings = torch.zeros_like(total)
    else:
        magnitude = sums.as_map(sums.magnitude)
    if scale is not None:
        total, magnitude = (
            t * s for t, s in zip((total, magnitude), of_channels(scale), strict=True)
        )
        roundings = roundings + 1
    if bias is not None:
        bias = bias.double().reshape(bias.shape[0], *(bias.shape[1:] or (1, 1)))
        adds = exact | (sums.as_map(sums.terms.expand_as(sums.total)) > 0)
        total, magnitude = total + bias, magnitude + bias.abs()
        roundings = roundings + adds.double()  # the first number of a sum is not rounded
    return total, gamma(roundings) * magnitude


def of_channels(scale):
    scale = scale.double()[:, None, None]
    return scale, scale.abs()


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", pairwise(AXES, cost), ids=name_of)
def test_every_pair_of_settings(case):
    spikes, values, amplitude, scale, bias = inputs_of(case)
    effective = values
    if amplitude is not None:
        effective = values * amplitude_windows(amplitude, case["groups"], case["geometry"])
    OH, OW = output_size(case["geometry"])
    sums = Sums(spikes, effective.expand(OH * OW, *effective.shape[1:]), case["geometry"])
    expected, bound = expect(case, sums, scale, bias)

    rows = used(sums, values.shape[0] == 1).view(values.shape[0], *values.shape[1:5], 1)
    weight = stored(torch.where(rows, values, float("nan")), case)
    if amplitude is not None and spikes.shape[0]:
        amplitude = torch.where(spikes.amax(0) > 0, amplitude, float("nan"))
        amplitude = amplitude.transpose(0, 2).contiguous().transpose(0, 2)
    laid_out = lay_out(spikes.to(case["dtype"]), case["layout"])
    options = options_of(case["geometry"]) | {"amplitude": amplitude, "scale": scale}
    results = []
    for count in {1, case["threads"]}:
        with threads_for_the_kernel(count):
            results.append(rso.unshared_spike_conv(laid_out, weight, bias, **options))
    assert_within(results[0], expected, bound, "out")
    assert torch.equal(results[0], results[-1])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype_and_storage", STORAGES, ids=str)
def test_one_spike_at_every_pixel(dtype_and_storage, stride):
    """A sum of one term is that term; at the first and last bits of words and of groups."""
    channels = [0, 31, 32, 63, 64, 65, 96, 127, 128, 129]
    size = (4, 5)
    case = {
        **{"storage": dtype_and_storage, "N": len(channels) * 20, "Cin": 65, "Cout": 33},
        **{"groups": 2, "bias": None, "rate": 0.0},
        "geometry": (size, (3, 3), (stride, stride), (1, 1), (1, 1)),
    }
    spikes, values, amplitude, scale, _ = inputs_of(case)
    for n, (c, h, w) in enumerate(itertools.product(channels, range(4), range(5))):
        spikes[n, c, h, w] = 1
    effective = values
    if amplitude is not None:
        effective = values * amplitude_windows(amplitude, 2, case["geometry"])
    OH, OW = output_size(case["geometry"])
    sums = Sums(spikes, effective.expand(OH * OW, *effective.shape[1:]), case["geometry"])
    expected, _ = expect(case, sums, scale, None)
    weight = stored(values, case)
    for chunk in (1, 4, 200):
        some = slice(0, 20) if chunk == 1 else slice(None)
        out = [
            rso.unshared_spike_conv(
                *(part, weight), stride=stride, padding=1, amplitude=amplitude, scale=scale
            )
            for part in spikes[some].split(chunk)
        ]
        assert torch.equal(torch.cat(out), expected[some].float())


GRADIENT_AXES = {
    "storage": [
        *itertools.product((torch.float32, torch.float16, torch.bfloat16), ("unshared",)),
        *itertools.product((torch.float32,), ("shared", "factored")),
    ],
    "N": [1, 3, 16, 17, 65],
    "Cin": [1, 31, 33, 64, 128, 129, 257],
    "Cout": [1, 16, 33, 64, 127, 129, 257],
    "groups": [1, 2],
    "geometry": GEOMETRIES,
    "bias": [None, "channel", "element"],
    "layout": ["contiguous", "channels_last", "sliced", "packed"],
    "grad_layout": ["contiguous", "channels_last", "sliced", "expanded"],
    "dtype": [torch.float32, torch.float64],
    "rate": [0.0, 0.1, 1.0],
    "threads": [1, 3],
}


def gradient_name(case) -> str:
    return f"{name_of(case)}-grad_{case['grad_layout']}"


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("case", pairwise(GRADIENT_AXES, cost), ids=gradient_name)
def test_gradients_of_every_pair_of_settings(case):
    """Small multiples of 1/2: every sum is exact, in any order."""
    spikes, values, amplitude, _, bias = (
        t if t is None else (t * 2).round().clamp(-4, 4) / 2 for t in inputs_of(case)
    )
    leaf = lay_out(spikes.to(case["dtype"]), case["layout"]).detach()
    wants_spikes = case["layout"] != "packed"
    weight = stored(values, case).contiguous()
    if values.shape[0] == 1:
        weight = weight[:1, :1]
    leaves = [
        t if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        for t in (weight, amplitude, bias)
    ]
    leaf = leaf.requires_grad_() if wants_spikes else leaf
    options = options_of(case["geometry"])
    with threads_for_the_kernel(case["threads"]):
        out = rso.unshared_spike_conv(leaf, leaves[0], leaves[2], amplitude=leaves[1], **options)
    if case["grad_layout"] == "expanded":
        grad_out = torch.full((1, 1, 1, 1), 0.5).expand(out.shape)
    else:
        grad_out = lay_out(grid(out.shape, 7, 0.5), case["grad_layout"])
    with threads_for_the_kernel(case["threads"]):
        out.backward(grad_out)

    by_hand = [
        t if t is None else t.double().requires_grad_() for t in (spikes, values, amplitude, bias)
    ]
    effective = by_hand[1]
    if amplitude is not None:
        effective = effective * amplitude_windows(by_hand[2], case["groups"], case["geometry"])
    OH, OW = output_size(case["geometry"])
    sums = Sums(by_hand[0], effective.expand(OH * OW, *effective.shape[1:]), case["geometry"])
    expected = sums.as_map(sums.total)
    if bias is not None:
        expected = expected + by_hand[3].reshape(-1, *(bias.shape[1:] or (1, 1)))
    assert torch.equal(out.detach().double(), expected.detach())
    expected.backward(grad_out.double())
    checked = zip((leaf, *leaves), by_hand, strict=True)
    for name, (got, by) in zip(("spikes", "weight", "amplitude", "bias"), checked, strict=True):
        if by is not None and (name != "spikes" or wants_spikes):
            assert got.grad.dtype == got.dtype
            assert torch.equal(got.grad, by.grad.to(got.dtype).reshape(got.shape)), name
