"""unshared_spike_conv beside unfold + bmm of the same weights, and the *shared* convolution of a*o.

The shared convolution is the strongest competitor: it computes the same outputs from the trained
network before folding; int8 meets PyTorch's int8 convolution too. Packed spikes are timed, as a LIF
layer in inference can hand them over; the rows named `dense` include the packing. "read touched"
streams as many bytes as there are weights that some sample uses: its ratio is the part of the
machine's stream bandwidth that the gather reaches. On a GPU bfloat16 weights meet unfold + bmm in
bfloat16 (tensor cores) too, and the product alone ("bmm bf16": the windows are given). "of given
a*o" is the shared convolution of an `a*o` in bfloat16 that exists already, as a neuron can emit it.
`auto` is `algorithm="auto"` beside the gather, where there is a GPU with matrix units.

A few rows by default; `--full` has every layer, number of samples and firing rate.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from realspike.quickstart.unfold_bmm import UnfoldBmm

import realspike_ops as rso

LAYERS = {  # channels, map; 3 x 3 kernels
    "128ch-32x32": (128, 32),
    "256ch-16x16": (256, 16),
    "512ch-8x8": (512, 8),
    "64ch-8x8": (64, 8),
    "32ch-16x16": (32, 16),
    "16ch-32x32": (16, 32),
}
STORAGES = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"dtype": torch.int8},
    "factored": {"storage": "factored"},
}
SAMPLES = (4, 16, 64, 256)
RATES = (0.05, 0.1, 0.2, 0.3)
OF_GIVEN = "shared conv2d bf16 of given a*o"
QUICK = {
    *(("128ch-32x32", 4, 0.1), ("128ch-32x32", 64, 0.1)),
    *(("64ch-8x8", 4, 0.1), ("16ch-32x32", 16, 0.2)),
}

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card")


class Layer:
    def __init__(self, name, samples, rate, device, groups=1):
        torch.manual_seed(0)
        channels, size = LAYERS[name]
        self.conv = torch.nn.Conv2d(
            channels, channels, 3, padding=1, groups=groups, bias=False, device=device
        ).requires_grad_(False)
        self.groups = groups
        spikes = (torch.rand(samples, channels, size, size, device=device) < rate).float()
        self.spikes = spikes.contiguous(memory_format=torch.channels_last)
        self.packed = rso.pack_spikes(self.spikes)
        amplitude = torch.rand(channels, size, size, device=device) + 0.5
        self.amplitude = amplitude.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        self.kernel = self.conv.weight.contiguous(memory_format=torch.channels_last)
        self.device = device

    def unshared(self, shared=False, **storage):
        size = self.amplitude.shape[1:]
        amplitude = None if shared else self.amplitude
        layer = rso.UnsharedSpikeConv.from_conv2d(self.conv, amplitude, size, **storage)
        return layer.requires_grad_(False)

    def shared_conv2d(self):
        return lambda: F.conv2d(
            self.amplitude * self.spikes, self.kernel, padding=1, groups=self.groups
        )

    def shared_conv2d_bf16(self):
        half = self.kernel.bfloat16()
        return lambda: F.conv2d(
            (self.amplitude * self.spikes).bfloat16(), half, padding=1, groups=self.groups
        )

    def shared_conv2d_of_given(self):
        half, x = self.kernel.bfloat16(), (self.amplitude * self.spikes).bfloat16()
        return lambda: F.conv2d(x, half, padding=1, groups=self.groups)

    def shared_conv2d_int8(self):
        """PyTorch's quantized convolution, one scale per output channel, with quantizing a*o."""
        scales = self.kernel.abs().amax((1, 2, 3)).double() / 127
        with warnings.catch_warnings():  # it is said to be going away
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scales), dtype=torch.long)
            weight = torch.quantize_per_channel(self.conv.weight, scales, zeros, 0, torch.qint8)
            packed = torch.ops.quantized.conv2d_prepack(weight, None, [1] * 2, [1] * 2, [1] * 2, 1)
        step = float(self.amplitude.max()) / 255

        def run():
            x = torch.quantize_per_tensor(self.amplitude * self.spikes, step, 0, torch.quint8)
            return torch.ops.quantized.conv2d(x, packed, 0.05, 64)

        return run

    def read_touched(self, element_size):
        """Read as many bytes as the layer's weights have whose input fired in some sample."""
        fired = (self.spikes.amax(0, keepdim=True) > 0).float()
        ones = torch.ones(1, fired.shape[1], 3, 3, device=self.device)
        rows = F.conv2d(fired, ones, padding=1).sum()
        elements = int(rows.item() * self.kernel.shape[0] * element_size) // 4
        memory = torch.ones(max(1, elements), device=self.device)
        return lambda: memory.sum()


