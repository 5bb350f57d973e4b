"""Tensors of more than 2^32 elements: an index of 32 bits, with or without a sign, would show.

They are sparse files mapped into memory: pages that nothing touches are neither in memory nor on
disk. Values stand at the first and at the last index alone, and spikes select nothing else.
"""

import itertools
import resource
import sys

import pytest
import torch
from helpers import binary, generator

import realspike_ops as rso

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs sparse files and Linux's memory mapping"
)

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def stays_small():
    """No test here may bring more than a part of its tensors into memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20  # KiB


@pytest.fixture
def sparse(tmp_path):
    """A function that returns a tensor of zeros in a file of its own."""
    paths = []

    def make(shape, dtype) -> torch.Tensor:
        numel = torch.Size(shape).numel()
        paths.append(tmp_path / str(len(paths)))
        try:
            tensor = torch.from_file(str(paths[-1]), shared=True, size=numel, dtype=dtype)
        except RuntimeError as error:
            pytest.skip(f"no sparse file of {numel} elements here: {error}")
        return tensor.view(shape)

    yield make
    for path in paths:
        path.unlink()


# [OH, OW, G, KH, KW, Cin/G, Cout/G], by the index that takes more than 32 bits.
WEIGHTS = {
    "positions": (5, 13, 1, 1, 1, 8192, 8192),
    "groups": (1, 1, 65, 1, 1, 8192, 8192),
    "taps": (1, 1, 1, 5, 13, 8192, 8192),
    "rows": (1, 1, 1, 1, 1, 65539, 65537),
}
CASES = [
    *(("positions", dtype, 1) for dtype in (*FLOATS, torch.uint8)),
    *(("groups", dtype, 1) for dtype in (torch.float32, torch.uint8)),
    *(("taps", dtype, 1) for dtype in (torch.bfloat16, torch.uint8)),
    *(("rows", dtype, 1) for dtype in (torch.float16, torch.uint8)),
    ("positions", torch.float32, 20),
    ("groups", torch.uint8, 20),
]


def connections(shape):
    """The rows of the weight whose spike fires: the first, the last, and the last of every axis
    alone, which a wrong stride takes for another. No two have the same pixel and channel."""
    last = tuple(n - 1 for n in shape[:6])
    alone = [tuple(last[d] if d == axis else 0 for d in range(6)) for axis in range(6)]
    return list(dict.fromkeys(((0,) * 6, last, *alone)))


def places(shape, at):
    """Return what the connection reads, (channel, h, w), and what it adds to."""
    oh, ow, g, kh, kw, ci = at
    return (g * shape[5] + ci, oh + kh, ow + kw), (slice(g * shape[6], (g + 1) * shape[6]), oh, ow)


def spikes_of(shape, N):
    """Spikes of the first and the last sample."""
    OH, OW, G, KH, KW, Cin_g, _ = shape
    spikes = torch.zeros(N, G * Cin_g, OH + KH - 1, OW + KW - 1)
    for n, at in itertools.product({0, N - 1}, connections(shape)):
        spikes[(n, *places(shape, at)[0])] = 1
    return spikes


@pytest.mark.parametrize(("axis", "dtype", "N"), CASES, ids=str)
def test_weights(axis, dtype, N, sparse):
    shape = WEIGHTS[axis]
    weight = sparse(shape, dtype)
    assert weight.numel() > 2**32
    OH, OW, G, _, _, _, Cout_g = shape
    expected = torch.zeros(N, G * Cout_g, OH, OW)
    for seed, at in enumerate(connections(shape)):
        row = torch.randint(1, 128, (Cout_g,), generator=generator(seed)).float()
        weight[at] = (row + 128 if dtype == torch.uint8 else row).to(dtype)
        channels, oh, ow = places(shape, at)[1]
        for n in {0, N - 1}:
            expected[n, channels, oh, ow] += row
    assert torch.equal(rso.unshared_spike_conv(spikes_of(shape, N), weight), expected)


@pytest.mark.parametrize("axis", ["positions", "groups", "taps"])
def test_gradient_of_the_weights(axis, sparse, monkeypatch):
    shape = WEIGHTS[axis]
    grad_weight = sparse(shape, torch.float32)
    zeros = "realspike_ops.ops.unshared_conv_grad.zeros_in_huge_pages"
    monkeypatch.setattr(zeros, lambda shape: grad_weight.view(tuple(shape)))
    OH, OW, G, _, _, _, Cout_g = shape
    grad_out = torch.randint(1, 9, (2, G * Cout_g, OH, OW), generator=generator(1)).float()
    packed = rso.pack_spikes(spikes_of(shape, 2))
    got = torch.ops.realspike.unshared_conv_grad_weight(
        grad_out, packed, shape, (1, 1), (0, 0), (1, 1), torch.float32
    )
    assert got.data_ptr() == grad_weight.data_ptr()
    for at in connections(shape):
        assert torch.equal(got[at], grad_out[(slice(None), *places(shape, at)[1])].sum(0)), at


@pytest.mark.parametrize("axis", ["samples", "channels", "pixels"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_spikes_far_apart_are_packed(dtype, axis, sparse):
    """The strides of the spikes are taken as they are: nothing is copied."""
    size = (2, 33, 3)
    step = 2**32 // (size["samples channels pixels".split().index(axis)] - 1) + 5
    strides = {"samples": (step, 3, 1), "channels": (99, step, 1), "pixels": (33, 1, step)}[axis]
    memory = sparse((sum((n - 1) * s for n, s in zip(size, strides, strict=True)) + 1,), dtype)
    assert memory.numel() > 2**32
    view = memory.as_strided(size, strides)
    spikes = binary(size, 1)
    spikes[-1, -1, -1] = 1
    view.copy_(spikes)
    assert torch.equal(rso.pack_spikes(view), rso.pack_spikes(spikes))
