"""compress_spikes: the same gradients, bit for bit, from a fraction of the memory."""

import gc
import weakref

import pytest
import torch
from helpers import normal
from torch import nn

import realspike_ops as rso
from realspike_ops.ops.compress_spikes import Rerun, SavedBits

T = 4
# Spikes of the attached reset are kept as bits up to 8 timesteps; of more, the neurons run again.
TIMESTEPS = (7, 9)


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
    """Bytes that stay allocated for backward: unique storages that the graph refers to."""
    storages = {}

    def count(*tensors):
        for tensor in tensors:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

    def pack(saved):
        kept = saved if not compress else context.pack_of_spikes(saved)
        if isinstance(kept, torch.Tensor):
            count(kept)
            return kept
        recipe = kept[0]
        if hasattr(recipe, "words"):
            held = (recipe.amplitude, recipe.words)
        else:
            held = (*recipe.kept, *recipe.parameters)
        count(*(tensor for tensor in held if isinstance(tensor, torch.Tensor)))
        return kept

    context = rso.compress_spikes()
    context.pack_of_spikes, context.pack_hook = context.pack_hook, pack
    with context if compress else torch.autograd.graph.saved_tensors_hooks(pack, lambda s: s):
        out = model(x)
    del out
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("granularity", ["none", "layer", "channel", "element"])
@pytest.mark.parametrize("detach_reset", [True, False])
def test_gradients_are_the_same_bits(detach_reset, granularity, memory_format, device):
    model = network(granularity, detach_reset=detach_reset).to(device)
    x = normal((T * 2, 3, 6, 6), 1).to(device).contiguous(memory_format=memory_format)
    for plain, compressed in zip(
        gradients(model, x, False), gradients(model, x, True), strict=True
    ):
        assert torch.equal(plain, compressed)


def same_bits(a, b):
    integers = {2: torch.int16, 4: torch.int32}[a.dtype.itemsize]
    # NaN has many bit patterns, and the conversion from float32 chooses one.
    is_nan = b.isnan()
    return torch.equal(a.isnan(), is_nan) and torch.equal(
        a[~is_nan].view(integers), b[~is_nan].view(integers)
    )


