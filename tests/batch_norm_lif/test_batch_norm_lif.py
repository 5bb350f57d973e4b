"""realspike_ops.batch_norm_lif: tables by hand; then, over shapes, memory formats, dtypes and forms
of the neuron, the reference's spikes bit for bit, and its gradients in float64."""

import pytest
import torch
from helpers import HALF_ULP, examples, grid, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from lif_cases import DTYPES, LAYOUTS, SCALES, lay_out, parameter_sizes
from torch import nn
from torch.autograd import forward_ad

import realspike_ops as rso
from realspike_ops.ops import batch_norm_lif_autograd as ops

BELOW_HALF = 0.5 - 2**-25  # the float32 before 0.5

# --- by hand --------------------------------------------------------------------------------------


def values(numbers, device) -> torch.Tensor:  # [T, B = 1, C = 1]
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None]


# x is -1, 1, -1, 1: the mean is 0 and the biased variance 1. Decay 0 unless stated, eps 0.
BATCH = {
    # id: (weight, bias, residual, neuron, spikes)
    "tie-fires": (0.5, 0.0, None, {}, [0, 1, 0, 1]),
    "weight-below-the-tie": (BELOW_HALF, 0.0, None, {}, [0, 0, 0, 0]),
    "no-weight": (None, 0.0, None, {"v_threshold": 1.0}, [0, 1, 0, 1]),
    "no-bias": (0.5, None, None, {}, [0, 1, 0, 1]),
    "bias-to-a-tie": (0.25, 0.25, None, {}, [0, 1, 0, 1]),
    "negative-weight": (-0.5, 0.0, None, {}, [1, 0, 1, 0]),
    "weight-0": (0.0, 0.5, None, {}, [1, 1, 1, 1]),
    "residual-behind-the-norm": (0.25, 0.0, [0.75, 0.25, 0.5, 0.0], {}, [1, 1, 0, 0]),
    "residual-alone": (0.0, 0.0, [0.5, BELOW_HALF, 1.0, -1.0], {}, [1, 0, 1, 0]),
    # h = -.5, .25, -.375, .3125
    "decay": (0.5, 0.0, None, {"decay": 0.5, "v_threshold": 0.3125}, [0, 0, 0, 1]),
    "ternary": (0.5, 0.0, None, {"emission": "ternary"}, [-1, 1, -1, 1]),
}


@pytest.mark.parametrize("case", BATCH)
def test_batch_statistics_by_hand(case, device):
    weight, bias, residual, neuron, spikes = BATCH[case]

    def one(value):
        return None if value is None else torch.tensor([value], device=device)

    residual = None if residual is None else values(residual, device)
    neuron = {"decay": 0.0, **neuron}
    x = values([-1, 1, -1, 1], device)
    y = rso.batch_norm_lif(
        x, one(weight), one(bias), None, None, residual=residual, eps=0.0, **neuron
    )
    assert y.flatten().tolist() == spikes


def test_running_statistics_by_hand(device):
    """They move by the momentum; the variance, 4 over 4 values, enters as 16 / 3."""
    mean, var = torch.tensor([3.0], device=device), torch.tensor([1.0], device=device)
    x = values([-1, 3, -1, 3], device)
    rso.batch_norm_lif(x, None, None, mean, var, momentum=0.25)
    assert mean.item() == 2.5
    assert var.item() == pytest.approx(0.75 + 4 / 3, rel=1e-6)
    rso.batch_norm_lif(x, None, None, mean, var, momentum=0.0)
    assert mean.item() == 2.5
    rso.batch_norm_lif(x, None, None, mean, var, momentum=1.0)
    assert mean.item() == 1.0
    assert var.item() == pytest.approx(16 / 3, rel=1e-6)


def test_inference_normalises_by_the_running_statistics(device):
    """(x - 2) / sqrt(3 + 1) * 1 + 0.25: a tie at x = 2.5; the statistics stay."""
    mean, var = torch.tensor([2.0], device=device), torch.tensor([3.0], device=device)
    one, bias = torch.ones(1, device=device), torch.tensor([0.25], device=device)
    x = values([2.5, 2.5 - 2**-22, 3.0, -9.0], device)
    y = rso.batch_norm_lif(x, one, bias, mean, var, training=False, eps=1.0, decay=0.0)
    assert y.flatten().tolist() == [1, 0, 1, 0]
    assert (mean.item(), var.item()) == (2.0, 3.0)


