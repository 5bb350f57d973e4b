"""A whole folded network in inference beside the networks that it stands for.

`trained` is the network that was folded, `ANN` the same layers with ReLU, run once per image: both
in channels_last, as they are fastest. `dense maps` is the folded network whose spikes travel as
floats; ours passes bits. Folding itself is not timed. The neurons' rate is that of a trained
network or above (names end in it): the fewer spikes, the less a folded network has to add.

The trained network and the ANN are timed compiled as well and, on a GPU, captured.
`bench_folded_sizes` asks the same of one image and of 64, in three widths. On a GPU it times ours
as a captured graph, too (`rso.graphed`). Rows of `auto` may multiply, where the device has matrix
units for the weights. Rows are followed by the synaptic operations of an image and the energy that
`rso.profile` estimates for them, beside those of the ANN. Those of `auto` are of the network that
only adds.
"""

import copy
import functools

import pytest
import torch
from realspike.config.network_config import NetworkConfig
from realspike.networks import build
from torch import nn

import realspike_ops as rso
from realspike_ops._native import extension

NETWORKS = {  # architecture, granularity, width, images, shift of the currents
    "vgg5-channel": ("vgg5", "channel", 32, 8, -0.7),
    "resnet20-channel": ("resnet20", "channel", 32, 4, -0.2),
    "resnet8-element": ("resnet8", "element", 16, 4, -0.3),
    "sew-resnet10-none": ("sew_resnet10", "none", 32, 8, -0.7),
}
T = 4
# architecture, granularity, width, shift of the currents
SIZES = [
    (architecture, granularity, width, shift)
    for architecture, shift in (("resnet20", -0.2), ("resnet8", -0.3))
    for granularity in ("channel", "element")
    for width in (16, 32, 64)
]
IMAGES = (1, 64)
CPU_WIDTHS = 16, 32  # without --full: the others take minutes
WEIGHTS = {  # type, algorithm
    "float32": (torch.float32, "gather"),
    "bfloat16": (torch.bfloat16, "gather"),
    "bfloat16_auto": (torch.bfloat16, "auto"),
    "int8": (torch.int8, "gather"),
    "int8_auto": (torch.int8, "auto"),
}


def as_if_trained(network: nn.Module, shift: float) -> nn.Module:
    """Give the batch norms the statistics of images, and a shift that sets the firing rate."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.constant_(module.bias, shift)
        if isinstance(module, rso.RealSpikeLIF) and module.amplitude is not None:
            nn.init.uniform_(module.amplitude, 0.8, 1.2)
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


def ann_of(config: NetworkConfig) -> nn.Module:
    """The same layers with ReLU for neurons, and one timestep."""
    network = build(config, seed=0)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, rso.RealSpikeLIF):
                setattr(module, name, nn.ReLU(inplace=True))
            elif isinstance(child, rso.DirectEncoding | rso.MeanOverTime):
                setattr(module, name, type(child)(1))
    return network


def with_dense_maps(folded: rso.FoldedNetwork) -> rso.FoldedNetwork:
    """Return a copy with hooks, which see dense spikes, at every layer that emits some.

    The network itself gets none: hooks that come and go have its steps planned anew.
    """
    dense = copy.deepcopy(folded)
    for module in dense.modules():
        if isinstance(module, rso.FoldedLIF | rso.SpikeMaxPool2d):
            module.register_forward_hook(lambda *_: None)
    return dense


def rate_of(folded, x) -> float:
    rates = [row.firing_rate for row in rso.profile(folded, x).layers if row.kind == "neurons"]
    return sum(rates) / len(rates)


@pytest.mark.wall_clock
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=["float32", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def bench_folded(compare, request, device, name, dtype):
    torch.manual_seed(0)
    architecture, granularity, width, images, shift = NETWORKS[name]
    config = NetworkConfig(
        granularity=granularity,
        timesteps=T,
        width=width,
        architecture=architecture,
        in_channels=3,
        image_size=32,
    )
    trained = as_if_trained(build(config, seed=0), shift).to(device)
    x = torch.randn(images, 3, 32, 32, device=device)
    folded = rso.reparameterize(trained, x[:1], weight_dtype=dtype)
    request.node.name += f"-rate{rate_of(folded, x):.0%}"
    x = x.contiguous(memory_format=torch.channels_last)
    trained = trained.to(memory_format=torch.channels_last)
    ann = as_if_trained(ann_of(config), 0.0).to(device, memory_format=torch.channels_last)
    dense = with_dense_maps(folded)
    peers = peers_of({"trained": trained, "ANN": ann}, x)
    compare(lambda: folded(x), {**peers, "dense maps": lambda: dense(x)}, rounds=9)


def config_of(architecture: str, granularity: str, width: int) -> NetworkConfig:
    return NetworkConfig(
        granularity=granularity,
        timesteps=T,
        width=width,
        architecture=architecture,
        in_channels=3,
        image_size=32,
    )


def compiled(network: nn.Module, x: torch.Tensor):
    """The network as torch.compile makes it; on a GPU it captures graphs by itself."""
    run = torch.compile(network, mode="reduce-overhead" if x.is_cuda else None)
    return lambda: run(x)


def captured(network: nn.Module, x: torch.Tensor):
    """The network as a CUDA graph."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        network(x)
    return graph.replay


