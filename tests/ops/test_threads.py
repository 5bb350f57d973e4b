"""Threads: torch's number of threads is respected, forked children return, and the process has one
OpenMP runtime. Each program runs in a process of its own, so that its threads can be counted."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers import binary, normal, run_python

import realspike_ops as rso
from realspike_ops._native import extension

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="counts threads and forks through Linux's /proc"
)

PROGRAM = """
import json, os, signal, sys, time
import torch
import realspike_ops as rso

torch.set_num_threads(1)  # inputs are made without torch's threads
x = torch.randn(4, 200_000)
y_grad = torch.ones(4, 200_000)
spikes = (torch.rand(8, 64, 16, 16) < 0.3).float()
weight = torch.randn(16, 16, 1, 3, 3, 64, 32)


def run_ops():
    # Every kernel, forward and backward; torch itself only allocates.
    neuron = (0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0, 1)
    y, v_last, saved = torch.ops.realspike.lif_fwd(x, *[None] * 4, *neuron, True)
    grads = torch.ops.realspike.lif_bwd(
        y_grad, *[None] * 6, saved, False, [False] * 3 + [True], *neuron
    )
    packed = rso.pack_spikes(spikes)
    out = rso.unshared_spike_conv(packed, weight, padding=1)
    return [t.numpy() for t in (y, v_last, grads[0], packed, rso.unpack_spikes(packed, 64), out)]


def same(results):
    return all((a == b).all() for a, b in zip(results, expected, strict=True))


def threads():
    return len(os.listdir("/proc/self/task"))
"""

COUNT = """
before = threads()
run_ops()
counts = {1: threads() - before}
for count in (2, 4):
    torch.set_num_threads(count)
    run_ops()
    counts[count] = threads() - before
print(json.dumps(counts))
"""


def test_number_of_threads_is_respected():
    """Threads of the pool stay, so that they can be counted after the call."""
    counts = json.loads(run_python("-c", PROGRAM + COUNT))
    assert counts == {"1": 0, "2": 1, "4": 3}


FORK = """
torch.set_num_threads(4)
(x + 1).sum()  # torch's own threads
expected = run_ops()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a child that hangs dies
    ok = same(run_ops())
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(30)
        os._exit(0 if same(run_ops()) else 1)
    ok = ok and os.waitpid(grandchild, 0)[1] == 0
    os._exit(0 if ok else 1)
