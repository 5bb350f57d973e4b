"""realspike_ops.lif under what torch does to a function, for the forms beyond the paper's neuron:
pieces of a sequence, threads, vmap, checkpoint, autocast, compile; and the layer."""

import itertools

import pytest
import torch
from helpers import grid, normal
from lif_cases import lay_out
from torch.utils.checkpoint import checkpoint

import realspike_ops as rso

FORMS = {
    # id: (form, which of (amplitude, decay, v_threshold) are tensors, learnable)
    "ternary-bits": ({"emission": "ternary", "detach_reset": True}, (True, False, False), True),
    "ternary-soft": ({"emission": "ternary", "reset": "soft"}, (True, False, False), True),
    "none-bits": ({"reset": "none"}, (True, False, False), True),
    "frozen": ({"detach_reset": True}, (True, True, True), False),
    "learnable": ({"v_reset": -0.25}, (True, True, True), True),
    "learnable-decay": ({"detach_reset": True}, (False, True, False), True),
    "learnable-ternary-soft-atan": (
        {"emission": "ternary", "reset": "soft", "surrogate": "atan"},
        (True, True, True),
        True,
    ),
    "learnable-delayed": ({"reset": "soft_delayed"}, (True, True, True), True),
    "learnable-none": ({"reset": "none", "surrogate": "triangle"}, (False, True, True), True),
}
STARTS = (1.5, 0.5, 0.625)


def parameters(form, device, size=(3, 1, 1)):
    """Return (amplitude, {decay, v_threshold}, what requires a gradient)."""
    _, which, learn = FORMS[form]
    made = [
        torch.full(size, start, device=device).requires_grad_(learn) if is_tensor else None
        for is_tensor, start in zip(which, STARTS, strict=True)
    ]
    amplitude, decay, v_threshold = made
    tensors = {"decay": 0.5 if decay is None else decay}
    tensors["v_threshold"] = 0.625 if v_threshold is None else v_threshold
    return amplitude, tensors, [t for t in made if t is not None and learn]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pieces", [[3, 4, 1], [1] * 9, [8, 9], [16, 3]], ids=str)
def test_pieces_equal_one_run(form, pieces, device):
    amplitude, tensors, learnable = parameters(form, device)
    whole = normal((sum(pieces), 2, 3, 5, 1), 5).to(device).requires_grad_()
    grad_y, grad_v = normal(whole.shape, 6).to(device), normal(whole.shape[1:], 7).to(device)
    v_init = normal(whole.shape[1:], 8).to(device).requires_grad_()
    results = []
    for lengths in ([sum(pieces)], pieces):
        ys, v = [], v_init
        for piece in whole.split(lengths):
            y, v = rso.lif(
                *(piece, amplitude), v_init=v, return_state=True, **tensors, **FORMS[form][0]
            )
            ys.append(y)
        grads = torch.autograd.grad(
            [torch.cat(ys), v], [whole, v_init, *learnable], [grad_y, grad_v]
        )
        results.append([torch.cat(ys), v, *grads])
    for i, (one_run, in_pieces) in enumerate(zip(*results, strict=True)):
        if i < 4:
            assert torch.equal(in_pieces, one_run)
        else:  # a parameter's gradient is one sum, or a sum of sums
            torch.testing.assert_close(in_pieces, one_run, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["learnable", "learnable-ternary-soft-atan", "ternary-bits"])
