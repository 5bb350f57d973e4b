"""What the convolution's CUDA kernels promise to the bit, on a card."""

import itertools

import pytest
import torch

import realspike_ops as rso

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no card"),
]

# dtype, samples, channels out of a group, groups; more samples than one pass takes
GRADS = [
    (dtype, *sizes)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for sizes in ((3, 24, 1), (65, 5, 2), (257, 136, 1))
]


@pytest.mark.parametrize(("dtype", "samples", "channels", "groups"), GRADS)
def test_grad_weight_has_the_bits_of_the_cpu(dtype, samples, channels, groups):
    spikes = (torch.rand(samples, 70, 3, 2) < 0.1).float()
    weight = torch.randn(3, 2, groups, 3, 3, 70 // groups, channels).to(dtype)
    grad_out = torch.randn(samples, groups * channels, 3, 2)
    grads = []
    for device in ("cpu", "cuda"):
        leaf = weight.to(device).requires_grad_()
        out = rso.unshared_spike_conv(spikes.to(device), leaf, padding=1)
        grads += torch.autograd.grad(out, leaf, grad_out.to(device))
    assert torch.equal(grads[1].cpu(), grads[0])


# storage, emission, reset, size of the map; small maps share their receptive fields
FUSED = list(
    itertools.product(("float32", "int8"), ("binary", "ternary"), ("hard", "soft"), (1, 7))
)


@pytest.mark.parametrize(("storage", "emission", "reset", "size"), FUSED)
def test_neurons_after_the_convolution_fire_as_they_do_alone(storage, emission, reset, size):
    spikes = (torch.rand(6, 300, size, size, device="cuda") < 0.2).float()
    weight = torch.randn(size, size, 1, 3, 3, 300, 40, device="cuda") / 16
    scale = None
    if storage == "int8":
        weight, scale = rso.quantize_weight(weight)
    conv = {"bias": torch.rand(40, device="cuda"), "scale": scale, "padding": 1}
    neurons = {
        "decay": torch.rand(40, 1, 1, device="cuda"),
        **{"reset": reset, "emission": emission, "return_state": True},
        "v_init": torch.randn(2, 40, size, size, device="cuda"),
    }
    words, v_last = rso.unshared_spike_conv_lif(spikes, weight, timesteps=3, **conv, **neurons)
    currents = rso.unshared_spike_conv(spikes, weight, **conv).unflatten(0, (3, 2))
    expected, v_expected = rso.lif(currents, packed=True, **neurons)
    assert torch.equal(words, expected.flatten(-5, -4))
    assert torch.equal(v_last, v_expected)


def test_a_layer_can_be_captured_in_a_graph():
    layer = rso.UnsharedSpikeConv.from_conv2d(
        torch.nn.Conv2d(16, 16, 3, padding=1, bias=False), torch.rand(16, 8, 8) + 0.5
    ).cuda()
    packed = rso.pack_spikes((torch.rand(4, 16, 8, 8, device="cuda") < 0.2).float())
    with torch.no_grad():
        expected = layer(packed)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            layer(packed)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(packed)
        packed.zero_()
        graph.replay()
        assert torch.equal(out, torch.zeros_like(out))
        assert not torch.equal(out, expected)