def multiplies_on_cpu(dtype: torch.dtype, samples: int) -> bool:
    return dtype == torch.int8 and extension().multiplies_cpu(samples, 3, 3, 16, 16)


def peers_of(networks: dict[str, nn.Module], x: torch.Tensor) -> dict:
    peers = {}
    for name, network in networks.items():
        peers[name] = lambda network=network: network(x)
        # Compiled and captured when it is first called, so that one that fails is left out alone.
        for kind, make in (("compiled", compiled), ("captured", captured)):
            if kind == "compiled" or x.is_cuda:
                made = functools.cache(functools.partial(make, network, x))
                peers[f"{name}, {kind}"] = lambda made=made: made()()
    return peers


@pytest.mark.wall_clock
@pytest.mark.parametrize("run", ["plain", "captured"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("architecture", "granularity", "width", "shift"), SIZES)
@torch.no_grad()
def bench_folded_sizes(
    compare, request, device, architecture, granularity, width, shift, weights, images, run
):
    if run == "captured" and device == "cpu":
        pytest.skip("graphs are for a GPU")
    if device == "cpu" and width not in CPU_WIDTHS and not request.config.getoption("--full"):
        pytest.skip("--full runs it")
    dtype, algorithm = WEIGHTS[weights]
    if algorithm == "auto" and device == "cpu" and not multiplies_on_cpu(dtype, T * images):
        pytest.skip("it only adds")
    torch.manual_seed(0)
    config = config_of(architecture, granularity, width)
    trained = as_if_trained(build(config, seed=0), shift).to(device)
    x = torch.randn(images, 3, 32, 32, device=device)
    folded = rso.reparameterize(trained, x[:1], weight_dtype=dtype)
    report = rso.profile(folded, x[:4])
    energies = report.total("energy_pj") / 1e6, report.total("ann_energy_pj") / 1e6
    request.node.name += (
        f"-rate{rate_of(folded, x[:4]):.0%}-{report.total('synops') / 1e6:.1f}M-SynOps"
        f"-{energies[0]:.1f}uJ-ANN-{energies[1]:.1f}uJ"
    )
    folded.algorithm = algorithm
    peer_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    x = x.to(peer_dtype, memory_format=torch.channels_last)
    form = {"dtype": peer_dtype, "memory_format": torch.channels_last}
    ann = as_if_trained(ann_of(config), 0.0).to(device, **form)
    peers = peers_of({"trained": trained.to(**form), "ANN": ann}, x)
    own = x.float()
    if run == "captured":
        graph = rso.graphed(folded.eval(), own)
        compare(lambda: graph(own), peers, rounds=9)
    else:
        compare(lambda: folded(own), peers, rounds=9)
