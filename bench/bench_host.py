"""Time of the host for a call on tensors that are too small for their device to matter.

Microseconds of the process's CPU time. On a machine without a card the launches of a GPU are
planned and looked up, and kernels that do nothing take the place of the compiled ones: what is left
out is Triton's launcher in C and the driver. Rows of the CPU's own kernels stand beside them.
"""

import time

import pytest
import torch
from torch import nn

import realspike_ops as rso
from realspike_ops.ops import lif as lif_op
from realspike_ops.ops import lif_autograd, lif_cuda, lif_plan

SHAPE = (4, 1, 512)  # [T, B, C]
CALLS, ROUNDS = 50, 40


class NoKernel:
    """Takes the place of a Triton kernel, and of what it is compiled to."""

    def __init__(self, kernel):
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, **options):
        return self


@pytest.fixture(params=["kernels", "launches of a GPU"])
def kernels(request, monkeypatch, device):
    if request.param == "kernels":
        return
    if device == "cuda":
        pytest.skip("a GPU's launches are what the other rows time")
    for name in ("lif_fwd_kernel", "lif_bwd_kernel"):
        monkeypatch.setattr(lif_cuda, name, NoKernel(getattr(lif_cuda, name)))
    for plans in (lif_cuda._FORWARD, lif_cuda._BACKWARD):
        plans.clear()
    forward = lif_op.forward_with(lif_cuda.launch_fwd)
    backward = lif_op.backward_with(lif_cuda.launch_bwd, lif_cuda.partial_shapes)
    monkeypatch.setattr(lif_plan, "plan_of", lambda *args: None)
    monkeypatch.setitem(lif_autograd.FORWARD, "cpu", forward)
    monkeypatch.setitem(lif_autograd.BACKWARD, "cpu", backward)


def microseconds(function) -> float:
    """Return the host's time for a call, in the quickest of many rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.process_time()
        for _ in range(CALLS):
            function()
        best = min(best, time.process_time() - start)
    return best / CALLS * 1e6


def passes(function, x):
    """Return the times of a function of x: without gradients, with a graph, and with backward."""
    trained = x.clone().requires_grad_()
    gradient = torch.ones_like(x)

    def infer():
        with torch.no_grad():
            function(x)

    return {
        "inference": microseconds(infer),
        "forward": microseconds(lambda: function(trained)),
        "forward and backward": microseconds(lambda: function(trained).backward(gradient)),
    }


def amplitude_of(granularity, device):
    shape = {"none": None, "layer": (1,), "element": SHAPE[2:]}[granularity]
    return None if shape is None else torch.ones(shape, device=device, requires_grad=True)


@pytest.mark.parametrize("granularity", ["none", "layer", "element"])
def test_bench_lif_call(granularity, kernels, device, report_values):
    amplitude = amplitude_of(granularity, device)

    def lif(x):
        return rso.lif(x, amplitude, detach_reset=True)

    report_values(passes(lif, torch.zeros(SHAPE, device=device)), "us of the host for a call")


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_bench_batch_norm_lif_call(residual, device, report_values):
    x = torch.zeros(SHAPE, device=device)
    weight, bias, mean, var = (torch.ones(SHAPE[2], device=device) for _ in range(4))
    other = torch.zeros_like(x) if residual else None

    def call(x):
        return rso.batch_norm_lif(x, weight, bias, mean, var, residual=other, detach_reset=True)

    report_values(passes(call, x), "us of the host for a call")


def test_bench_relu_call(device, report_values):
    """What a user's cheapest layer costs."""
    relu = nn.ReLU()
    report_values(passes(relu, torch.zeros(SHAPE, device=device)), "us of the host for a call")


def test_bench_batch_norm_and_relu_call(device, report_values):
    layers = nn.Sequential(nn.BatchNorm1d(SHAPE[2]), nn.ReLU()).to(device)
    x = torch.zeros(SHAPE[0] * SHAPE[1], SHAPE[2], device=device)
    report_values(passes(layers, x), "us of the host for a call")