def test_inference_without_running_statistics_takes_those_of_the_batch(device):
    x = values([-1, 1, -1, 1], device)
    half = torch.tensor([0.5], device=device)
    y = rso.batch_norm_lif(x, half, None, None, None, training=False, eps=0.0, decay=0.0)
    assert y.flatten().tolist() == [0, 1, 0, 1]


def test_gradients_by_hand(device):
    """grad_x of x = -1, 1, -1, 1 for the gradient 1, 0, 0, 0 of the current, whose share along the
    constant (1/4) and along x (-1/4) the statistics take away; both slopes of the window are 1."""
    x = values([-1, 1, -1, 1], device).requires_grad_()
    weight = torch.tensor([0.5], device=device, requires_grad=True)
    bias = torch.zeros(1, device=device, requires_grad=True)
    residual = values([0.5, 0.0, 0.5, 0.0], device).requires_grad_()
    y = rso.batch_norm_lif(
        x, weight, bias, None, None, residual=residual, eps=0.0, decay=0.0, detach_reset=True
    )
    y.backward(values([1, 0, 0, 0], device))
    assert x.grad.flatten().tolist() == [0.25, 0.0, -0.25, 0.0]
    assert residual.grad.flatten().tolist() == [1, 0, 0, 0]
    assert weight.grad.tolist() == [-1.0]
    assert bias.grad.tolist() == [1.0]


# --- the sweep ------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.tuples(st.sampled_from([2, 3]), st.sampled_from([1, 5, 33])),
    st.tuples(st.sampled_from([2, 3]), st.sampled_from([1, 2, 65]), st.sampled_from([1, 9])),
    st.tuples(
        st.sampled_from([2, 3]),
        st.sampled_from([1, 2, 5, 17]),
        st.sampled_from([1, 2, 7]),
        st.sampled_from([1, 3, 6]),
    ),
)


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    name = draw(st.sampled_from(sorted(SCALES)))
    return {
        "shape": (draw(st.sampled_from([1, 2, 4, 5, 8, 9, 17])), *shape),
        "amplitude": draw(parameter_sizes(shape)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "residual": draw(st.sampled_from([None, *LAYOUTS])),
        "grad_layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "offset"])),
        "dtype": draw(st.sampled_from([torch.float32, *DTYPES])),
        "affine": draw(st.booleans()),
        "training": draw(st.booleans()),
        "v_init": draw(st.booleans()),
        "learn": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**20)),
        "neuron": {
            "reset": draw(st.sampled_from(["hard", "soft", "none", "soft_delayed"])),
            "v_reset": draw(st.sampled_from([0.0, -0.25])),
            "detach_reset": draw(st.booleans()),
            "emission": draw(st.sampled_from(["binary", "ternary"])),
            "surrogate": (name, SCALES[name]),
        },
    }