def assert_rebuilt(context, y):
    for view in (y, y.flatten(0, 1), y[1:, ::2], y.transpose(1, 3), y[2, 1, 3]):
        kept = context._pack(view.detach())
        assert not isinstance(kept, torch.Tensor)
        rebuilt = context._unpack(kept)
        if isinstance(kept[0], SavedBits):
            spikes = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device=y.device)
            kept[0].write_step_by_step(spikes)
            assert same_bits(spikes, kept[0].make())
        assert rebuilt.stride() == view.stride()
        assert rebuilt.dtype == y.dtype
        assert same_bits(rebuilt, view.detach())


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("timesteps", TIMESTEPS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rebuilt_exactly(dtype, timesteps, detach_reset, device):
    """Signed zeros, infinite and NaN amplitudes, views with an offset, and odd channel counts."""
    values = [1.5, -0.3, 0.0, -0.0, float("inf"), float("nan"), -1e-7]
    amplitude = torch.tensor(values, device=device)
    x = normal((timesteps, 3, 7, 5), 1).to(dtype).to(device).requires_grad_()
    with rso.compress_spikes() as context:
        assert_rebuilt(context, rso.lif(x, amplitude[:, None], detach_reset=detach_reset))


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_every_form_of_the_neuron_is_rebuilt(timesteps, detach_reset, device):
    x = normal((timesteps, 3, 7, 5), 1).to(device).requires_grad_()
    amplitude = normal((7, 5), 2).to(device)
    decay = normal((7, 1), 3).sigmoid().to(device).requires_grad_()
    forms = (
        {"emission": "ternary", "reset": "soft"},
        {"emission": "ternary", "v_threshold": 0.2},
        {"reset": "soft", "decay": decay},
        {"v_threshold": decay.detach(), "v_reset": -0.25, "surrogate": "atan"},
        {"v_init": normal((3, 7, 5), 4).to(device), "decay": 0.9},
    )
    with rso.compress_spikes() as context:
        for form in forms:
            assert_rebuilt(context, rso.lif(x, amplitude, detach_reset=detach_reset, **form))


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


@pytest.mark.parametrize("detach_reset", [True, False])
def test_memory(detach_reset):
    """Of the spikes of two layers nothing is left. In their place is nothing where backward keeps
    bits anyway, else a byte for four timesteps."""
    model, x = network("none", detach_reset=detach_reset), normal((T * 8, 3, 6, 6), 1)
    plain, compressed = kept_bytes(model, x, False), kept_bytes(model, x, True)
    neurons = 2 * 8 * 32 * 36
    assert plain - compressed == neurons * T * 4 - (0 if detach_reset else neurons)


@pytest.mark.parametrize(("timesteps", "recipe"), [(8, SavedBits), (9, Rerun)])
def test_how_spikes_of_the_attached_reset_are_made(timesteps, recipe):
    with rso.compress_spikes() as context:
        y = rso.lif(normal((timesteps, 2, 3), 1).requires_grad_())
        assert isinstance(context._pack(y.detach())[0], recipe)


@pytest.mark.parametrize("detach_reset", [True, False])
def test_nothing_outlives_the_graph(detach_reset):
    model, x = network("element", detach_reset=detach_reset), normal((T * 2, 3, 6, 6), 1)
    recipes = weakref.WeakSet()
    with rso.compress_spikes() as context:
        note = context.note

        def noting(y, recipe):
            recipes.add(recipe)
            note(y, recipe)

        context.note = noting
        for _ in range(3):
            model(x).sum().backward()
        assert len(recipes) <= 2  # of the last forward pass, until the next
    gc.collect()
    assert not recipes


def test_an_input_that_was_changed_is_refused():
    x = normal((9, 2, 8, 4), 1).requires_grad_()
    weight = torch.ones(1, requires_grad=True)
    with rso.compress_spikes():
        current = x * 1
        loss = (rso.lif(current) * weight).sum()
    with torch.no_grad():
        current.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        torch.autograd.grad(loss, weight)


@pytest.mark.parametrize("timesteps", TIMESTEPS)
def test_amplitude_of_the_forward_pass_is_kept(timesteps):
    """An optimizer steps in place; a graph that is kept must not see the new amplitude."""
    x = normal((timesteps, 2, 8, 4), 1).requires_grad_()
    amplitude = torch.ones(8, 1, requires_grad=True)
    decay = torch.full((8, 1), 0.5, requires_grad=True)
    weight = torch.ones(1, requires_grad=True)
    with rso.compress_spikes():
        y = rso.lif(x, amplitude, decay=decay)
        loss = (y * weight).sum()
    expected = y.detach().sum()
    with torch.no_grad():
        amplitude.mul_(5)
        decay.zero_()
    (grad,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(grad, expected.reshape(1))


@pytest.mark.parametrize("detach_reset", [True, False])
def test_under_checkpoint_and_nested(detach_reset):
    model, x = network("channel", detach_reset=detach_reset), normal((T * 2, 3, 6, 6), 1)
    plain = gradients(model, x, False)
    model.zero_grad()
    x = x.clone().requires_grad_()
    with rso.compress_spikes(), rso.compress_spikes():
        out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    out.square().sum().backward()
    actual = [x.grad, *(parameter.grad for parameter in model.parameters())]
    for left, right in zip(plain[:1] + plain[1:], actual, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "view",
    [
        lambda y: torch.view_as_complex(y.unflatten(-1, (-1, 2))),
        lambda y: torch.view_as_complex(y.unflatten(-1, (-1, 2))).conj().imag,
    ],
    ids=["complex", "negative"],
)
def test_views_that_mean_other_values_are_kept(view):
    amplitude = normal((6,), 2)
    grads = []
    for compress in (False, True):
        x = normal((T, 2, 6), 1).requires_grad_()
        factor = torch.ones(3, requires_grad=True)
        with rso.compress_spikes() if compress else torch.enable_grad():
            out = (view(rso.lif(x, amplitude, detach_reset=True)) * factor).abs().sum()
        grads.append(torch.autograd.grad(out, [x, factor]))
    assert all(map(torch.equal, *grads))
    assert grads[0][1].abs().sum() > 0
