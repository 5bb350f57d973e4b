"""Every CUDA and Triton kernel once, on small and awkward sizes: what compute-sanitizer watches.

Run by `make gpu`; compares with the CPU as it goes.
"""

import sys
from pathlib import Path

import torch

import realspike_ops as rso

sys.path.insert(0, str(Path(__file__).parent))
import test_unshared_conv_gpu as on_gpu


def check(name, actual, expected, bound=0.0):
    error = (actual.cpu().float() - expected.float()).abs().max().item()
    assert error <= bound, (name, error)
    print("ok", name)


def lif(dtype, detach_reset, T):
    x = torch.randn(T, 2, 3, 5, 7).to(dtype)
    amplitude = torch.rand(3, 5, 7) + 0.5
    results = []
    for device in ("cpu", "cuda"):
        inputs = [t.to(device).requires_grad_() for t in (x, amplitude)]
        y = rso.lif(*inputs, detach_reset=detach_reset)
        results.append((y.detach(), *torch.autograd.grad(y.float().sum(), inputs)))
    for name, expected, actual in zip(("y", "grad_x", "grad_amplitude"), *results, strict=True):
        bound = 1e-4 if name == "grad_amplitude" else 0.0
        check(f"lif {dtype} detach={detach_reset} T={T} {name}", actual, expected, bound)


def lif_form(emission, reset, memory_format):
    """Learnable decay and threshold in training, then packed spikes in inference."""
    form = {"emission": emission, "reset": reset}
    x = torch.randn(6, 35, 5, 7).contiguous(memory_format=memory_format)
    parameters = [torch.rand(35, 1, 1) * 0.5 + 0.25 for _ in range(3)]
    results, words = [], []
    for device in ("cpu", "cuda"):
        inputs = [t.to(device).requires_grad_() for t in (x, *parameters)]
        steps = inputs[0].unflatten(0, (3, 2))
        y = rso.lif(steps, inputs[1], decay=inputs[2], v_threshold=inputs[3], **form)
        results.append((y.detach(), *torch.autograd.grad(y.sum(), inputs)))
        words.append(rso.lif(steps.detach(), decay=inputs[2].detach(), packed=True, **form))
    names = ("y", "grad_x", "grad_amplitude", "grad_decay", "grad_v_threshold")
    for name, expected, actual in zip(names, *results, strict=True):
        bound = 0.0 if name in ("y", "grad_x") else 1e-3
        check(f"lif {emission} {reset} {memory_format} {name}", actual, expected, bound)
    assert torch.equal(words[1].cpu(), words[0]), "packed spikes"
    print("ok packed", emission, reset, memory_format)


def batch_norm_lif(dtype, detach_reset, memory_format, devices=("cpu", "cuda")):
    """Statistics, neurons and gradients; the sums of a channel are in an order of each device."""
    maps = [
        torch.randn(6, 35, 5, 7).to(dtype).contiguous(memory_format=memory_format) for _ in range(2)
    ]
    numbers = [torch.rand(35) + 0.5 for _ in range(2)]
    results = []
    for device in devices:
        inputs = [t.to(device).requires_grad_() for t in (*maps, *numbers)]
        x, residual = (t.unflatten(0, (3, 2)) for t in inputs[:2])
        running = torch.zeros(35, device=device), torch.ones(35, device=device)
        form = {"residual": residual, "detach_reset": detach_reset}
        y = rso.batch_norm_lif(x, *inputs[2:], *running, **form)
        grads = torch.autograd.grad(
            (y.float() * maps[0].float().to(device).view_as(y)).sum(), inputs
        )
        results.append((*running, y.detach(), *grads))
    names = ("mean", "var", "y", "grad_x", "grad_residual", "grad_weight", "grad_bias")
    for name, expected, actual in zip(names, *results, strict=True):
        scale = 1 + expected.float().abs().max().item()
        bound = 0.0 if name == "y" else scale * max(1e-4, 4 * torch.finfo(expected.dtype).eps)
        check(
            f"batch_norm_lif {dtype} {detach_reset} {memory_format} {name}", actual, expected, bound
        )