def make_inputs(case, device, dtype=None):
    """Return the arguments of a case and the tensors that are to get a gradient."""
    shape, seed = case["shape"], case["seed"]
    C = shape[2]
    dtype = dtype or case["dtype"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def tensor(size, number, scale=1.0, offset=0.0, dtype=wide):
        return (normal(size, seed + number, scale) + offset).to(device, dtype)

    # Rounded to the dtype of the case, also where float64 is asked for.
    x = (normal(shape, seed) * 1.5 + 0.75).to(case["dtype"]).to(device, dtype)
    x = lay_out(x, case["layout"]).requires_grad_()
    leaves = {"x": x}
    arguments = {"training": case["training"]}
    if case["affine"]:
        leaves["weight"] = tensor((C,), 1, 0.25, 1.0).requires_grad_()
        leaves["bias"] = tensor((C,), 2, 0.25).requires_grad_()
    arguments["running_mean"] = tensor((C,), 3, 0.25, 0.75)
    arguments["running_var"] = tensor((C,), 4, 0.1, 1.5).abs()
    if case["residual"] is not None:
        residual = normal(shape, seed + 5, 0.5).to(case["dtype"]).to(device, dtype)
        leaves["residual"] = lay_out(residual, case["residual"]).requires_grad_()
    if case["amplitude"] is not None:
        leaves["amplitude"] = tensor(case["amplitude"], 6, 0.25, 1.0).requires_grad_()
    if case["v_init"]:
        leaves["v_init"] = tensor((shape[1:]), 7).requires_grad_()
    if case["learn"]:
        leaves["decay"] = torch.full((1,), 0.4, device=device, dtype=wide).requires_grad_()
        leaves["v_threshold"] = torch.full((1,), 0.7, device=device, dtype=wide).requires_grad_()
    neuron = {key: value for key, value in case["neuron"].items() if key != "v_reset"}
    if neuron["reset"] == "hard":
        neuron["v_reset"] = case["neuron"]["v_reset"]
    return leaves, arguments | neuron


def call(function, leaves, arguments):
    arguments = {**leaves, **arguments}
    tensors = [arguments.pop(name, None) for name in NAMES]
    return function(*tensors, return_state=True, **arguments)


NAMES = ("x", "weight", "bias", "running_mean", "running_var")


def run(function, case, device, dtype=None):
    """Return (y, v_last), the gradients by name, and the running statistics."""
    leaves, arguments = make_inputs(case, device, dtype)
    y, v_last = call(function, leaves, arguments)
    grad_y = normal(y.shape, case["seed"] + 8).to(case["dtype"]).to(device, y.dtype)
    grad_v = normal(v_last.shape, case["seed"] + 9).to(device, v_last.dtype)
    torch.autograd.backward([y, v_last], [lay_out(grad_y, case["grad_layout"]), grad_v])
    grads = {name: leaf.grad for name, leaf in leaves.items()}
    return (y, v_last), grads, (arguments["running_mean"], arguments["running_var"])


@settings(max_examples=examples(150), deadline=None)
@given(cases())
def test_sweep(device, case):
    outputs, grads, running = run(rso.batch_norm_lif, case, device)
    expected, expected_grads, expected_running = run(rso.reference.batch_norm_lif, case, device)
    # Both round the statistics, which they compute in float64, to float32. Where they differ by the
    # last bit of float32, spikes may: compare then the share of them.
    x = make_inputs(case, device)[0]["x"]
    assert outputs[0].dtype == x.dtype
    differ = (outputs[0] != expected[0]).double().mean() if x.numel() else torch.zeros(())
    assert differ == 0 or (case["training"] and differ < 0.01)
    for new, old in zip(running, expected_running, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)
    if differ > 0:
        return
    torch.testing.assert_close(outputs[1], expected[1], rtol=1e-6, atol=1e-6)
    # The gradients of the same decisions in float64.
    _, exact, _ = run(rso.reference.batch_norm_lif, case, device, torch.float64)
    for name, grad in grads.items():
        assert grad.dtype == (expected_grads[name].dtype)
        near = expected_grads[name].double()
        # Where float64 decides otherwise for one neuron, the float32 reference is all there is.
        unit = HALF_ULP[grad.dtype] if name in ("x", "residual") else HALF_ULP[case["dtype"]]
        largest = near.abs().max().item() if near.numel() else 0.0
        count = max(1, x.numel())
        bound = 16 * unit * (1 + largest) * max(1, count**0.5 if near.numel() < count else 1)
        error = (grad.double() - near).abs()
        error = torch.minimum(error, (grad.double() - exact[name].double()).abs())
        assert (error <= bound).all(), (name, error.max().item(), bound)


EVAL = {"training": False, "learn": False, "v_init": False, "affine": True, "seed": 3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [None, "contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded-channels_last"])
def test_spikes_equal_the_references_bit_for_bit(layout, residual, dtype, device):
    """With statistics that are given, many neurons and a grid of ties."""
    T, B, C, H, W = 5, 3, 6, 9, 11
    x = lay_out(grid((T, B, C, H, W), 1, 0.0625).to(dtype).to(device), layout)
    if residual is not None:
        residual = lay_out(grid((T, B, C, H, W), 2).to(dtype).to(device), residual)
    mean = torch.tensor([0.0, 0.5, -0.25, 0.1, 3.0, 0.0], device=device)
    var = torch.tensor([1.0, 4.0, 0.25, 0.3, 2.0, 1e-3], device=device)
    weight = torch.tensor([1.0, 0.5, -0.25, 0.7, 3.0, 0.0], device=device)
    bias = torch.tensor([0.0, 0.25, 0.5, -0.1, 1.7, 0.5], device=device)
    for emission in ("binary", "ternary"):
        arguments = {"residual": residual, "training": False, "eps": 0.0, "emission": emission}
        arguments |= {"amplitude": grid((C, H, W), 4).to(device), "return_state": True}
        tensors = (x, weight, bias, mean, var)
        y, v = rso.batch_norm_lif(*tensors, **arguments)
        expected, expected_v = rso.reference.batch_norm_lif(*tensors, **arguments)
        assert torch.equal(y, expected)
        assert torch.equal(v, expected_v)
        assert y.is_contiguous() == ("channels_last" not in layout)


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", [(4, 8, 3, 32, 32), (2, 2, 70, 1, 1), (3, 1, 1, 5, 7)], ids=str)
def test_moments_are_exact_whatever_the_offset(shape, offset, layout, device):
    """In float32 alone, E[x^2] - E[x]^2 of the largest offset would be noise."""
    x = lay_out((normal(shape, 5) + offset).to(device), layout)
    C = shape[2]
    moments = ops.moments(x)
    wide = x.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close(moments[:C], wide.mean(1), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(moments[C:-1], wide.var(1, unbiased=False), rtol=1e-5, atol=0)
    assert moments[-1] == x.numel() // C


def test_one_outlier_does_not_spoil_the_moments(device):
    x = normal((4, 8, 2, 16, 16), 6).to(device)
    x[0, 0, 0, 0, 0] = 1e8
    wide = x.double().transpose(0, 2).flatten(1)
    moments = ops.moments(x)
    torch.testing.assert_close(moments[:2], wide.mean(1), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(moments[2:4], wide.var(1, unbiased=False), rtol=1e-6, atol=0)


def test_equal_values_have_no_variance(device):
    x = torch.full((4, 3, 2, 9, 5), 0.1, device=device)
    moments = ops.moments(x)
    assert moments[:2].tolist() == [x[0, 0, 0, 0, 0].item()] * 2
    assert moments[2:4].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_channel(bad, device):
    x = normal((2, 3, 3, 4, 4), 7).to(device)
    x[1, 2, 1, 3, 3] = bad
    running = torch.zeros(3, device=device), torch.ones(3, device=device)
    y = rso.batch_norm_lif(x, None, None, *running)
    assert not y[:, :, 1].any()
    assert y[:, :, 0].any()
    assert torch.isfinite(running[0]).tolist() == [True, False, True]
    assert torch.isfinite(running[1]).tolist() == [True, False, True]


def test_expanded_currents_count_every_timestep(device):
    once = normal((1, 3, 2, 4, 4), 8).to(device)
    currents = once.expand(5, *once.shape[1:]), once.repeat(5, 1, 1, 1, 1)
    running = [[torch.zeros(2, device=device), torch.ones(2, device=device)] for _ in range(2)]
    outputs = [
        rso.batch_norm_lif(x, None, None, *state)
        for x, state in zip(currents, running, strict=True)
    ]
    assert torch.equal(*outputs)
    for one, other in zip(*running, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_equals_batch_norm_and_lif(layout, training, device):
    """torch's batch norm over T * B images, then `lif`: currents, gradients, running statistics."""
    T, B, C = 4, 3, 5
    x = lay_out((normal((T, B, C, 6, 7), 9) * 2 + 1).to(device), layout)
    grad_y = normal(x.shape, 10).to(device)
    norms = [nn.BatchNorm2d(C, momentum=0.3).to(device) for _ in range(2)]
    for norm in norms:
        norm.train(training)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 1.5, C))
            norm.bias.copy_(torch.linspace(-0.2, 0.3, C))
    results = []
    for fused, norm in zip((True, False), norms, strict=True):
        leaf = x.detach().clone().requires_grad_()
        if fused:
            state = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
            y = rso.batch_norm_lif(leaf, *state, training=training, momentum=0.3)
        else:
            y = rso.lif(norm(leaf.flatten(0, 1)).unflatten(0, (T, B)))
        y.backward(grad_y)
        results.append((y, leaf.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    assert torch.equal(results[0][0], results[1][0])  # no neuron of this seed is near a tie
    for ours, theirs in zip(results[0][1:6], results[1][1:6], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# --- memory, threads, tracing ---------------------------------------------------------------------


def kept(call) -> list[torch.Tensor]:
    """What autograd keeps for the backward pass of a call."""
    tensors = []

    def pack(tensor):
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return tensors


@pytest.mark.parametrize(("detach_reset", "bits"), [(True, True), (False, False)])
def test_memory_kept_for_backward(detach_reset, bits, device):
    """x, with bits 2 of 32 per neuron and timestep, else the residual; and what channels need."""
    x, residual = (normal((4, 8, 16, 8, 8), seed).to(device).requires_grad_() for seed in (1, 2))
    weight, bias = (torch.ones(16, device=device, requires_grad=True) for _ in range(2))

    def call():
        rso.batch_norm_lif(
            x, weight, bias, None, None, residual=residual, detach_reset=detach_reset
        )

    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept(call)}
    assert storages.pop(x.data_ptr()) == x.nbytes
    assert (residual.data_ptr() in storages) != bits
    storages.pop(residual.data_ptr(), None)
    assert sum(storages.values()) <= (x.nbytes // 16 if bits else 0) + 8 * 16 * 8


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [None, (1,), (5, 30, 31)], ids=str)
def test_same_bits_for_any_number_of_threads(size, layout, device):
    x = lay_out(normal((5, 6, 5, 30, 31), 1).to(device), layout).requires_grad_()
    amplitude = None if size is None else torch.ones(size, device=device, requires_grad=True)
    weight = torch.full((5,), 0.5, device=device, requires_grad=True)
    bias = torch.zeros(5, device=device, requires_grad=True)
    grad_y = normal(x.shape, 2).to(device)
    leaves = [t for t in (x, weight, bias, amplitude) if t is not None]
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            running = torch.zeros(5, device=device), torch.ones(5, device=device)
            y = rso.batch_norm_lif(x, weight, bias, *running, amplitude=amplitude)
            outcomes.append([y, *running, *torch.autograd.grad(y, leaves, grad_y)])
    finally:
        torch.set_num_threads(threads)
    for outcome in outcomes[1:]:
        for one, other in zip(outcomes[0], outcome, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("timesteps", [4, 9])
def test_compressed_spikes_are_made_again(timesteps, device):
    conv = nn.Conv2d(4, 6, 3, padding=1).to(device)
    for detach_reset in (True, False):
        grads = []
        for compress in (True, False):
            x = normal((timesteps, 2, 4, 6, 6), 3).to(device).requires_grad_()
            residual = normal(x.shape, 4).to(device).requires_grad_()
            amplitude = torch.full((4, 6, 6), 1.25, device=device, requires_grad=True)
            with rso.compress_spikes() if compress else torch.enable_grad():
                y = rso.batch_norm_lif(
                    *(x, None, None, None, None),
                    residual=residual,
                    amplitude=amplitude,
                    detach_reset=detach_reset,
                )
                out = conv(y.flatten(0, 1)).square().sum()
            weight = conv.weight
            grads.append(torch.autograd.grad(out, [x, residual, amplitude, weight]))
        for one, other in zip(*grads, strict=True):
            assert torch.equal(one, other)


def test_a_default_device_changes_nothing(device):
    """What is made inside is on the device of x."""
    x = normal((4, 3, 5, 6, 7), 5).to(device).requires_grad_()
    weight = torch.ones(5, device=device, requires_grad=True)
    grad_y = normal(x.shape, 6).to(device)
    outcomes = []
    for default in (None, "meta"):
        running = torch.zeros(5, device=device), torch.ones(5, device=device)
        torch.set_default_device(default)
        try:
            y = rso.batch_norm_lif(x, weight, None, *running)
            grads = torch.autograd.grad(y, [x, weight], grad_y)
        finally:
            torch.set_default_device(None)
        outcomes.append([y, *grads, *running])
    for plain, beside in zip(*outcomes, strict=True):
        assert torch.equal(plain, beside)


def test_second_derivatives_are_refused(device):
    x = normal((2, 3, 2, 4, 4), 5).to(device).requires_grad_()
    y = rso.batch_norm_lif(x, None, None, None, None)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_all", [True, False])
def test_opcheck(with_all, training, device):
    """What torch.library wants of an op: schema, fakes, registered derivative, traced backward."""
    x = normal((3, 2, 4, 5, 5), 1).to(device).requires_grad_()
    moments = ops.moments(x)
    running = torch.zeros(4, device=device), torch.ones(4, device=device)
    op = torch.ops.realspike
    torch.library.opcheck(op.batch_norm_moments.default, (x.detach(),))
    torch.library.opcheck(op.batch_norm_statistics.default, (moments, *running, 0.1, 1e-5))
    mean, inv_std = ops.statistics(moments, None, None, 0.0, 1e-5)
    tensors = [x, None, mean, inv_std, None, None, None, None, None, None]
    if with_all:
        sizes = [(3, 2, 4, 5, 5), None, None, (4,), (4,), (4, 1, 1), (1,), (1,), (2, 4, 5, 5)]
        for i, size in enumerate(sizes, 1):
            if size is not None:
                tensors[i] = normal(size, i).to(device).requires_grad_()
    form = (0.25, 0.5, 0.0, "hard", False, False, "rectangular", 1.0, 2, True)
    count = moments[-1:] if training else None
    torch.library.opcheck(op.batch_norm_lif_fwd.default, (*tensors, *form, count))


def test_compiled_training_equals_eager(device):
    norms = [nn.BatchNorm2d(4).to(device) for _ in range(2)]

    def step(x, norm):
        state = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return rso.batch_norm_lif(x, *state, residual=x, detach_reset=True, return_state=True)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    outcomes = []
    for function, norm in zip((step, compiled), norms, strict=True):
        x = normal((3, 2, 4, 5, 5), 1).to(device).requires_grad_()
        y, v = function(x, norm)
        torch.autograd.backward([y, v], [normal(t.shape, 2).to(device) for t in (y, v)])
        outcomes.append((y, v, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    for eager, traced in zip(*outcomes, strict=True):
        assert torch.equal(eager, traced)


def test_empty_batches_leave_the_statistics(device):
    x = torch.empty((4, 0, 3, 5, 5), device=device, requires_grad=True)
    running = torch.full((3,), 2.0, device=device), torch.full((3,), 3.0, device=device)
    weight = torch.ones(3, device=device, requires_grad=True)
    y, v = rso.batch_norm_lif(x, weight, None, *running, return_state=True)
    y.sum().backward()
    assert y.shape == x.shape
    assert v.shape == x.shape[1:]
    assert x.grad.shape == x.shape
    assert weight.grad.tolist() == [0.0] * 3
    assert running[0].tolist() == [2.0] * 3
    assert running[1].tolist() == [3.0] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_running_statistics_move_where_they_lie(dtype, device):
    """Of any dtype, and with others between them."""
    columns = torch.tensor([[7.0, 0.0, 1.0], [8.0, 2.0, 3.0]], dtype=dtype, device=device)
    x = torch.stack([values([-1, 3, -1, 3], device), values([0, 4, 0, 4], device)], 2)
    rso.batch_norm_lif(x.squeeze(-1), None, None, columns[:, 1], columns[:, 2], momentum=0.5)
    expected = [[7.0, 0.5, 0.5 + 8 / 3], [8.0, 2.0, 1.5 + 8 / 3]]
    assert columns.tolist() == torch.tensor(expected).to(dtype).tolist()


def test_statistics_that_move_before_backward_are_noticed(device):
    """Backward recomputes the currents; of other statistics they would be others."""
    x = normal((2, 3, 4, 5), 1).to(device).requires_grad_()
    running = torch.zeros(4, device=device), torch.ones(4, device=device)
    y = rso.batch_norm_lif(x, None, None, *running, training=False)
    rso.batch_norm_lif(x, None, None, *running)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


INPUTS = {
    **dict.fromkeys(("x", "residual"), (4, 3, 5, 6, 7)),
    **dict.fromkeys(("weight", "bias"), (5,)),
    **dict.fromkeys(("amplitude", "decay", "v_threshold"), (5, 1, 1)),
    "v_init": (3, 5, 6, 7),
}


def inputs(device):
    tensors = {name: normal(size, i).to(device) for i, (name, size) in enumerate(INPUTS.items())}
    return tensors | {"decay": tensors["decay"].sigmoid()}


@pytest.mark.parametrize("name", INPUTS)
def test_a_gradient_that_is_asked_for_alone(name, device):
    found = []
    for asked in ([name], list(INPUTS)):
        tensors = inputs(device)
        for each in asked:
            tensors[each].requires_grad_()
        y = rso.batch_norm_lif(running_mean=None, running_var=None, **tensors)
        found.append(torch.autograd.grad(y, tensors[name], normal(y.shape, 9).to(device)))
    assert torch.equal(*(grad for (grad,) in found))


@pytest.mark.parametrize("name", INPUTS)
def test_tangents_are_refused(name, device):
    """They would vanish."""
    with torch.no_grad(), forward_ad.dual_level():
        tensors = inputs(device)
        tensors[name] = forward_ad.make_dual(tensors[name], torch.ones_like(tensors[name]))
        with pytest.raises(NotImplementedError, match=f"{name} carries a tangent"):
            rso.batch_norm_lif(running_mean=None, running_var=None, **tensors)