def half_products(unshared, spikes):
    """The batched product in the dtype of the weights, accumulated in float32, of half spikes."""
    unfold_bmm = UnfoldBmm(unshared)
    windows = unfold_bmm.windows(spikes)
    return {
        "unfold+bmm bf16": lambda: unfold_bmm(spikes),
        "bmm bf16": lambda: torch.bmm(windows, unfold_bmm.weight),
    }


def peers_of(layer, storage, unshared):
    peers = {
        "shared conv2d": layer.shared_conv2d(),
        "shared conv2d bf16": layer.shared_conv2d_bf16(),
    }
    if storage == "float32":
        unfold_bmm = UnfoldBmm(unshared)
        peers["unfold+bmm"] = lambda: unfold_bmm(layer.spikes)
    if layer.device == "cuda":
        peers[OF_GIVEN] = layer.shared_conv2d_of_given()
    if storage == "bfloat16" and layer.device == "cuda":
        peers |= half_products(unshared, layer.spikes.bfloat16())
    if storage == "int8" and layer.device == "cpu":
        peers["shared conv2d int8"] = layer.shared_conv2d_int8()
    if storage != "factored" and layer.spikes.shape[0] <= 16:
        peers["read touched"] = layer.read_touched(unshared.weight.element_size())
    return peers


@pytest.fixture(autouse=True)
def quick(request):
    """Skip what the short table leaves out."""
    values = getattr(request.node, "callspec", None)
    if values is None or request.config.getoption("--full"):
        return
    chosen = tuple(values.params.get(name) for name in ("name", "samples", "rate"))
    if "rate" in values.params and chosen not in QUICK:
        pytest.skip("--full")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"r{rate}")
