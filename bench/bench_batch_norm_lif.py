"""Batch norm and LIF neurons in one op, forward and backward, beside what it replaces.

nn.BatchNorm2d and nn.ReLU on the same images is what a network without spikes pays. The network's
neurons stand behind nn.BatchNorm2d in the other peers: ours, SpikingJelly's, and a loop over time
that torch.compile sees together with the norm. The neurons are the default ones, whose reset is
attached, unless the name says otherwise.
"""

import pytest
import torch
from allocator import memory
from peers import lif_loop, spikingjelly_lif
from torch import nn

import realspike_ops as rso

TIMESTEPS = 4
# [T * B, C, H, W]: the maps of ResNet20, narrow and wide.
SHAPES = {"64x32x32": (32, 64, 32, 32), "16x16x16": (128, 16, 16, 16), "64x8x8": (128, 64, 8, 8)}
LAYOUTS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
GRANULARITIES = ("none", "channel", "element")


def amplitude_of(granularity, C, H, W):
    shapes = {"channel": (C, 1, 1), "element": (C, H, W)}
    return torch.ones(shapes[granularity]) if granularity in shapes else None


class Case:
    """Maps, a norm, an amplitude, and what autograd wants of them."""

    def __init__(self, shape, layout, granularity, device, detach_reset=False):
        torch.manual_seed(0)
        _, C, H, W = shape
        to = {"device": device, "memory_format": LAYOUTS[layout]}
        self.x = torch.randn(shape).to(**to).requires_grad_()
        self.gradient = torch.randn(shape).to(**to)
        self.norm = nn.BatchNorm2d(C).to(device)
        amplitude = amplitude_of(granularity, C, H, W)
        self.amplitude = None if amplitude is None else amplitude.to(device).requires_grad_()
        self.detach_reset = detach_reset

    def trained(self, function, amplitude="own"):
        """Forward and backward of `function`, of the amplitude too, unless it has none."""
        leaves = [self.x, self.norm.weight, self.norm.bias]
        if amplitude == "own" and self.amplitude is not None:
            leaves.append(self.amplitude)

        def run():
            torch.autograd.grad(function(), leaves, self.gradient)

        return run

    def over_time(self, multi_step):
        """nn.BatchNorm2d, neurons over [T, B, C, H, W], and the amplitude."""
        y = multi_step(self.norm(self.x).unflatten(0, (TIMESTEPS, -1)))
        return (y if self.amplitude is None else self.amplitude * y).flatten(0, 1)

    def fused(self, amplitude):
        norm = self.norm
        return rso.batch_norm_lif(
            self.x.unflatten(0, (TIMESTEPS, -1)),
            *(norm.weight, norm.bias, norm.running_mean, norm.running_var),
            amplitude=amplitude,
            detach_reset=self.detach_reset,
        ).flatten(0, 1)

    def unfused(self):
        x = self.norm(self.x).unflatten(0, (TIMESTEPS, -1))
        return rso.lif(x, self.amplitude, detach_reset=self.detach_reset).flatten(0, 1)

    def ann(self):
        return torch.relu(self.norm(self.x))


def peers_of(case):
    torch.compiler.reset()

    def loop():
        return case.over_time(lambda x: lif_loop(x, None, detach_reset=case.detach_reset))

    peers = {
        "nn.BatchNorm2d + lif": case.trained(case.unfused),
        "compiled norm and loop": case.trained(torch.compile(loop, fullgraph=True)),
        "nn.BatchNorm2d + nn.ReLU": case.trained(case.ann, amplitude="none"),
    }
    node = spikingjelly_lif(case.detach_reset)
    if node is not None:
        compiled = torch.compile(node)

        def jelly():
            node.reset()
            return case.over_time(compiled)

        peers["nn.BatchNorm2d + SpikingJelly compiled"] = case.trained(jelly)
    return peers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def bench_batch_norm_lif(compare, device, shape, granularity, layout):
    """Amplitudes with their gradients; the neurons without one are a peer, too."""
    case = Case(SHAPES[shape], layout, granularity, device)
    peers = peers_of(case)
    if granularity != "none":
        peers["batch_norm_lif without amplitude"] = case.trained(
            lambda: case.fused(None), amplitude="none"
        )
    with memory("kept"):
        compare(case.trained(lambda: case.fused(case.amplitude)), peers, rounds=25)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_batch_norm_lif_detached(compare, device, shape, layout):
    """The reset is detached: bits are kept for backward."""
    case = Case(SHAPES[shape], layout, "none", device, detach_reset=True)
    with memory("kept"):
        compare(case.trained(lambda: case.fused(None)), peers_of(case), rounds=25)