@pytest.mark.parametrize("size", [(1,), (3, 1, 1), (3, 30, 31)], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads(layout, size, form, device):
    x = lay_out(normal((5, 6, 3, 30, 31), 1).to(device), layout).requires_grad_()
    grad_y = normal(x.shape, 2).to(device)
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            amplitude, tensors, learnable = parameters(form, device, size)
            y = rso.lif(x, amplitude, **tensors, **FORMS[form][0])
            outcomes.append(torch.autograd.grad(y, [x, *learnable], grad_y))
    finally:
        torch.set_num_threads(threads)
    for outcome in outcomes[1:]:
        for a, b in zip(outcome, outcomes[0], strict=True):
            assert torch.equal(a, b)


def trains(form, transform, device):
    """Return y and every gradient of `transform(lif)`."""
    amplitude, tensors, learnable = parameters(form, device)

    def run(x):
        return rso.lif(x * 1.25, amplitude, **tensors, **FORMS[form][0])

    x = normal((6, 2, 3, 4, 5), 1).to(device).requires_grad_()
    y = transform(run)(x)
    return y, *torch.autograd.grad(
        (y.float() * normal(y.shape, 2).to(device)).sum(), [x, *learnable]
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transform", ["checkpoint", "compile"])
def test_transformed_training_equals_eager(transform, form, device):
    torch._dynamo.reset()
    transforms = {
        "checkpoint": lambda run: lambda x: checkpoint(run, x, use_reentrant=False),
        "compile": lambda run: torch.compile(run, fullgraph=True, backend="aot_eager"),
    }
    eager = trains(form, lambda run: run, device)
    for a, b in zip(trains(form, transforms[transform], device), eager, strict=True):
        assert torch.equal(a, b)
    assert all(t.any() for t in eager)


@pytest.mark.parametrize("form", ["learnable", "ternary-bits"])
def test_autocast_keeps_the_state_in_float32(form, device):
    """x arrives in the low precision of the layer before; the parameters stay float32."""
    weight = normal((3, 3, 1, 1), 1).to(device)
    maps = normal((8, 3, 4, 5), 2).to(device)
    amplitude, tensors, learnable = parameters(form, device)
    with torch.autocast(device.type, torch.bfloat16):
        x = torch.nn.functional.conv2d(maps, weight).unflatten(0, (4, 2))
        y, v_last = rso.lif(x, amplitude, return_state=True, **tensors, **FORMS[form][0])
    assert x.dtype == y.dtype == torch.bfloat16
    assert v_last.dtype == torch.float32
    plain, plain_v = rso.lif(x, amplitude, return_state=True, **tensors, **FORMS[form][0])
    assert torch.equal(y, plain)
    assert torch.equal(v_last, plain_v)
    y.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in learnable)


@pytest.mark.parametrize("form", ["ternary-bits", "none-bits", "frozen"])
@pytest.mark.parametrize("in_dims", [(0, 0), (2, 1), (-1, None), (None, 0)], ids=str)
def test_vmap_in_inference(in_dims, form, device):
    amplitude, tensors, _ = parameters(form, device)
    amplitude = amplitude.detach()
    x_dim, v_dim = in_dims
    x, v_init = normal((5, 2, 3, 4, 6), 1).to(device), normal((2, 3, 4, 6), 2).to(device)
    xs, vs = (torch.stack([t, t.flip(0) + 0.25, t - 0.5]) for t in (x, v_init))
    each = [
        rso.lif(
            *(x if x_dim is None else xs[i], amplitude),
            v_init=v_init if v_dim is None else vs[i],
            return_state=True,
            **tensors,
            **FORMS[form][0],
        )
        for i in range(3)
    ]
    mapped = torch.func.vmap(
        lambda x, v: rso.lif(
            x, amplitude, v_init=v, return_state=True, **tensors, **FORMS[form][0]
        ),
        in_dims=in_dims,
    )(
        x if x_dim is None else xs.movedim(0, x_dim),
        v_init if v_dim is None else vs.movedim(0, v_dim),
    )
    for together, alone in zip(mapped, zip(*each, strict=True), strict=True):
        assert torch.equal(together, torch.stack(alone))


def test_vmap_without_state_and_over_x_alone(device):
    xs = normal((3, 5, 2, 4), 1).to(device)
    assert torch.equal(torch.func.vmap(rso.lif)(xs), torch.stack([rso.lif(x) for x in xs]))
    empty = torch.func.vmap(rso.lif)(xs[:, :, :0])
    assert empty.shape == (3, 5, 0, 4)


def test_what_functorch_cannot_do_is_refused(device):
    x, amplitude = normal((4, 2, 3), 1).to(device), torch.ones(5, 3, device=device)
    scalar = {
        "grad": lambda: torch.func.grad(lambda x: rso.lif(x).sum())(x),
        "vjp": lambda: torch.func.vjp(rso.lif, x),
        "jacrev": lambda: torch.func.jacrev(rso.lif)(x),
        "vmap-amplitude": lambda: torch.func.vmap(lambda a: rso.lif(x, a))(amplitude),
        "vmap-decay": lambda: torch.func.vmap(lambda d: rso.lif(x, decay=d))(amplitude),
        "vmap-threshold": lambda: torch.func.vmap(lambda v: rso.lif(x, v_threshold=v))(amplitude),
        "vmap-of-grad": lambda: torch.func.vmap(torch.func.grad(lambda x: rso.lif(x).sum()))(
            x[None, :]
        ),
    }
    for name, call in scalar.items():
        with pytest.raises(NotImplementedError, match=r"lif: torch\.func") as raised:
            call()
        assert "reference" in str(raised.value), name


def test_vmap_with_a_gradient_is_refused(device):
    xs = normal((3, 4, 2, 3), 1).to(device).requires_grad_()
    with pytest.raises((NotImplementedError, RuntimeError), match="vmap"):
        torch.func.vmap(rso.lif)(xs).sum().backward()


@pytest.mark.filterwarnings("error")  # of torch, where it would loop over the samples
@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_packed_vmap(emission, device):
    xs, vs = normal((4, 3, 2, 34, 5), 1).to(device), normal((3, 2, 34, 5), 2).to(device)
    form = {"emission": emission, "packed": True}
    mapped = torch.func.vmap(lambda x: rso.lif(x, **form), in_dims=1)(xs)
    assert torch.equal(mapped, torch.stack([rso.lif(x, **form) for x in xs.unbind(1)]))
    form["return_state"] = True
    together = torch.func.vmap(lambda x, v: rso.lif(x, v_init=v, **form), in_dims=(1, 0))(xs, vs)
    alone = [rso.lif(x, v_init=v, **form) for x, v in zip(xs.unbind(1), vs, strict=True)]
    for left, right in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(left, torch.stack(right))
    decays = normal((3, 34, 1), 3).to(device)
    with pytest.raises(NotImplementedError, match=r"lif: torch\.func"):
        torch.func.vmap(lambda d: rso.lif(xs, decay=d, packed=True))(decays)


GRANULARITIES = ("none", "layer", "channel", "element")
SIZES = {"layer": (1,), "channel": (3, 1, 1), "element": (3, 4, 5)}


@pytest.mark.parametrize(("decay", "threshold"), list(itertools.product(GRANULARITIES, repeat=2)))
def test_layer_with_learnable_dynamics(decay, threshold, device):
    layer = rso.RealSpikeLIF(
        *(4, "channel", (3, 4, 5)),
        decay=0.75,
        v_threshold=0.625,
        decay_granularity=decay,
        threshold_granularity=threshold,
        emission="ternary",
        reset="soft",
        device=device,
    )
    names = {name for name, _ in layer.named_parameters()}
    expected = {"amplitude"}
    expected |= {"decay_logit"} if decay != "none" else set()
    expected |= {"v_threshold"} if threshold != "none" else set()
    assert names == expected
    x = grid((8, 3, 4, 5), 1).to(device)
    form = {"emission": "ternary", "reset": "soft"}
    y = layer(x)
    now = rso.reference.lif(
        x.unflatten(0, (4, 2)), layer.amplitude, decay=layer.decay, v_threshold=layer.v_threshold,
        **form,
    )  # fmt: skip
    assert torch.equal(y, now.flatten(0, 1))
    if decay != "none":
        assert layer.decay.shape == SIZES[decay]
        torch.testing.assert_close(layer.decay, torch.full_like(layer.decay, 0.75))
    if threshold != "none":
        assert layer.v_threshold.shape == SIZES[threshold]
        assert (layer.v_threshold == 0.625).all()
    (y * normal(y.shape, 2).to(device)).sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.abs().sum() > 0
    copy = rso.RealSpikeLIF(
        *(4, "channel", (3, 4, 5)), decay=0.5, decay_granularity=decay,
        threshold_granularity=threshold, device=device,
    )  # fmt: skip
    copy.load_state_dict(layer.state_dict())
    for name, parameter in copy.named_parameters():
        assert torch.equal(parameter, layer.get_parameter(name))


@pytest.mark.parametrize("detach_reset", [True, False], ids=["detached", "attached"])
def test_shapes_alone_on_meta(detach_reset):
    x = torch.empty((4, 2, 3, 5, 5), device="meta", requires_grad=True)
    amplitude = torch.empty((3, 1, 1), device="meta", requires_grad=True)
    y = rso.lif(x, amplitude, detach_reset=detach_reset)
    grads = torch.autograd.grad(y.sum(), [x, amplitude])
    assert [g.shape for g in grads] == [x.shape, amplitude.shape]
    assert all(g.device.type == "meta" for g in grads)
