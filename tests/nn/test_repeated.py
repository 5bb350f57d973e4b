"""DirectEncoding keeps its current once: neurons read it in place, everything else as repeated."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import realspike_ops as rso
from realspike_ops.nn.neurons import lif as lif_module
from realspike_ops.nn.time import split_time

T, SHAPE = 4, (3, 5, 6, 7)


def maps(shape=SHAPE, **options):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), **options)


def repeat(x):
    return x.repeat(T, *(1 for _ in x.shape[1:]))


LAYOUTS = {
    "contiguous": maps(),
    "channels_last": maps().to(memory_format=torch.channels_last),
    "strided": maps((3, 5, 6, 14))[..., ::2],
    "transposed": maps((5, 3, 6, 7)).transpose(0, 1),
    "of no images": maps((0, 5, 6, 7)),
    "of one image": maps((1, 5, 6, 7)),
    "bfloat16": maps().bfloat16(),
    "features": maps((3, 5)),
    "lines": maps((3, 5, 9)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_spikes_and_gradients_are_those_of_a_copy(layout):
    granularity = "element" if LAYOUTS[layout].dim() == 4 else "channel"
    lif = rso.RealSpikeLIF(T, granularity, tuple(LAYOUTS[layout].shape[1:]))
    results = []
    for encode in (rso.DirectEncoding(T), repeat):
        x = LAYOUTS[layout].clone(memory_format=torch.preserve_format).requires_grad_()
        lif.amplitude.grad = None
        spikes = lif(encode(x))
        weights = torch.arange(spikes.numel(), dtype=torch.float32).view(spikes.shape).sin()
        (spikes.float() * weights).sum().backward()
        results.append((spikes, x.grad, lif.amplitude.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_neurons_read_the_current_itself(monkeypatch):
    x, seen = maps(), []
    functional = lif_module.functional.lif
    monkeypatch.setattr(
        lif_module.functional, "lif", lambda x, **form: seen.append(x) or functional(x, **form)
    )
    encoded = rso.DirectEncoding(T)(x)
    for layout in (encoded, rso.DirectEncoding(T)(x.to(memory_format=torch.channels_last))):
        rso.RealSpikeLIF(T, "element", SHAPE[1:])(layout)
    assert [step.stride(0) for step in seen] == [0, 0]
    assert seen[0].data_ptr() == x.data_ptr()
    assert seen[1][0].is_contiguous(memory_format=torch.channels_last)
    assert split_time(encoded, T).data_ptr() == x.data_ptr()


READS = {
    "a sum": lambda y: y + 1,
    "a product": lambda y: y * y,
    "a layer": nn.Conv2d(5, 2, 3),
    "an index": lambda y: y[5],
    "a view": lambda y: y.view(T, 3, -1),
    "another time": lambda y: split_time(y, 2),
    "a part": lambda y: y.split(3)[1],
    "a concatenation": lambda y: torch.cat([y, y]),
    "a copy": lambda y: y.clone(),
    "NumPy": lambda y: torch.from_numpy(y.detach().numpy()),
    "a deep copy": lambda y: copy.deepcopy(y.detach()),
    "an iteration": lambda y: torch.stack(list(y)),
    "text": lambda y: torch.tensor(len(str(y))),
    "the mean over time": rso.MeanOverTime(T),
    "a change in place": lambda y: y.clone().add_(1) if y.requires_grad else y.add_(1),
    "out=": lambda y: torch.add(y.detach(), 1, out=torch.empty(y.shape)),
}


@pytest.mark.parametrize("what", READS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_whatever_else_reads_it_reads_the_repeated_tensor(what, requires_grad):
    x = maps().requires_grad_(requires_grad)
    ours, theirs = READS[what](rso.DirectEncoding(T)(x)), READS[what](repeat(x))
    assert torch.equal(ours, theirs)
    if requires_grad and ours.requires_grad:
        weights = maps(ours.shape)
        found = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs))
        assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


def test_it_tells_what_it_is_without_a_copy():
    x = maps(requires_grad=True)
    y = rso.DirectEncoding(T)(x)
    assert isinstance(y, torch.Tensor)
    assert (y.shape, y.dim(), y.ndim, y.size(0)) == ((12, 5, 6, 7), 4, 4, 12)
    assert (y.dtype, y.device, y.requires_grad) == (x.dtype, x.device, True)
    assert not y.is_leaf
    assert y._copied is None
    with torch.no_grad():
        assert not rso.DirectEncoding(T)(x).requires_grad


def test_a_change_in_place_is_seen_by_every_later_reader():
    x = maps()
    y = rso.DirectEncoding(T)(x)
    expected = repeat(x).relu()
    nn.ReLU(inplace=True)(y)
    assert torch.equal(y + 0, expected)
    lif = rso.RealSpikeLIF(T)
    assert torch.equal(lif(y), lif(expected))
    assert torch.equal(x, maps()), "what was repeated is as it was"


def test_what_was_changed_before_it_was_read_is_refused():
    for read in (rso.RealSpikeLIF(T), lambda y: y + 1):
        x = maps()
        y = rso.DirectEncoding(T)(x)
        x.add_(1)
        with pytest.raises(RuntimeError, match=r"changed in place after DirectEncoding"):
            read(y)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_in_inference_mode_it_is_a_copy_that_lies_as_its_current(layout):
    with torch.inference_mode():
        x = LAYOUTS[layout] + 0
        y = rso.DirectEncoding(T)(x)
        assert type(y) is torch.Tensor
        assert torch.equal(y, repeat(x))
        assert y.stride() == x.stride()
        expected = rso.RealSpikeLIF(T)(repeat(x))
        x.zero_()
        assert torch.equal(rso.RealSpikeLIF(T)(y), expected)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    "call",
    [
        _Double.apply,
        lambda y: checkpoint(nn.ReLU(), y, use_reentrant=True),
        lambda y: checkpoint(nn.ReLU(), y, use_reentrant=False),
        lambda y: torch.jit.script(nn.ReLU())(y),
    ],
)
def test_gradients_also_go_past_pytorchs_functions(call):
    results = []
    for encode in (rso.DirectEncoding(T), repeat):
        x = maps().requires_grad_()
        y = call(encode(x))
        (y * maps(y.shape)).sum().backward()
        results.append((y, x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_its_own_gradient_can_be_asked_for(late):
    """Of neurons and of another reader together, whether it is asked before or behind them."""
    lif, results = rso.RealSpikeLIF(T, "element", SHAPE[1:]), []
    for encode in (rso.DirectEncoding(T), repeat):
        y, seen = encode(maps().requires_grad_()), []

        def ask(y=y, seen=seen):
            y.retain_grad()
            y.register_hook(lambda grad: seen.append(grad.clone()))

        if not late:
            ask()
        loss = (lif(y) * maps((12, *SHAPE[1:]))).sum() + y.square().sum()
        if late:
            ask()
        seen.append(torch.autograd.grad(loss, y, retain_graph=True)[0])
        loss.backward()
        results.append([*seen, y.grad])
    assert len(results[0]) == len(results[1]) == 4
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("read", [False, True])
def test_gradients_in_a_batch_are_those_of_a_loop(read):
    x, lif = maps().requires_grad_(), rso.RealSpikeLIF(T, "element", SHAPE[1:])
    current = rso.DirectEncoding(T)(x)
    y = lif(current) + current if read else lif(current)
    weights = maps((2, *y.shape))
    together = torch.autograd.grad(y, x, weights, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(y, x, w, retain_graph=True)[0] for w in weights]
    torch.testing.assert_close(together[0], torch.stack(one_by_one))


def test_hooks_of_modules_see_it():
    x, seen = maps().requires_grad_(), []
    encode, lif = rso.DirectEncoding(T), rso.RealSpikeLIF(T, "element", SHAPE[1:])
    lif.register_forward_hook(lambda module, given, result: seen.append(given[0].sum().item()))
    encode.register_full_backward_hook(lambda module, given, result: seen.append(result[0].shape))
    network = nn.Sequential(encode, lif)
    network(x).sum().backward()
    assert seen == [repeat(x).sum().item(), torch.Size([12, 5, 6, 7])]


def test_networks_of_it_are_saved_and_copied_as_others():
    network = nn.Sequential(nn.Conv2d(5, 4, 3), rso.DirectEncoding(T), rso.RealSpikeLIF(T))
    buffer = io.BytesIO()
    torch.save(network, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(copy.deepcopy(network)(maps()), again(maps()))
    buffer = io.BytesIO()
    torch.save(network[:2](maps()).detach(), buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True), network[:2](maps()) + 0)


def test_what_reads_it_in_inference_mode_takes_no_gradient_from_others():
    x = maps().requires_grad_()
    current = rso.DirectEncoding(T)(x)
    with torch.inference_mode():
        current.mean()
    (grad,) = torch.autograd.grad(current.square().sum(), x)
    assert torch.equal(grad, 2 * T * x)


@pytest.mark.parametrize("is_read", [False, True])
def test_it_may_become_a_leaf(is_read):
    current = rso.DirectEncoding(T)(maps())
    if is_read:
        current.mean()
    assert not current.requires_grad
    current.requires_grad_()
    assert current.requires_grad
    current.square().sum().backward()
    assert torch.equal(current.grad, 2 * current.detach())


def test_a_tangent_is_repeated_too():
    with forward_ad.dual_level():
        encoded = rso.DirectEncoding(T)(forward_ad.make_dual(maps(), maps() + 1))
        assert torch.equal(forward_ad.unpack_dual(encoded).tangent, repeat(maps() + 1))
        with pytest.raises(NotImplementedError, match="x carries a tangent"):
            rso.RealSpikeLIF(T)(encoded)