def unshared_conv(channels, groups, samples, shared):
    spikes = (torch.rand(samples, channels, 6, 5) < 0.3).float()
    weight = torch.randn(
        1 if shared else 6, 1 if shared else 5, groups, 3, 3, channels // groups, 20
    )
    weight = weight.expand(6, 5, -1, -1, -1, -1, -1)
    bias = torch.randn(20 * groups)
    expected = rso.unshared_spike_conv(spikes, weight, bias, padding=1)
    actual = rso.unshared_spike_conv(
        spikes.cuda(), weight.cuda(), bias.cuda(), padding=1, check_binary=True
    )
    check(f"unshared_conv {channels} {groups} {samples} {shared}", actual, expected, 1e-4)
    packed = rso.pack_spikes(spikes.cuda())
    check("pack_spikes", packed, rso.pack_spikes(spikes))
    check("unpack_spikes", rso.unpack_spikes(packed, channels), spikes)


def unshared_conv_storage(samples, size, channels):
    spikes = (torch.rand(samples, 70, size, size) < 0.3).float()
    weight = torch.randn(size, size, 1, 3, 3, 70, channels)
    int8, scale = rso.quantize_weight(weight)
    stored = [weight.half(), weight.bfloat16(), int8]
    for each, factor in zip([*stored, int8], (None, None, None, scale), strict=True):
        expected = rso.unshared_spike_conv(spikes, each, padding=1, scale=factor)
        factor = None if factor is None else factor.cuda()
        actual = rso.unshared_spike_conv(spikes.cuda(), each.cuda(), padding=1, scale=factor)
        check(f"unshared_conv {each.dtype} {samples} {size} {channels}", actual, expected, 1e-3)


def products(shared):
    """On matrix units: groups that share words, borders, tiles that are not full."""
    spikes = (torch.rand(65, 80, 9, 8) < 0.3).float()
    weight = torch.randn(1 if shared else 9, 1 if shared else 8, 2, 3, 3, 40, 72)
    int8, scale = rso.quantize_weight(weight)
    forms = [(weight, None), (weight.half(), None), (weight.bfloat16(), None), (int8, scale)]
    for each, factor in forms:
        conv = {"weight": each, "bias": torch.randn(144, 9, 8), "scale": factor}
        expected = rso.unshared_spike_conv(spikes, **conv, padding=1)
        conv = {name: None if t is None else t.cuda() for name, t in conv.items()}
        actual = rso.unshared_spike_conv(spikes.cuda(), **conv, padding=1, algorithm="auto")
        bound = 0.0 if factor is not None else 1e-3
        check(f"unshared_matmul {each.dtype} shared={shared}", actual, expected, bound)


def depthwise(channels, samples, memory_format):
    """Added in the same order on both: the same bits."""
    spikes = (torch.rand(samples, channels, 6, 11) < 0.3).float()
    spikes = spikes.contiguous(memory_format=memory_format)
    weight = torch.randn(6, 11, channels, 3, 3, 1, 1)
    int8, scale = rso.quantize_weight(weight)
    for each, factor in ((weight, None), (weight.half(), None), (int8, scale)):
        expected = rso.unshared_spike_conv(spikes, each, padding=1, scale=factor)
        factor = None if factor is None else factor.cuda()
        actual = rso.unshared_spike_conv(spikes.cuda(), each.cuda(), padding=1, scale=factor)
        check(f"depthwise {each.dtype} {channels} {samples} {memory_format}", actual, expected)


def main():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for detach_reset in (True, False):
            for T in (1, 4, 11):
                lif(dtype, detach_reset, T)
    for emission in ("binary", "ternary"):
        for reset in ("hard", "soft", "none"):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                lif_form(emission, reset, memory_format)
    for dtype in (torch.float32, torch.bfloat16):
        for detach_reset in (True, False):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                batch_norm_lif(dtype, detach_reset, memory_format)
    for channels, groups in ((1, 1), (33, 1), (64, 2), (96, 3)):
        for samples in (1, 5, 17):
            for shared in (False, True):
                unshared_conv(channels, groups, samples, shared)
    for samples, size in ((3, 6), (3, 1), (20, 6), (40, 12)):
        for channels in (48, 5):
            unshared_conv_storage(samples, size, channels)
    for shared in (False, True):
        products(shared)
    for samples in (3, 40):
        for channels in (5, 70):
            for memory_format in (torch.contiguous_format, torch.channels_last):
                depthwise(channels, samples, memory_format)
    for case in on_gpu.GRADS:
        on_gpu.test_grad_weight_has_the_bits_of_the_cpu(*case)
        print("ok unshared_conv grad_weight", *case)
    for case in on_gpu.FUSED:
        on_gpu.test_neurons_after_the_convolution_fire_as_they_do_alone(*case)
        print("ok unshared_conv_lif", *case)
    torch.cuda.synchronize()


main()
