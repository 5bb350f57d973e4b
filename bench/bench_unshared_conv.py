"""unshared_spike_conv beside unfold + bmm of the same weights, and the *shared* convolution of a*o.

The shared convolution is the strongest competitor: it computes the same outputs from the trained
network before folding. Packed spikes are timed, as a LIF layer in inference can hand them over; the
rows named `dense` include the packing.
"""

import pytest
import torch
import torch.nn.functional as F
from realspike.unfold_bmm import UnfoldBmm

import realspike_ops as rso

LAYERS = {"64ch-8x8": (64, 8), "128ch-16x16": (128, 16)}  # channels, map; 3 x 3 kernels


class Layer:
    def __init__(self, name, samples, rate, device):
        torch.manual_seed(0)
        channels, size = LAYERS[name]
        conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
        conv.requires_grad_(False)
        spikes = (torch.rand(samples, channels, size, size, device=device) < rate).float()
        self.spikes = spikes.contiguous(memory_format=torch.channels_last)
        self.packed = rso.pack_spikes(self.spikes)
        amplitude = torch.rand(channels, size, size, device=device) + 0.5
        self.amplitude = amplitude.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        self.unshared = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude).requires_grad_(False)
        self.kernel = conv.weight.contiguous(memory_format=torch.channels_last)
        self.unfold_bmm = UnfoldBmm(self.unshared)

    def peers(self):
        half = self.kernel.bfloat16()
        return {
            "unfold+bmm": lambda: self.unfold_bmm(self.spikes),
            "shared conv2d": lambda: F.conv2d(self.amplitude * self.spikes, self.kernel, padding=1),
            "shared conv2d bf16": lambda: F.conv2d(
                (self.amplitude * self.spikes).bfloat16(), half, padding=1
            ),
        }


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.3], ids=lambda rate: f"r{rate}")
@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def bench_unshared_conv_packed(compare, device, name, samples, rate):
    layer = Layer(name, samples, rate, device)
    compare(lambda: layer.unshared(layer.packed), layer.peers(), rounds=7)


@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def bench_unshared_conv_dense(compare, device, name, samples):
    layer = Layer(name, samples, 0.1, device)
    compare(lambda: layer.unshared(layer.spikes), layer.peers(), rounds=7)


@pytest.mark.parametrize("samples", [4, 64], ids=lambda samples: f"S{samples}")
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def bench_shared_spike_conv(compare, device, name, samples):
    """SpikeConv2d, what a channel-wise amplitude folds to: the same gather, one kernel for all."""
    layer = Layer(name, samples, 0.1, device)
    conv = torch.nn.Conv2d(*layer.kernel.shape[:2], 3, padding=1, bias=False, device=device)
    shared = rso.SpikeConv2d.from_conv2d(conv)
    peers = {name: peer for name, peer in layer.peers().items() if name.startswith("shared")}
    compare(lambda: shared(layer.packed), peers, rounds=7)
