"""NormLIF computes what its batch norm and its neurons compute one after the other."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers import normal
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

import realspike_ops as rso

T, B, C = 2, 3, 4
SHAPES = {
    nn.BatchNorm1d: ((T * B, C), (T * B, C, 5)),
    nn.BatchNorm2d: ((T * B, C, 3, 5),),
    nn.BatchNorm3d: ((T * B, C, 2, 3, 2),),
}


def neurons(shape=(C, 3, 5), granularity="element", **kwargs):
    lif = rso.RealSpikeLIF(T, granularity, shape, **kwargs)
    with torch.no_grad():
        for parameter in lif.parameters():
            parameter += 0.1 * normal(parameter.shape, 7)
    return lif


def norm(kind=nn.BatchNorm2d, **kwargs):
    made = kind(C, **kwargs)
    with torch.no_grad():
        if made.affine:
            made.weight.copy_(1 + 0.3 * normal((C,), 1))
            made.bias.copy_(0.3 * normal((C,), 2))
        if made.running_mean is not None:
            made.running_mean.copy_(normal((C,), 3))
            made.running_var.copy_(normal((C,), 4).square() + 0.5)
    return made


@pytest.fixture
def in_one_op(monkeypatch):
    """Refuse a batch norm that runs by itself."""
    monkeypatch.setattr(F, "batch_norm", lambda *_, **__: pytest.fail("the norm ran by itself"))


def assert_equal_training(made, pair, inputs, steps=2):
    """Compare outputs, gradients and buffers over some steps of forward and backward."""
    for step in range(steps):
        results = []
        for call in (made, pair):
            leaves = [
                None if t is None else (t + step).detach().requires_grad_() for t in inputs(step)
            ]
            y = call(*leaves)
            grad = normal(y.shape, 9).to(y.dtype)
            y.backward(grad)
            results.append((y, [None if leaf is None else leaf.grad for leaf in leaves]))
        (y, grads), (expected, expected_grads) = results
        assert torch.equal(y, expected)
        assert y.ne(0).any()
        assert y.eq(0).any()
        for grad, wanted in zip(grads, expected_grads, strict=True):
            assert (grad is None) == (wanted is None)
            if grad is not None:
                torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-5)


def assert_equal_states(a: nn.Module, b: nn.Module):
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    for (name, p), (_, q) in zip(a.named_buffers(), b.named_buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_by_hand(in_one_op):
    bn, lif = nn.BatchNorm2d(1, eps=3.0), rso.RealSpikeLIF(2, decay=0.5)
    with torch.no_grad():
        bn.weight.fill_(2.0)
        bn.bias.fill_(0.25)
    # Mean 2, variance 1 and 1 / sqrt(1 + 3) = 1/2: the currents are (x - 2) + 0.25, of B = 2.
    x = torch.tensor([1.0, 3.0, 3.0, 1.0]).view(4, 1, 1, 1)
    y = rso.NormLIF(bn, lif)(x)
    # Neuron 0: -0.75, then 1.25 - 0.375. Neuron 1: 1.25 fires, then -0.75.
    assert y.flatten().tolist() == [0.0, 1.0, 1.0, 0.0]
    assert bn.running_mean.item() == pytest.approx(0.2, rel=1e-6)
    assert bn.running_var.item() == pytest.approx(0.9 + 0.1 * 4 / 3, rel=1e-6)
    assert bn.num_batches_tracked.item() == 1
    # The residual is added behind the norm: -0.75 + 1.25 is a tie with the threshold.
    y = rso.NormLIF(bn, lif)(x, torch.tensor([1.25, -1.0, 0.0, 0.0]).view(4, 1, 1, 1))
    assert y.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_modes_and_settings_of_the_norm(settings, momentum, training):
    bn, lif = norm(momentum=momentum, **settings).train(training), neurons()
    made = rso.NormLIF(bn, lif)
    pair = copy.deepcopy(made)

    def inputs(step):
        return normal((T * B, C, 3, 5), 10 + step, 2.0), normal((T * B, C, 3, 5), 20, 0.5)

    assert_equal_training(made, lambda x, r: pair.lif(pair.batch_norm(x) + r), inputs)
    assert_equal_states(made, pair)


def test_statistics_that_are_no_longer_tracked(in_one_op):
    """They stay as they are, and count in eval mode."""
    made = rso.NormLIF(norm(), neurons())
    made.batch_norm.track_running_stats = False
    before = copy.deepcopy(made.batch_norm.state_dict())
    x = normal((T * B, C, 3, 5), 1, 2.0)
    other = made(x)
    assert all(torch.equal(t, before[name]) for name, t in made.batch_norm.state_dict().items())
    assert not torch.equal(made.eval()(x), other)
    # Without a count there is no cumulative average: torch moves nothing.
    made.train()
    made.batch_norm.track_running_stats = True
    made.batch_norm.momentum = made.batch_norm.num_batches_tracked = None
    made(x)
    assert torch.equal(made.batch_norm.running_mean, before["running_mean"])


@pytest.mark.parametrize("kind", SHAPES)
def test_dimensions(kind, in_one_op):
    for shape in SHAPES[kind]:
        made = rso.NormLIF(norm(kind), neurons(shape[1:]))
        x = normal(shape, 5, 2.0)
        y = made(x)
        current = (
            x - x.double().mean([0, *range(2, x.dim())]).view(C, *(1,) * (x.dim() - 2))
        ).double()
        over = [0, *range(2, x.dim())]
        current = current / (x.double().var(over, correction=0) + 1e-5).sqrt().view(
            C, *(1,) * (x.dim() - 2)
        )
        weight, bias = (
            p.detach().view(C, *(1,) * (x.dim() - 2)) for p in made.batch_norm.parameters()
        )
        steps = (current * weight + bias).unflatten(0, (T, B))
        expected = rso.reference.lif(steps, made.lif.amplitude.detach().double())
        torch.testing.assert_close(y.double(), expected.flatten(0, 1))


@pytest.mark.parametrize("granularity", ["none", "layer", "channel", "element"])
@pytest.mark.parametrize("shared", ["none", "channel"])
def test_granularities_and_learnable_dynamics(granularity, shared):
    lif = neurons(
        granularity=granularity,
        decay_granularity=shared,
        threshold_granularity=shared,
        surrogate="atan",
    )
    made = rso.NormLIF(norm(), lif)
    pair = copy.deepcopy(made)
    assert_equal_training(
        made,
        lambda x, r: pair.lif(pair.batch_norm(x)),
        lambda step: (normal((T * B, C, 3, 5), step, 2.0), None),
    )
    assert_equal_states(made, pair)


def test_frozen_and_mixed_modes(in_one_op):
    made = rso.NormLIF(norm(), neurons())
    made.batch_norm.eval().requires_grad_(False)
    before = copy.deepcopy(made.batch_norm.state_dict())
    x = normal((T * B, C, 3, 5), 1).requires_grad_()
    made(x).sum().backward()
    assert all(torch.equal(t, before[name]) for name, t in made.batch_norm.state_dict().items())
    assert made.batch_norm.weight.grad is None
    assert x.grad.ne(0).any()
    assert made.lif.amplitude.grad.ne(0).any()


def test_the_layers_are_shared():
    bn, lif = norm(), neurons()
    made = rso.NormLIF(bn, lif)
    assert made.batch_norm is bn
    assert made.lif is lif
    assert set(made.state_dict()) == {
        *(f"batch_norm.{name}" for name in bn.state_dict()),
        "lif.amplitude",
    }
    x = normal((T * B, C, 3, 5), 1)
    first = made(x)
    with torch.no_grad():
        lif.amplitude.mul_(2)
    assert torch.equal(made(x), 2 * first)
    bn.eval()
    made(x)
    assert bn.num_batches_tracked == 2


@pytest.mark.parametrize("which", ["batch_norm", "lif"])
@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_run(which, kind):
    made = rso.NormLIF(norm(), neurons())
    called = []
    layer = getattr(made, which)
    handle = getattr(layer, f"register_{kind}")(lambda *args: called.append(args[0]))
    x = normal((T * B, C, 3, 5), 1).requires_grad_()
    made(x).sum().backward()
    assert called == [layer]
    handle.remove()
    made(x)
    assert len(called) == 1


def test_what_replaces_a_forward_runs():
    class Twice(rso.RealSpikeLIF):
        def forward(self, x):
            return super().forward(2 * x)

    x = normal((T * B, C, 3, 5), 1)
    made = rso.NormLIF(norm(), Twice(T))
    pair = copy.deepcopy(made)
    assert torch.equal(made(x), pair.lif(pair.batch_norm(x)))
    made = rso.NormLIF(norm(), neurons())
    made.batch_norm.forward = lambda x: x + 1
    assert torch.equal(made(x), made.lif(x + 1))


def test_lazy_neurons_get_their_shape():
    made = rso.NormLIF(norm(), rso.RealSpikeLIF(T, "element"))
    made(normal((T * B, C, 3, 5), 1))
    assert made.lif.amplitude.shape == (C, 3, 5)
    made(normal((T * B, C, 3, 5), 1)).sum().backward()
    assert made.lif.amplitude.grad is not None


def test_functional_call_and_parametrized_layers():
    made = rso.NormLIF(norm(), neurons())
    pair = copy.deepcopy(made)
    x = normal((T * B, C, 3, 5), 1, 2.0)
    others = {"batch_norm.bias": torch.full((C,), 0.7), "lif.amplitude": normal((C, 3, 5), 2)}

    def run_pair(module, x):
        return module.lif(module.batch_norm(x))

    y = torch.func.functional_call(made, others, (x,))
    with torch.no_grad():
        pair.batch_norm.bias.fill_(0.7)
        pair.lif.amplitude.copy_(others["lif.amplitude"])
    assert torch.equal(y, run_pair(pair, x))

    class Half(nn.Module):
        def forward(self, p):
            return p / 2

    for module, name in ((made.batch_norm, "weight"), (made.lif, "amplitude")):
        made_again = copy.deepcopy(made)
        parametrize.register_parametrization(
            made_again.batch_norm if module is made.batch_norm else made_again.lif, name, Half()
        )
        halved = copy.deepcopy(made)
        with torch.no_grad():
            getattr(halved.batch_norm if name == "weight" else halved.lif, name).div_(2)
        assert torch.equal(made_again(x), run_pair(halved, x))
        assert not torch.equal(made_again(x), made(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype, in_one_op):
    made = rso.NormLIF(norm(), neurons())
    x = normal((T * B, C, 3, 5), 1, 2.0).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = made(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == dtype
    assert made.batch_norm.weight.grad.dtype == torch.float32
    steps = x.detach().unflatten(0, (T, B))
    weight, bias = (p.detach() for p in made.batch_norm.parameters())
    expected = rso.reference.batch_norm_lif(
        steps, weight, bias, None, None, amplitude=made.lif.amplitude.detach()
    )
    assert torch.equal(y, expected.flatten(0, 1))


def test_other_dtypes_and_residuals_run_one_by_one():
    made = rso.NormLIF(norm(), neurons())
    pair = copy.deepcopy(made)
    x, residual = normal((T * B, C, 3, 5), 1, 2.0), normal((C, 3, 5), 2)
    assert torch.equal(made(x, residual), pair.lif(pair.batch_norm(x) + residual))
    made, pair = made.bfloat16(), pair.bfloat16()
    assert torch.equal(made(x.bfloat16()), pair.lif(pair.batch_norm(x.bfloat16())))


def test_compiled(in_one_op):
    made = rso.NormLIF(norm(), neurons())
    eager = copy.deepcopy(made)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert_equal_training(
        compiled,
        eager,
        lambda step: (normal((T * B, C, 3, 5), step, 2.0), normal((T * B, C, 3, 5), 3)),
    )
    assert_equal_states(made, eager)


def test_memory_of_a_step():
    """The normalised current and its sum with the residual are not kept."""
    made = rso.NormLIF(norm(), neurons())
    x, residual = (normal((T * B, C, 3, 5), n).requires_grad_() for n in (1, 2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(x, residual)
    maps = {t.data_ptr() for t in kept if t.numel() == x.numel()}
    assert maps == {x.data_ptr(), residual.data_ptr()}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(T * B, C), "expected 4D input"),
        (torch.zeros(T * B, C + 1, 3, 5), "running_mean should contain 5 elements"),
        (torch.zeros(T, C, 1, 1)[:1], "more than 1 value per channel"),
        (torch.zeros(T * B - 1, C, 3, 5), "2 timesteps divide"),
    ],
    ids=str,
)
def test_bad_input(x, message):
    made = rso.NormLIF(norm(), neurons())
    with pytest.raises((ValueError, RuntimeError), match=message):
        made(x)


@pytest.mark.parametrize("which", ["x", "residual", "weight", "bias", "amplitude"])
def test_tangents_are_refused(which, in_one_op):
    """They would vanish."""
    made = rso.NormLIF(norm(), neurons())
    with torch.no_grad(), forward_ad.dual_level():
        tensors = {name: normal((T * B, C, 3, 5), n) for n, name in enumerate(("x", "residual"))}
        tensors |= dict(made.batch_norm.named_parameters()) | {"amplitude": made.lif.amplitude}
        dual = forward_ad.make_dual(tensors[which].detach(), torch.ones_like(tensors[which]))
        given = {"x": tensors["x"], "residual": tensors["residual"]}
        layer = made.lif if which == "amplitude" else made.batch_norm
        if which in given:
            given[which] = dual
        else:
            delattr(layer, which)
            setattr(layer, which, dual)
        with pytest.raises(NotImplementedError, match=f"{which} carries a tangent"):
            made(*given.values())


def test_bad_layers():
    with pytest.raises(TypeError, match=r"batch_norm must be a BatchNorm1d or .*; got GroupNorm"):
        rso.NormLIF(nn.GroupNorm(1, C), neurons())
    with pytest.raises(TypeError, match="lif must be a RealSpikeLIF; got ReLU"):
        rso.NormLIF(norm(), nn.ReLU())


# --- statistics over processes --------------------------------------------------------------------


class _Separate(nn.Module):
    def __init__(self, batch_norm, lif):
        super().__init__()
        self.batch_norm, self.lif = batch_norm, lif

    def forward(self, x, residual=None):
        return self.lif(self.batch_norm(x) + (x if residual is None else residual))


def _sync_layers(x, residual, grad, momentum, fuse=False):
    bn = nn.SyncBatchNorm(C, momentum=momentum)
    with torch.no_grad():
        bn.bias.copy_(0.3 * normal((C,), 2))
    made = rso.NormLIF(bn, neurons())
    if fuse:
        made = rso.fuse(_Separate(bn, made.lif), x)
    for _ in range(2):
        x = x.detach().clone().requires_grad_()
        y = made(x, residual)
        y.backward(grad)
    parameters = [p.grad for p in made.parameters()]
    return {
        "y": y.detach(),
        "grad_x": x.grad,
        "parameters": parameters,
        "buffers": [b.clone() for b in made.buffers()],
    }


def _one_of_two(rank, folder, x, residual, grad):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    # Unequal shares: one image here, two there.
    part = slice(0, 1) if rank == 0 else slice(1, 3)
    mine = [t.unflatten(0, (T, B))[:, part].flatten(0, 1) for t in (x, residual, grad)]
    torch.save(_sync_layers(*mine, 0.3), folder / f"{rank}.pt")
    torch.save(_sync_layers(*mine, 0.3, fuse=True), folder / f"fused{rank}.pt")
    dist.destroy_process_group()


def test_statistics_of_two_processes(tmp_path):
    """Two processes with a part of a batch each are one process with all of it."""
    x, residual, grad = (normal((T * B, C, 3, 5), n, 2.0) for n in (1, 2, 3))
    torch.multiprocessing.start_processes(
        _one_of_two, (tmp_path, x, residual, grad), nprocs=2, start_method="fork"
    )
    whole = _sync_layers(x, residual, grad, 0.3)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in ("y", "grad_x"):
        halves = [part[name].unflatten(0, (T, -1)) for part in parts]
        torch.testing.assert_close(torch.cat(halves, 1).flatten(0, 1), whole[name])
    for n, grads in enumerate(whole["parameters"]):
        torch.testing.assert_close(parts[0]["parameters"][n] + parts[1]["parameters"][n], grads)
    for rank, part in enumerate(parts):
        fused = torch.load(tmp_path / f"fused{rank}.pt")
        assert torch.equal(fused["y"], part["y"])
        assert torch.equal(fused["grad_x"], part["grad_x"])
        for got, wanted in zip(part["buffers"], whole["buffers"], strict=True):
            torch.testing.assert_close(got, wanted)
