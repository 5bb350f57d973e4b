"""Calls on the CPU that are planned once for all tensors that lie alike, against the ops."""

import contextlib

import pytest
import torch
from helpers import normal
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import realspike_ops as rso
import realspike_ops.ops.batch_norm_lif_autograd as ops
from realspike_ops.ops.batch_norm_lif_plan import norm_plan_of
from realspike_ops.ops.lif_contract import SAVE_BITS, SAVE_POTENTIALS, Neuron

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
BASE = {
    "timesteps": 4,
    "shape": (8, 6, 5, 3),  # [T*B, C, H, W]
    "layout": "contiguous",
    "residual": None,  # its layout
    "amplitude": None,  # its sizes
    "dtype": torch.float32,
    "neuron": PAPERS,
    "save": SAVE_BITS,
    "affine": "dense",
    "training": True,
    "frozen": (),
}
# Each is served by a plan that the others do not fit.
PLANNED = [
    {},
    {"timesteps": 2},
    {"timesteps": None, "shape": (4, 2, 6, 5, 3)},
    {"shape": (4, 6, 5, 3)},
    {"shape": (8, 6, 3, 5)},
    {"shape": (8, 6, 15)},
    {"shape": (8, 6)},
    {"shape": (8, 5, 6, 3)},
    {"layout": "channels_last"},
    {"residual": "contiguous"},
    {"layout": "channels_last", "residual": "channels_last"},
    {"amplitude": (1,)},
    {"amplitude": (6, 1, 1)},
    {"amplitude": (6, 5, 3)},
    {"amplitude": (6, 1, 1), "layout": "channels_last"},
    {"amplitude": (6, 5, 3), "layout": "channels_last"},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16},
    {"neuron": PAPERS._replace(decay=0.5)},
    {"neuron": PAPERS._replace(ternary=True)},
    {"neuron": PAPERS._replace(reset="soft")},
    {"neuron": PAPERS._replace(detach_reset=False), "save": SAVE_POTENTIALS},
    {"save": SAVE_POTENTIALS, "residual": "contiguous"},
    {"save": SAVE_POTENTIALS, "timesteps": 16, "shape": (16, 6, 5, 3)},
    {"affine": None},
    {"training": False},
    {"training": False, "residual": "contiguous"},
    {"residual": "contiguous", "frozen": ("x",)},
    {"residual": "contiguous", "frozen": ("residual",)},
    {"frozen": ("x", "weight")},
    {"amplitude": (6, 5, 3), "frozen": ("amplitude", "bias")},
]
# Something has to be copied first.
COPIED = [
    {"layout": "strided"},
    {"residual": "channels_last"},
    {"residual": "strided"},
    {"affine": "strided"},
    {"timesteps": None, "shape": (4, 2, 6, 5, 3), "layout": "equal timesteps"},
]


def lay_out(x, layout):
    channels = 1 if x.dim() < 5 else 2
    if layout == "channels_last":
        return x.movedim(channels, -1).contiguous().movedim(-1, channels)
    if layout == "strided":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x[:1].expand_as(x) if layout == "equal timesteps" else x


