"""One training step of ResNet20 beside the same network with other neurons, and beside the ANN.

Forward, cross-entropy, backward and SGD; only what stands where the neurons are differs. Ours is
fused, as the application trains it; "one by one" is the same without. The ANN has ReLU there and
runs on the same T*B images. "Compiled whole" has loops over time for neurons, and torch.compile
sees the whole network.
"""

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peers import lif_loop, spikingjelly_lif
from realspike.networks import NetworkConfig, build
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import realspike_ops as rso

BATCH = 8
CONFIG = {"architecture": "resnet20", "width": 16, "timesteps": 4, "in_channels": 3}
CONFIG |= {"image_size": 32}


class Neurons(nn.Module):
    """Another implementation of the neuron in the place of a `RealSpikeLIF`, amplitude included."""

    def __init__(self, lif: rso.RealSpikeLIF, multi_step):
        super().__init__()
        self.timesteps, self.amplitude = lif.timesteps, lif.amplitude
        self.multi_step = multi_step

    def forward(self, x: Tensor) -> Tensor:  # [T*B, C, H, W]
        y = self.multi_step(x.unflatten(0, (self.timesteps, -1)))
        return (y if self.amplitude is None else self.amplitude * y).flatten(0, 1)


class Resetting(nn.Module):
    """SpikingJelly's node keeps its state until it is reset, which its users do between steps."""

    def __init__(self):
        super().__init__()
        self.node = spikingjelly_lif(detach_reset=False)

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x)


def with_neurons(granularity: str, make, width: int = 16) -> nn.Module:
    """Return ResNet20 with `make(lif)` in place of every LIF layer."""
    network = build(NetworkConfig(granularity, **{**CONFIG, "width": width}), seed=0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)
    for name, module in list(network.named_modules()):
        if isinstance(module, rso.RealSpikeLIF):
            network.set_submodule(name, make(module))
    return network


def fused(network: nn.Module) -> nn.Module:
    return rso.fuse(network, torch.zeros(1, 3, 32, 32))


@functools.cache
def compiled_lif():
    """The compiled loop, the same for all cases: every map size is compiled for itself, once."""
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(lambda x: lif_loop(x, None), fullgraph=True, dynamic=False)


def loop(lif: rso.RealSpikeLIF) -> Neurons:
    return Neurons(lif, functools.partial(lif_loop, amplitude=None))


def detached(lif: rso.RealSpikeLIF) -> rso.RealSpikeLIF:
    lif.detach_reset = True
    return lif


def networks(granularity: str, device: str) -> dict[str, nn.Module]:
    makers = {
        "ours": lambda lif: lif,
        "ours, one by one": lambda lif: lif,
        "ANN": lambda lif: nn.ReLU(),
        "ours, detach_reset": detached,
        "compiled LIF": lambda lif: Neurons(lif, compiled_lif()),
        "compiled whole": loop,
    }
    if spikingjelly_lif(False) is not None:
        makers["SpikingJelly"] = lambda lif: Neurons(lif, Resetting())
    made = {name: with_neurons(granularity, make) for name, make in makers.items()}
    for name in ("ours", "ours, detach_reset"):
        fused(made[name])
    made["compiled whole"].compile(dynamic=False)
    return {name: network.to(device) for name, network in made.items()}


def training_step(network, images: Tensor, labels: Tensor, parameters=None):
    parameters = network.parameters() if parameters is None else parameters
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def batch(device: str, size: int = BATCH) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.arange(size, device=device) % 10
    return torch.randn(size, 3, 32, 32, device=device), labels


def compressed(step):
    def run():
        with rso.compress_spikes():
            step()

    return run


@pytest.mark.wall_clock
@pytest.mark.parametrize("granularity", ["none", "element"])
def bench_training_step(compare, device, granularity):
    steps = {
        name: training_step(network, *batch(device))
        for name, network in networks(granularity, device).items()
    }
    ours = steps.pop("ours")
    compare(ours, steps | {"ours, compress_spikes": compressed(ours)})


# Width and batch of the steps whose time and memory are compared with the ANN's alone.
SIZES = ((16, 32), (32, 8), (32, 32))


def steps_beside_the_ann(granularity: str, width: int, size: int, device: str) -> dict:
    made = {
        "ours": fused(with_neurons(granularity, lambda lif: lif, width)),
        "ours, one by one": with_neurons(granularity, lambda lif: lif, width),
        "ANN": with_neurons(granularity, lambda lif: nn.ReLU(), width),
    }
    steps = {
        name: training_step(network.to(device), *batch(device, size))
        for name, network in made.items()
    }
    return steps | {"ours, compress_spikes": compressed(steps["ours"])}


@pytest.mark.wall_clock
@pytest.mark.parametrize("granularity", ["none", "element"])
@pytest.mark.parametrize(("width", "size"), SIZES)
def bench_training_step_of_sizes(compare, device, granularity, width, size):
    steps = steps_beside_the_ann(granularity, width, size, device)
    compare(steps.pop("ours"), steps, rounds=7)


def captured(step):
    """Return the replay of a CUDA graph of the step."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@pytest.mark.wall_clock
@pytest.mark.skipif(not torch.cuda.is_available(), reason="the paper's width is for a card")
@pytest.mark.parametrize("granularity", ["none", "element"])
def bench_training_step_of_the_paper(compare, granularity):
    """Width 64, 128 images, bfloat16, channels_last; captured in CUDA graphs, and not."""
    makers = {"ours": lambda lif: lif, "ANN": lambda lif: nn.ReLU(), "compiled whole": loop}
    steps = {}
    for name, make in makers.items():
        network = with_neurons(granularity, make, width=64).cuda()
        network = network.to(memory_format=torch.channels_last)
        if name == "ours":
            fused(network)
        if name == "compiled whole":
            network.compile(dynamic=False)
        images, labels = batch("cuda", 128)
        images = images.contiguous(memory_format=torch.channels_last)
        forward = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)(network.__call__)
        step = training_step(forward, images, labels, network.parameters())
        steps |= {f"{name}, not captured": step, name: captured(step)}
    compare(steps.pop("ours"), steps)


def peak_bytes(step, device: str) -> int:
    """Return by how much the memory of tensors grows within one step, at its highest."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = sorted(
        (event for event in events if event.get("name") == "[memory]"), key=lambda e: e["ts"]
    )
    totals = [event["args"]["Total Allocated"] for event in changes]
    return max(totals) - (totals[0] - changes[0]["args"]["Bytes"])


@pytest.mark.parametrize("granularity", ["none", "element"])
def bench_training_memory(compare_bytes, device, granularity):
    made = networks(granularity, device)
    steps = {name: training_step(network, *batch(device)) for name, network in made.items()}
    steps["ours, compress_spikes"] = compressed(steps["ours"])
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    compare_bytes(peaks.pop("ours"), peaks)


@pytest.mark.parametrize("granularity", ["none", "element"])
@pytest.mark.parametrize(("width", "size"), SIZES)
def bench_training_memory_of_sizes(compare_bytes, device, granularity, width, size):
    steps = steps_beside_the_ann(granularity, width, size, device)
    peaks = {name: peak_bytes(step, device) for name, step in steps.items()}
    compare_bytes(peaks.pop("ours"), peaks)
