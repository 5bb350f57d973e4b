"""compress_spikes: the same gradients, bit for bit, from a fraction of the memory."""

import gc

import pytest
import torch
from helpers import normal
from torch import nn

import realspike_ops as rso

T = 4


def network(granularity, channels=32, detach_reset=True):
    torch.manual_seed(0)
    shape = (channels, 6, 6)

    def lif():
        layer = rso.RealSpikeLIF(T, granularity, shape, detach_reset=detach_reset)
        if layer.amplitude is not None:
            nn.init.normal_(layer.amplitude, 1.0, 0.5)
        return layer

    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        lif(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        lif(),
        nn.Conv2d(channels, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )


def gradients(model, x, compress):
    model.zero_grad()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    if compress:
        with rso.compress_spikes():
            loss = model(x).square().sum()
    else:
        loss = model(x).square().sum()
    loss.backward()
    return [x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


def kept_bytes(model, x, compress):
    """Bytes that stay allocated for backward: unique storages reachable from the graph."""
    sizes = {}

    def pack(saved):
        sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    if not compress:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            model(x)
        return sum(sizes.values())
    context = rso.compress_spikes()
    outer_pack = context.pack_hook

    def counting_pack(saved):
        kept = outer_pack(saved)
        pack(kept if isinstance(kept, torch.Tensor) else kept[0].words)
        return kept

    context.pack_hook = counting_pack
    with context:
        out = model(x)
    del out
    return sum(sizes.values())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("granularity", ["none", "layer", "channel", "element"])
def test_gradients_are_the_same_bits(granularity, memory_format, device):
    model = network(granularity).to(device)
    x = normal((T * 2, 3, 6, 6), 1).to(device).contiguous(memory_format=memory_format)
    for plain, compressed in zip(
        gradients(model, x, False), gradients(model, x, True), strict=True
    ):
        assert torch.equal(plain, compressed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rebuilt_exactly(dtype, device):
    """Signed zeros, infinite and NaN amplitudes, views with an offset, and odd channel counts."""
    amplitude = torch.tensor([1.5, -0.3, 0.0, float("inf"), -1e-7], device=device)
    x = normal((T, 3, 5, 7), 1).to(dtype).to(device).requires_grad_()
    context = rso.compress_spikes()
    with context:
        y = rso.lif(x, amplitude[:, None])
        for view in (y, y.flatten(0, 1), y[1:, ::2], y.transpose(1, 3), y[2, 1, 3]):
            kept = context._pack(view.detach())
            assert not isinstance(kept, torch.Tensor)
            rebuilt = context._unpack(kept)
            assert rebuilt.stride() == view.stride()
            assert rebuilt.dtype == dtype
            integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
            assert torch.equal(rebuilt.view(integers), view.detach().view(integers))


def test_only_spikes_are_compressed():
    x = normal((T, 2, 8, 4), 1).requires_grad_()
    context = rso.compress_spikes()
    with context:
        y = rso.lif(x)
        changed = rso.lif(x * 2)
        with torch.no_grad():
            changed.mul_(3)
        for tensor in (x, y * 2, y.clone(), changed):
            assert context._pack(tensor.detach()) is not None
            assert isinstance(context._pack(tensor.detach()), torch.Tensor)
        assert not isinstance(context._pack(y.detach()), torch.Tensor)
    # Outside, nothing is known and nothing is kept alive.
    assert isinstance(context._pack(y.detach()), torch.Tensor)


def test_memory():
    model, x = network("channel"), normal((T * 8, 3, 6, 6), 1)
    plain, compressed = kept_bytes(model, x, False), kept_bytes(model, x, True)
    spikes = 2 * T * 8 * 32 * 36  # of two layers, 32 channels: a word for each pixel
    assert plain - compressed == spikes * 4 - spikes // 8


def test_nothing_outlives_the_graph():
    model, x = network("element"), normal((T * 2, 3, 6, 6), 1)
    with rso.compress_spikes() as context:
        for _ in range(3):
            model(x).sum().backward()
            gc.collect()
            alive = [e for e in context._emissions.values() if e.packed and e.packed()]
            assert not alive


def test_amplitude_of_the_forward_pass_is_kept():
    """An optimizer steps in place; a graph that is kept must not see the new amplitude."""
    x = normal((T, 2, 8, 4), 1).requires_grad_()
    amplitude = torch.ones(8, 1, requires_grad=True)
    weight = torch.ones(1, requires_grad=True)
    with rso.compress_spikes():
        y = rso.lif(x, amplitude)
        loss = (y * weight).sum()
    expected = y.detach().sum()
    with torch.no_grad():
        amplitude.mul_(5)
    (grad,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(grad, expected.reshape(1))


def test_one_spike_tensor_is_packed_once():
    x = normal((T, 2, 32, 4), 1).requires_grad_()
    context = rso.compress_spikes()
    with context:
        y = rso.lif(x)
        first, second = context._pack(y.detach()), context._pack(y.flatten(0, 1).detach())
    assert first[0] is second[0]


def test_under_checkpoint_and_nested():
    model, x = network("channel"), normal((T * 2, 3, 6, 6), 1)
    plain = gradients(model, x, False)
    model.zero_grad()
    x = x.clone().requires_grad_()
    with rso.compress_spikes(), rso.compress_spikes():
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    out.square().sum().backward()
    actual = [x.grad, *(parameter.grad for parameter in model.parameters())]
    for left, right in zip(plain[:1] + plain[1:], actual, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
