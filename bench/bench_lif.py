"""realspike_ops.lif beside an eager loop, a compiled loop, SpikingJelly and nn.ReLU."""

import pytest
import torch
from peers import lif_loop, spikingjelly_lif

import realspike_ops as rso

# [T, B, C, H, W]: 2^16 and 2^20 neurons per timestep.
SHAPES = {
    "T4-64k": (4, 16, 64, 8, 8),
    "T16-64k": (16, 16, 64, 8, 8),
    "T4-1M": (4, 16, 64, 32, 32),
    "T16-1M": (16, 16, 64, 32, 32),
}


def inputs(shape, granularity, device):
    torch.manual_seed(0)
    x = (torch.randn(shape, device=device) * 0.5 + 0.2).requires_grad_()
    if granularity == "none":
        return x, None
    amplitude = torch.ones(shape[2:] if granularity == "element" else (shape[2], 1, 1))
    return x, amplitude.to(device).requires_grad_()


def functions(x, amplitude, detach_reset):
    """Forward functions by name; the compiled ones are compiled for these sizes."""
    torch.compiler.reset()
    node = spikingjelly_lif(detach_reset)

    def loop():
        return lif_loop(x, amplitude, detach_reset=detach_reset)

    peers = {"eager loop": loop, "compiled loop": torch.compile(loop, fullgraph=True)}
    if node is not None:

        def jelly():
            return node(x) if amplitude is None else amplitude * node(x)

        def after_reset(function):
            # Its state is reset outside of what is compiled, as its users do between batches.
            def run():
                node.reset()
                return function()

            return run

        peers["SpikingJelly"] = after_reset(jelly)
        peers["SpikingJelly compiled"] = after_reset(torch.compile(jelly))
    peers["nn.ReLU"] = lambda: torch.relu(x)
    return lambda: rso.lif(x, amplitude, detach_reset=detach_reset), peers


def with_backward(function, x, amplitude, gradient):
    leaves = [leaf for leaf in (x, amplitude) if leaf is not None]

    def run():
        y = function()
        torch.autograd.grad(y, leaves, gradient, allow_unused=True)

    return run


@pytest.mark.parametrize("shape", SHAPES)
def bench_lif_forward(compare, device, shape):
    x, _ = inputs(SHAPES[shape], "none", device)
    ours, peers = functions(x, None, True)
    with torch.no_grad():
        compare(ours, peers)


@pytest.mark.parametrize("detach_reset", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize(
    ("shape", "granularity"),
    [(shape, "none") for shape in SHAPES] + [("T4-1M", "channel"), ("T4-1M", "element")],
)
def bench_lif_forward_backward(compare, device, shape, granularity, detach_reset):
    x, amplitude = inputs(SHAPES[shape], granularity, device)
    gradient = torch.randn(SHAPES[shape], device=device)
    ours, peers = functions(x, amplitude, detach_reset)
    compare(
        with_backward(ours, x, amplitude, gradient),
        {name: with_backward(peer, x, amplitude, gradient) for name, peer in peers.items()},
    )
