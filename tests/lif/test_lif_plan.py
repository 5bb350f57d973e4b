"""Calls on the CPU that are planned once for all tensors that lie alike, against the op."""

import pytest
import torch
from helpers import normal

import realspike_ops.ops.lif_autograd as ops
from realspike_ops.ops import lif_plan
from realspike_ops.ops.lif_contract import SAVE_BITS, SAVE_NOTHING, SAVE_POTENTIALS, Neuron

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
ATTACHED = PAPERS._replace(detach_reset=False)
BASE = {
    "shape": (4, 2, 6, 5, 3),  # [T, B, C, H, W]
    "layout": "contiguous",
    "gradient": "contiguous",
    "amplitude": None,  # its sizes
    "strided": False,  # whether its values lie apart
    "dtype": torch.float32,
    "neuron": PAPERS,
    "save": SAVE_BITS,
    "frozen": (),
    "beside": (),  # what else the neurons have, or give
}
# Each is served by a plan that the others do not fit.
PLANNED = [
    {},
    {"shape": (2, 4, 6, 5, 3)},
    {"shape": (4, 2, 6, 3, 5)},
    {"shape": (4, 2, 90)},
    {"shape": (4, 180)},
    {"layout": "channels_last"},
    {"layout": "channels_last", "gradient": "channels_last"},
    {"gradient": "strided"},
    {"gradient": "equal timesteps"},
    {"amplitude": (1,)},
    {"amplitude": (6, 1, 1)},
    {"amplitude": (6, 5, 3)},
    {"amplitude": (6, 1, 1), "layout": "channels_last"},
    {"amplitude": (6, 5, 3), "layout": "channels_last"},
    {"amplitude": (6, 5, 3), "strided": True},
    {"amplitude": (6, 5, 3), "frozen": ("x",)},
    {"amplitude": (6, 5, 3), "frozen": ("amplitude",)},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float16},
    {"neuron": PAPERS._replace(decay=0.5)},
    {"neuron": PAPERS._replace(v_threshold=0.25)},
    {"neuron": PAPERS._replace(ternary=True)},
    {"neuron": PAPERS._replace(reset="soft")},
    {"neuron": ATTACHED, "save": SAVE_POTENTIALS},
    {"neuron": ATTACHED, "save": SAVE_POTENTIALS, "shape": (17, 2, 6, 5, 3)},
    {"neuron": ATTACHED, "save": SAVE_POTENTIALS, "amplitude": (6, 5, 3)},
    {"save": SAVE_NOTHING},
    {"save": SAVE_NOTHING, "amplitude": (6, 5, 3)},
]
# Something has to be copied first, or there is more than a plan knows of.
OTHERS = [
    {"layout": "strided"},
    {"layout": "equal timesteps"},
    {"beside": ("decay",), "save": SAVE_POTENTIALS},
    {"beside": ("v_threshold",), "save": SAVE_POTENTIALS},
    {"beside": ("v_init",)},
    {"beside": ("v_last",)},
    {"shape": (4, 0, 6, 5, 3)},
]


def lay_out(x, layout):
    if layout == "channels_last":
        return x.movedim(2, -1).contiguous().movedim(-1, 2)
    if layout == "strided":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x[:1].expand_as(x) if layout == "equal timesteps" else x


def run(planned, *, shape, layout, gradient, dtype, neuron, save, frozen, beside, **given):
    """Return y, v_last and their gradients, from the function that plans or from the op."""
    x = lay_out(normal(shape, 1).to(dtype), layout)
    amplitude = given["amplitude"] and normal((*given["amplitude"], 2), 2)[..., 0]
    if amplitude is not None and not given["strided"]:
        amplitude = amplitude.contiguous()
    tensors = {"x": x, "amplitude": amplitude}
    for seed, name in enumerate(("decay", "v_threshold", "v_init"), 3):
        tensors[name] = normal(shape[1 if name == "v_init" else 2 :], seed).abs()
        tensors[name] = tensors[name] if name in beside else None
    leaves = [t for name, t in tensors.items() if t is not None and name not in frozen]
    if save != SAVE_NOTHING:
        leaves = [leaf.requires_grad_() for leaf in leaves]
    keep_state = "v_last" in beside
    if planned:
        found = ops.lif(*tensors.values(), neuron, save, keep_state, True)
        y, v_last = found if keep_state else (found, None)
    else:
        op = torch.ops.realspike.lif_fwd
        y, v_last, _ = op(*tensors.values(), *neuron, save, keep_state)
    outputs = [y, v_last] if keep_state else [y]
    if save == SAVE_NOTHING:
        return outputs
    grads = [lay_out(normal(shape, 8).to(dtype), gradient), normal(shape[1:], 9)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads[: len(outputs)])]


def test_every_call_has_the_plan_that_fits():
    """In whatever order calls come that differ in one thing each, both do the same, to the bit."""
    calls = [BASE | change for change in PLANNED + OTHERS]
    expected = [run(False, **call) for call in calls]
    lif_plan.plan_of.cache_clear()
    for order in (range(len(calls)), reversed(range(len(calls)))):
        for i in order:
            found = run(True, **calls[i])
            for one, other in zip(found, expected[i], strict=True):
                assert torch.equal(one, other), calls[i]
                assert (one.dtype, one.stride()) == (other.dtype, other.stride()), calls[i]


@pytest.mark.parametrize("change", PLANNED + OTHERS, ids=str)
def test_what_is_planned(change, monkeypatch):
    """What lies as the kernels read it, once; for anything else there is no plan."""
    lif_plan.plan_of.cache_clear()
    plans, planned = [], lif_plan.planned_fwd
    monkeypatch.setattr(lif_plan, "planned_fwd", lambda *args: plans.append(1) or planned(*args))
    for _ in range(3):
        run(True, **(BASE | change))
    assert plans == [1] * (3 if change in PLANNED else 0)
    assert lif_plan.plan_of.cache_info().misses <= 1


def test_plans_keep_no_tensor():
    sizes = ((4, 2, 90), (180, 90, 1), torch.float32, ((90,), (1,)))
    plan = lif_plan.plan_of(None, PAPERS, SAVE_BITS, SAVE_BITS, *sizes)
    assert plan is not None
    assert not any(isinstance(value, torch.Tensor) for value in (*plan, *plan.saved))