def run(planned, *, timesteps, layout, shape, dtype, neuron, save, training, frozen, **given):
    """Return y and its gradients, from one call of the ops' function or from the ops themselves."""
    C = shape[1 if timesteps else 2]
    x = lay_out(normal(shape, 1).to(dtype), layout)
    residual = given["residual"] and lay_out(normal(shape, 2).to(dtype), given["residual"])
    channels = [normal((2 * C,), seed).abs()[::2] for seed in (3, 4, 5, 6)]
    if given["affine"] != "strided":
        channels = [t.contiguous() for t in channels]
    if given["affine"] is None:
        channels[2:] = None, None
    amplitude = given["amplitude"] and normal(given["amplitude"], 7)
    count = torch.tensor([x.numel() / C], dtype=torch.float64) if training else None
    tensors = [x, residual, *channels, amplitude]
    named = ("x", "residual", None, None, "weight", "bias", "amplitude")
    leaves = []
    for name, tensor in zip(named, tensors, strict=True):
        if name is not None and tensor is not None and name not in frozen:
            leaves.append(tensor.requires_grad_())
    tensors += [None] * 3
    if planned:
        y = ops.batch_norm_lif(*tensors, neuron, save, False, count, None, False, timesteps)
    else:
        if timesteps:
            steps = (timesteps, shape[0] // timesteps)
            tensors[:2] = (None if t is None else t.unflatten(0, steps) for t in tensors[:2])
        op = torch.ops.realspike.batch_norm_lif_fwd
        y = op(*tensors, *neuron, save, False, count)[0]
        y = y.flatten(0, 1) if timesteps else y
    grad_y = normal(shape, 8).to(dtype)
    return [y, *torch.autograd.grad(y, leaves, grad_y)]


def test_every_call_has_the_plan_that_fits():
    """In whatever order calls come that differ in one thing each, both do the same, to the bit."""
    calls = [BASE | change for change in PLANNED + COPIED]
    expected = [run(False, **call) for call in calls]
    norm_plan_of.cache_clear()
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for i in order:
            found = run(True, **calls[i])
            for one, other in zip(found, expected[i], strict=True):
                assert torch.equal(one, other), calls[i]
                assert one.dtype == other.dtype
            assert found[0].stride() == expected[i][0].stride(), calls[i]


@pytest.mark.parametrize("change", PLANNED + COPIED, ids=str)
def test_what_is_planned(change):
    """What lies as the kernels read it, once; for anything else there is no plan."""
    norm_plan_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        plans = []
        planned = ops.batch_norm_lif_plan.planned_fwd
        patch.setattr(
            ops.batch_norm_lif_plan, "planned_fwd", lambda *args: plans.append(1) or planned(*args)
        )
        for _ in range(3):
            run(True, **(BASE | change))
    assert plans == [1] * (3 if change in PLANNED else 0)
    assert norm_plan_of.cache_info().misses <= 1


def layer_and_inputs(seed=1):
    layer = rso.NormLIF(nn.BatchNorm2d(6), rso.RealSpikeLIF(4, "element", shape=(6, 5, 3)))
    return layer, *(normal((8, 6, 5, 3), seed + i).requires_grad_() for i in range(2))


def test_gradients_with_a_graph_are_the_same_and_have_none():
    layer, x, residual = layer_and_inputs()
    leaves = [x, residual, *layer.parameters()]
    grad_y = normal(x.shape, 3)
    plain = torch.autograd.grad(layer(x, residual), leaves, grad_y)
    graphed = torch.autograd.grad(layer(x, residual), leaves, grad_y, create_graph=True)
    assert all(map(torch.equal, plain, graphed))
    with pytest.raises(RuntimeError, match="no second derivative"):
        graphed[0].sum().backward()


def test_gradients_of_a_batch_are_those_one_by_one():
    """``is_grads_batched=True`` maps the ops; the tensor of a batch has no memory of its own."""
    layer, x, residual = layer_and_inputs()
    leaves = [x, residual, *layer.parameters()]
    y, grads_y = layer(x, residual), normal((3, *x.shape), 3)
    together = torch.autograd.grad(y, leaves, grads_y, retain_graph=True, is_grads_batched=True)
    for i, grad_y in enumerate(grads_y):
        one = torch.autograd.grad(y, leaves, grad_y, retain_graph=True)
        assert all(
            torch.equal(all_of[i], of_one) for all_of, of_one in zip(together, one, strict=True)
        )


def test_spikes_of_a_layer_may_change_in_place():
    layer, x, residual = layer_and_inputs()
    grads = []
    for in_place in (False, True):
        y = layer(x, residual)
        y = y.mul_(2.0) if in_place else y * 2.0
        grads.append(torch.autograd.grad(y, [x, residual, *layer.parameters()], normal(x.shape, 3)))
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("timesteps", "detach_reset"), [(4, True), (4, False), (9, False)])
def test_spikes_of_a_layer_are_made_again(timesteps, detach_reset, layout):
    """Whoever makes them, from the bits that are kept or by running the neurons, knows T."""
    lif = rso.RealSpikeLIF(timesteps, "channel", (6, 5, 3), detach_reset=detach_reset)
    layer, conv = rso.NormLIF(nn.BatchNorm2d(6), lif), nn.Conv2d(6, 2, 3)
    x = lay_out(normal((2 * timesteps, 6, 5, 3), 1), layout).requires_grad_()
    residual = lay_out(normal(x.shape, 2), layout).requires_grad_()
    leaves = [x, residual, conv.weight, *layer.parameters()]
    grads = []
    for compress, backward in (
        (False, contextlib.nullcontext()),
        (True, contextlib.nullcontext()),
        (True, FlopCounterMode(display=False)),
    ):
        with rso.compress_spikes() if compress else contextlib.nullcontext():
            out = conv(layer(x, residual)).square().sum()
        with backward:
            grads.append(torch.autograd.grad(out, leaves))
    for made_again in grads[1:]:
        assert all(map(torch.equal, grads[0], made_again))


@pytest.mark.parametrize("granularity", ["none", "element"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_hooks_on_saved_tensors_may_lay_them_out_anew(layout, granularity):
    grads = []
    for saved_as in ("contiguous", "channels_last", layout):
        bits = granularity == "element"
        lif = rso.RealSpikeLIF(4, granularity, shape=(6, 5, 3), detach_reset=bits)
        layer = rso.NormLIF(nn.BatchNorm2d(6), lif)
        x = lay_out(normal((8, 6, 5, 3), 1), layout).requires_grad_()
        residual = lay_out(normal(x.shape, 2), layout).requires_grad_()

        def pack(t, saved_as=saved_as):
            return lay_out(t.contiguous(), saved_as) if t.dim() > 3 else t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = layer(x, residual)
        grads.append(torch.autograd.grad(y, [x, residual], normal(x.shape, 3)))
    for other in grads[1:]:
        assert all(map(torch.equal, grads[0], other))


def test_plans_keep_no_tensor():
    plan = norm_plan_of(
        4, PAPERS, SAVE_BITS, SAVE_BITS, (8, 6, 5, 3), (90, 15, 3, 1), torch.float32, None, None
    )
    assert plan is not None
    values = (*plan.lif, *plan.lif.saved, *plan.norm)
    assert not any(isinstance(value, torch.Tensor) for value in values)


@pytest.mark.parametrize("granularity", ["none", "element"])
@pytest.mark.parametrize(("timesteps", "detach_reset"), [(4, True), (4, False), (9, False)])
@pytest.mark.parametrize("is_normed", [True, False])
def test_hooks_on_saved_tensors_may_leave_gaps(is_normed, timesteps, detach_reset, granularity):
    grads = []
    for gaps in (False, True):
        lif = rso.RealSpikeLIF(timesteps, granularity, (6, 5, 3), detach_reset=detach_reset)
        layer = rso.NormLIF(nn.BatchNorm2d(6), lif) if is_normed else lif
        x = normal((2 * timesteps, 6, 5, 3), 1).requires_grad_()

        def unpack(t, gaps=gaps):
            return torch.stack((t, t + 1), -1)[..., 0] if gaps else t

        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y = layer(x)
        grads.append(torch.autograd.grad(y, [x, *layer.parameters()], normal(x.shape, 3)))
    assert all(map(torch.equal, *grads))
