"""Selects the Triton interpreter where there is no GPU, and poisons what the ops allocate."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    # Read when triton is imported, which realspike_ops leaves to the first CUDA tensor.
    os.environ["TRITON_INTERPRET"] = "1"
# Tests compare with PyTorch's convolutions bit for bit: cuDNN might choose TF32, Winograd or FFT.
torch.backends.cudnn.enabled = False

hypothesis.settings.register_profile(
    "realspike", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("realspike")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if HAS_CUDA else ["cpu"]


def pytest_collection_modifyitems(config, items):
    from helpers import SHARD_VARIABLE

    if SHARD_VARIABLE not in os.environ:
        return
    shard, shards = map(int, os.environ[SHARD_VARIABLE].split("/"))
    config.hook.pytest_deselected(items=[i for n, i in enumerate(items) if n % shards != shard])
    items[:] = items[shard::shards]


# (owner, name) of every way to allocate without writing.
ALLOCATORS = [
    *((torch, name) for name in ("empty", "empty_like", "empty_strided")),
    *((torch.Tensor, name) for name in ("new_empty", "new_empty_strided")),
]
INTEGER_POISON = 0x5A


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def one_thread():
    """For networks that are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def poisoned_allocations():
    """Fill what realspike_ops allocates with NaN (integers: a pattern): an element that a kernel
    forgets to write shows, whatever the memory held before."""

    def poisoning(allocate):
        def allocate_poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if "realspike_ops" in Path(sys._getframe(1).f_code.co_filename).parts:
                is_real = tensor.dtype.is_floating_point
                tensor.fill_(float("nan") if is_real else INTEGER_POISON)
            return tensor

        return allocate_poisoned

    # A default device knows torch's functions by identity, those that it finds at its first call.
    with torch.device("cpu"):
        torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ALLOCATORS:
            patch.setattr(owner, name, poisoning(getattr(owner, name)))
        yield
