"""realspike_ops.lif beside an eager loop, a compiled loop, SpikingJelly and nn.ReLU.

nn.ReLU is the floor that memory sets: it reads and writes as much as a neuron that saves nothing.
Rows of 64 MiB and more say whether their memory was kept or fresh (allocator.py).
"""

import pytest
import torch
from allocator import memory
from peers import lif_loop, spikingjelly_lif

import realspike_ops as rso

# [T, B, C, H, W]: 2^16 and 2^20 neurons per timestep.
SMALL, LARGE = (16, 64, 8, 8), (16, 64, 32, 32)
SHAPES = {
    "T4-64k": (4, *SMALL),
    "T16-64k": (16, *SMALL),
    "T4-1M": (4, *LARGE),
    "T16-1M": (16, *LARGE),
    "T32-1M": (32, *LARGE),
}
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def inputs(shape, granularity, device, dtype=torch.float32):
    torch.manual_seed(0)
    x = (torch.randn(shape, device=device) * 0.5 + 0.2).to(dtype).requires_grad_()
    if granularity == "none":
        return x, None
    amplitude = torch.ones(shape[2:] if granularity == "element" else (shape[2], 1, 1))
    return x, amplitude.to(device, dtype).requires_grad_()


def functions(x, amplitude, detach_reset):
    """Forward functions by name; the compiled ones are compiled for these sizes."""
    torch.compiler.reset()
    node = spikingjelly_lif(detach_reset)

    def loop():
        return lif_loop(x, amplitude, detach_reset=detach_reset)

    peers = {"compiled loop": torch.compile(loop, fullgraph=True)}
    # Ten times slower, so not where a round would take seconds.
    if x.numel() <= 2**22:
        peers["eager loop"] = loop
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


def compare_training(compare, ours, peers, x, amplitude, rounds):
    gradient = torch.randn(x.shape, device=x.device).to(x.dtype)
    compare(
        with_backward(ours, x, amplitude, gradient),
        {name: with_backward(peer, x, amplitude, gradient) for name, peer in peers.items()},
        rounds=rounds,
    )


def rounds_for(x):
    return 15 if x.numel() <= 2**22 else 7


def cases_of_memory(shapes):
    """The shapes, each with the memory that it is measured in: both where that matters."""
    both = ("T16-1M", "T32-1M")
    return [(shape, kind) for shape in shapes for kind in ("kept", "fresh") if shape in both] + [
        (shape, "kept") for shape in shapes if shape not in both
    ]


@pytest.mark.parametrize(("shape", "kind"), cases_of_memory(SHAPES))
def bench_lif_forward(compare, device, shape, kind):
    x, _ = inputs(SHAPES[shape], "none", device)
    with memory(kind), torch.no_grad():
        ours, peers = functions(x, None, True)
        compare(ours, peers, rounds=rounds_for(x))


@pytest.mark.parametrize(("shape", "kind"), cases_of_memory(SHAPES))
def bench_lif_forward_backward(compare, device, shape, kind):
    """The paper's neuron, without amplitude and with a detached reset."""
    x, _ = inputs(SHAPES[shape], "none", device)
    with memory(kind):
        ours, peers = functions(x, None, True)
        compare_training(compare, ours, peers, x, None, rounds_for(x))


@pytest.mark.parametrize("detach_reset", [True, False], ids=["detached", "attached"])
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
def bench_lif_forms(compare, device, granularity, detach_reset):
    """Amplitudes with their gradients, and the attached reset; the plain neuron is a peer too."""
    x, amplitude = inputs(SHAPES["T4-1M"], granularity, device)
    with memory("kept"):
        ours, peers = functions(x, amplitude, detach_reset)
        peers["plain lif"] = lambda: rso.lif(x, detach_reset=True)
        compare_training(compare, ours, peers, x, amplitude, rounds_for(x))


@pytest.mark.parametrize("dtype", HALVES)
def bench_lif_half_precision(compare, device, dtype):
    """State in float32; SpikingJelly's node keeps it in half precision, in an eager loop."""
    x, _ = inputs(SHAPES["T4-1M"], "none", device, HALVES[dtype])
    single = x.detach().float().requires_grad_()
    gradient = torch.randn(single.shape, device=device)
    with memory("kept"):
        ours, peers = functions(x, None, True)
        peers = {
            name: with_backward(peer, x, None, gradient.to(x.dtype)) for name, peer in peers.items()
        }
        peers["lif float32"] = with_backward(
            lambda: rso.lif(single, detach_reset=True), single, None, gradient
        )
        compare(with_backward(ours, x, None, gradient.to(x.dtype)), peers)


@pytest.mark.parametrize("T", [1, 4, 16, 64, 256, 1024])
def bench_lif_timesteps(compare, device, T):
    """2^16 neurons for T timesteps beside nn.ReLU on as many elements: linear if ratios stay."""
    x, _ = inputs((T, *SMALL), "none", device)
    with memory("kept"):
        peers = {"nn.ReLU": lambda: torch.relu(x)}
        compare_training(
            compare, lambda: rso.lif(x, detach_reset=True), peers, x, None, rounds_for(x)
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def bench_lif_packed(compare, device, layout):
    """Inference into bits beside inference and then packing."""
    x, _ = inputs(SHAPES["T4-1M"], "none", device)
    if layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, -1))
    with memory("kept"), torch.no_grad():
        peers = {
            "lif, then pack_spikes": lambda: rso.pack_spikes(rso.lif(x).flatten(0, 1)),
            "lif": lambda: rso.lif(x),
            "nn.ReLU": lambda: torch.relu(x),
        }
        compare(lambda: rso.lif(x, packed=True), peers)


@pytest.mark.wall_clock
@pytest.mark.parametrize("mode", ["inference", "training"])
def bench_lif_small_call(compare, device, mode):
    """512 neurons: the cost of a call. Above 1 still means that we are faster."""
    x, _ = inputs((4, 2, 64), "none", device)
    with torch.set_grad_enabled(mode == "training"):
        ours, peers = functions(x, None, True)

        def often(function):
            def run():
                for _ in range(100):
                    function()

            return run

        compare(often(ours), {name: often(peer) for name, peer in peers.items()})
