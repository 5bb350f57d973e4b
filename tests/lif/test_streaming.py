"""Tensors larger than the last level of caches are written past it: the same bits."""

import json

import pytest
from digests import digests
from helpers import run_python


@pytest.fixture(scope="module")
def own_digests():
    return digests()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_streamed_outputs_have_the_same_bits(isa, own_digests):
    """With a cache of one byte every output is streamed, by the stores of its instruction set."""
    outcome = json.loads(
        run_python("-m", "digests", REALSPIKE_CPU_ISA=isa, REALSPIKE_CPU_CACHE_BYTES="1")
    )
    if outcome["isa"] != isa:
        pytest.skip(f"this CPU lacks {isa}")
    assert outcome["digests"] == own_digests


ALIGNMENTS = """
import torch
import realspike_ops as rso

# Rows of every length end and begin anywhere in a cache line; longer than a block, too. Seven
# timesteps are walked as four, two and one.
for N in (*range(1, 70), 511, 513, 1037, 2049):
    for dtype in (torch.float32, torch.bfloat16):
        for detach_reset in (True, False):
            x = torch.randn(7, N).to(dtype).requires_grad_()
            y = rso.lif(x, detach_reset=detach_reset)
            expected = rso.reference.lif(x, detach_reset=detach_reset)
            assert torch.equal(y, expected)
            grad_y = torch.randn(7, N).to(dtype)
            grads = [torch.autograd.grad(out, x, grad_y)[0] for out in (y, expected)]
            torch.testing.assert_close(*grads)
print("done")
"""


def test_streamed_rows_of_every_alignment():
    assert run_python("-c", ALIGNMENTS, REALSPIKE_CPU_CACHE_BYTES="1").strip() == "done"