start = time.perf_counter()
_, status = os.waitpid(child, 0)
print(json.dumps({"status": status, "seconds": time.perf_counter() - start}))
assert same(run_ops()), "the parent works on"
"""


def test_a_forked_child_returns():
    outcome = json.loads(run_python("-c", PROGRAM + FORK))
    assert outcome["status"] == 0
    assert outcome["seconds"] < 20


WORKERS = """
class Spikes(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        torch.set_num_threads(3)  # a worker starts with one
        with torch.no_grad():
            y = rso.lif(x)
            out = rso.unshared_spike_conv(spikes, weight, padding=1)
        return y[:, i], out[0, i]


torch.set_num_threads(4)
expected_y, expected_out = rso.lif(x), rso.unshared_spike_conv(spikes, weight, padding=1)
loader = torch.utils.data.DataLoader(
    Spikes(), num_workers=2, timeout=60, multiprocessing_context="fork"
)
for i, (y, out) in enumerate(loader):
    assert torch.equal(y[0], expected_y[:, i]) and torch.equal(out[0], expected_out[0, i])
print("done")
"""


def test_a_data_loader_worker_returns():
    assert run_python("-c", PROGRAM + WORKERS).strip() == "done"


CALLERS = """
from concurrent.futures import ThreadPoolExecutor

torch.set_num_threads(2)
def call(i):
    with torch.no_grad():
        return rso.lif(x), rso.unshared_spike_conv(spikes, weight, padding=1)

expected = call(0)
with ThreadPoolExecutor(4) as pool:
    for got in pool.map(call, range(12)):
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
print("done")
"""


def test_calls_from_many_python_threads():
    assert run_python("-c", PROGRAM + CALLERS).strip() == "done"


# In a process of its own: other packages that tests import bring OpenMP runtimes of theirs.
RUNTIMES = """
import re
from pathlib import Path
import torch
import realspike_ops as rso

rso.lif(torch.zeros(4, 100_000))
mapped = Path("/proc/self/maps").read_text()
print(len(set(re.findall(r"/lib(?:gomp|iomp5|omp)[-.\\w]*\\.so\\S*", mapped))), rso.build_info())
"""


def test_one_openmp_runtime():
    count, build_info = run_python("-c", RUNTIMES).split(" ", 1)
    assert count == "1"
    assert "threads: openmp" in build_info


def test_the_extension_links_neither_openmp_nor_torch_nor_cuda():
    """CUDA's runtime is linked statically and finds the driver by itself, if there is one."""
    dynamic = subprocess.run(
        ["readelf", "-d", extension().__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert any(name.startswith("libc.so") for name in needed)
    assert not [n for n in needed if re.match(r"lib(gomp|iomp5|omp|torch|c10|cuda|cudart)\b", n)]


def for_threads(run, counts=(1, 2, 3, 4, 8)):
    """Return the results of `run()` for numbers of threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for count in counts:
            torch.set_num_threads(count)
            results.append(run())
        return results
    finally:
        torch.set_num_threads(before)


def assert_same_bits(results):
    for others in zip(*results, strict=True):
        assert all(
            torch.equal(other.view(torch.int32), others[0].view(torch.int32)) for other in others
        )


SHAPES = {"layer": (1,), "channel": (33, 1, 1), "element": (33, 16, 33), "column": (1, 1, 33)}


@pytest.mark.parametrize("detach_reset", [True, False], ids=["bits", "recomputed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_parameters_do_not_depend_on_threads(shape, detach_reset):
    x, grad_y = normal((5, 3, 33, 16, 33), 1), normal((5, 3, 33, 16, 33), 2)

    def run():
        parameters = [torch.full(SHAPES[shape], v, requires_grad=True) for v in (1.0, 0.5, 0.5)]
        amplitude, decay, v_threshold = parameters
        dynamics = {} if detach_reset else {"decay": decay, "v_threshold": v_threshold}
        y = rso.lif(x, amplitude, detach_reset=detach_reset, **dynamics)
        wanted = parameters[:1] if detach_reset else parameters
        return torch.autograd.grad(y, wanted, grad_y)

    results = for_threads(run)
    assert_same_bits(results)
    assert all(gradient.any() for gradient in results[0])


@pytest.mark.parametrize("by_element", [False, True], ids=["channel", "element"])
def test_gradients_of_unshared_convolutions_do_not_depend_on_threads(by_element):
    spikes = binary((70, 3, 18, 18), 1)
    grad_out = normal((70, 5, 16, 16), 2)

    def run():
        weight = normal((16, 16, 1, 3, 3, 3, 5), 3).requires_grad_()
        bias = torch.zeros((5, 16, 16) if by_element else (5,), requires_grad=True)
        out = rso.unshared_spike_conv(spikes, weight, bias)
        return torch.autograd.grad(out, (weight, bias), grad_out)

    results = for_threads(run)
    assert_same_bits(results)
    exact = grad_out.double().sum(0 if by_element else (0, 2, 3))
    torch.testing.assert_close(results[0][1].double(), exact, rtol=1e-5, atol=1e-4)


def test_every_task_is_done_whatever_the_number_of_threads():
    """Of 300 tasks: threads that have no task of their own, and more threads than shares."""
    x = normal((2, 1, 300 * 512), 1)
    amplitude = normal((300 * 512,), 2).abs()

    def run():
        with torch.no_grad():
            return (rso.lif(x, amplitude),)

    expected = rso.reference.lif(x, amplitude)
    counts = (1, 2, 7, 63, 64, 65, 130, 301)
    assert_same_bits([(expected,), *for_threads(run, counts)])


def test_threads_compute_in_the_callers_mode():
    """Denormals are flushed by all of the threads that share a call, or by none."""
    x = torch.full((2, 4, 16, 64, 64), 1e-39)
    weight = torch.full((16, 16, 1, 3, 3, 16, 32), 1e-40)
    spikes = torch.ones(8, 16, 16, 16)

    def run():
        v_last = rso.lif(x, v_threshold=1.0, return_state=True)[1]
        return v_last, rso.unshared_spike_conv(spikes, weight, padding=1).contiguous()

    kept = for_threads(run)
    assert_same_bits(kept)
    assert all(t.all() for t in kept[0])
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        flushed = for_threads(run)
    finally:
        torch.set_flush_denormal(False)
    assert_same_bits(flushed)
    assert not any(t.view(torch.int32).any() for t in flushed[0])
    assert_same_bits(for_threads(run))  # the threads are themselves again
    assert_same_bits([kept[0], run()])


SMALL = """
before = threads()
torch.set_num_threads(4)
small = (torch.rand(1, 64, 1, 1) < 0.3).float()
out = rso.unshared_spike_conv(small, torch.randn(1, 1, 1, 1, 1, 64, 64))
rso.lif(torch.randn(2, 1, 64, 8, 8), packed=True)
print(json.dumps(threads() - before))
"""


def test_little_work_starts_no_threads():
    assert json.loads(run_python("-c", PROGRAM + SMALL)) == 0