@pytest.mark.parametrize("samples", SAMPLES, ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def bench_unshared_conv(compare, device, name, samples, rate, storage):
    layer = Layer(name, samples, rate, device)
    unshared = layer.unshared(**STORAGES[storage])
    rounds = {4: 15, 16: 9, 64: 5, 256: 3}[samples]
    compare(lambda: unshared(layer.packed), peers_of(layer, storage, unshared), rounds=rounds)


@ON_A_GPU
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3], ids=lambda rate: f"r{rate}")
@pytest.mark.parametrize("samples", [16, 64, 256], ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", ["128ch-32x32", "256ch-16x16", "512ch-8x8", "64ch-8x8"])
@torch.no_grad()
def bench_auto(compare, device, name, samples, rate, storage):
    """What algorithm="auto" takes, the gather, and the shared convolution."""
    layer = Layer(name, samples, rate, device)
    gather = layer.unshared(**STORAGES[storage])
    auto = layer.unshared(**STORAGES[storage], algorithm="auto")
    peers = {"gather": lambda: gather(layer.packed), **peers_of(layer, storage, gather)}
    compare(lambda: auto(layer.packed), peers, rounds={16: 9, 64: 5, 256: 3}[samples])


@ON_A_GPU
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("samples", [4, 64, 256], ids=lambda samples: f"S{samples}")
@torch.no_grad()
def bench_auto_shared(compare, device, samples, storage):
    """The same of `SpikeConv2d`, one kernel for all positions."""
    layer = Layer("128ch-32x32", samples, 0.1, device)
    gather = layer.unshared(**STORAGES[storage], shared=True)
    auto = layer.unshared(**STORAGES[storage], shared=True, algorithm="auto")
    peers = {
        "gather": lambda: gather(layer.packed),
        "shared conv2d": layer.shared_conv2d(),
        "shared conv2d bf16": layer.shared_conv2d_bf16(),
        OF_GIVEN: layer.shared_conv2d_of_given(),
    }
    compare(lambda: auto(layer.packed), peers, rounds=7)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", ["64ch-8x8", "128ch-32x32"])
@torch.no_grad()
def bench_unshared_conv_dense(compare, device, name, samples, layout):
    """0/1 maps that are packed on the way in; the currents take their memory format."""
    layer = Layer(name, samples, 0.1, device)
    unshared = layer.unshared()
    spikes = layer.spikes if layout == "channels_last" else layer.spikes.contiguous()
    compare(lambda: unshared(spikes), peers_of(layer, "float32", unshared), rounds=7)


@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@torch.no_grad()
def bench_depthwise(compare, device, samples):
    """One input and one output channel per group, and a kernel for every position."""
    layer = Layer("128ch-32x32", samples, 0.1, device, groups=128)
    unshared = layer.unshared()
    peers = {
        "shared conv2d": layer.shared_conv2d(),
        "shared conv2d bf16": layer.shared_conv2d_bf16(),
    }
    compare(lambda: unshared(layer.packed), peers, rounds=7)


@pytest.mark.parametrize("samples", [16, 64], ids=lambda samples: f"S{samples}")
def bench_grad_weight(compare, device, samples):
    """The gradient of unshared weights, and that of the shared ones."""
    layer = Layer("128ch-32x32" if device == "cuda" else "64ch-8x8", samples, 0.1, device)
    unshared = layer.unshared().requires_grad_(True)
    kernel = layer.kernel.clone().requires_grad_(True)
    currents = {
        "ours": (unshared(layer.packed), unshared.weight),
        "shared conv2d": (F.conv2d(layer.amplitude * layer.spikes, kernel, padding=1), kernel),
    }

    def backward(name):
        out, weight = currents[name]
        grad = torch.ones_like(out)
        return lambda: torch.autograd.grad(out, weight, grad, retain_graph=True)

    compare(backward("ours"), {"shared conv2d": backward("shared conv2d")}, rounds=7)


@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@torch.no_grad()
def bench_shared_spike_conv(compare, device, samples):
    """SpikeConv2d, what a channel-wise amplitude folds to: the same gather, one kernel for all."""
    layer = Layer("128ch-32x32", samples, 0.1, device)
    conv = torch.nn.Conv2d(*layer.kernel.shape[:2], 3, padding=1, bias=False, device=device)
    shared = rso.SpikeConv2d.from_conv2d(conv)
    peers = {
        "shared conv2d": layer.shared_conv2d(),
        "shared conv2d bf16": layer.shared_conv2d_bf16(),
    }
    compare(lambda: shared(layer.packed), peers, rounds=7)


@pytest.mark.wall_clock
@torch.no_grad()
def bench_unshared_conv_small_call(compare, device):
    """16 channels on 8 x 8, one sample: the cost of a call."""
    conv = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False, device=device).requires_grad_(False)
    layer = rso.UnsharedSpikeConv.from_conv2d(conv, torch.rand(16, 8, 8, device=device) + 0.5)
    spikes = (torch.rand(1, 16, 8, 8, device=device) < 0.1).float()
    packed = rso.pack_spikes(spikes)

    def often(function, argument):
        def run():
            for _ in range(100):
                function(argument)

        return run

    compare(often(layer, packed), {"shared conv2d": often(conv, spikes)})
