"""realspike_ops.lif: a float64 computation with error bounds, then the reference bit for bit, over
shapes, memory formats, dtypes and forms of the neuron. Tables by hand: test_lif_by_hand.py."""

import itertools

import pytest
import torch
from helpers import (
    HALF_ULP,
    SUBNORMAL,
    U,
    assert_within,
    binary,
    examples,
    generator,
    grid,
    lif_by_hand,
    normal,
    sum_to,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lif_cases import (
    DTYPES,
    LAYOUTS,
    SCALES,
    SHAPES,
    bytes_kept,
    lay_out,
    parameter_sizes,
)
from torch.utils.checkpoint import checkpoint

import realspike_ops as rso
from realspike_ops.ops.layout import dense_over_time
from realspike_ops.ops.lif_contract import SAVE_NOTHING, Neuron, what_to_save

# --- the sweep ------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    name = draw(st.sampled_from(sorted(SCALES)))
    return {
        "T": draw(st.one_of(st.integers(1, 10), st.sampled_from([15, 16, 17, 24, 40]))),
        "shape": shape,
        "amplitude": draw(parameter_sizes(shape)),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "grad_layout": draw(st.sampled_from(["contiguous", "channels_last", "sliced", "offset"])),
        "dtype": draw(st.sampled_from([torch.float32, *DTYPES])),
        "data": draw(st.sampled_from(["grid", "normal"])),
        "v_init": draw(st.booleans()),
        "through": draw(st.sampled_from(["y", "v_last", "both", "sum"])),
        "seed": draw(st.integers(0, 2**20)),
        "neuron": {
            "decay": draw(st.sampled_from([0.0, 0.25, 0.5, 1.0, 0.3, 0.9])),
            "v_threshold": draw(st.sampled_from([0.5, 0.5, 1.0, 0.0, 0.7, -0.25])),
            "v_reset": draw(st.sampled_from([0.0, 0.0, None, -0.25, 0.3])),
            "detach_reset": draw(st.booleans()),
            "surrogate": (
                name,
                draw(st.sampled_from([SCALES[name], SCALES[name], 1.5, 0.7])),
            ),
        },
    }


def make_inputs(case, device):
    """Return x, amplitude, v_init, grad_y, grad_v_last of a case; x is a leaf in its layout."""
    shape, seed = (case["T"], *case["shape"]), case["seed"]
    draw = grid if case["data"] == "grid" else normal
    x = lay_out(draw(shape, seed).to(case["dtype"]).to(device), case["layout"])
    amplitude = case["amplitude"]
    amplitude = None if amplitude is None else draw(amplitude, seed + 1).to(device)
    v_init = draw(shape[1:], seed + 2).to(device) if case["v_init"] else None
    grad_y = lay_out(draw(shape, seed + 3).to(case["dtype"]).to(device), case["grad_layout"])
    grad_v_last = draw(shape[1:], seed + 4).to(device)
    if case["through"] == "sum":
        grad_y = torch.ones((), dtype=x.dtype, device=device).expand(shape)
    if case["through"] == "v_last":
        grad_y = torch.zeros_like(grad_y)
    if case["through"] in ("y", "sum"):
        grad_v_last = torch.zeros_like(grad_v_last)
    return x, amplitude, v_init, grad_y, grad_v_last


def run_lif(lif, case, x, amplitude, v_init, grad_y, grad_v_last):
    """Return y, v_last and the gradients of x, amplitude and v_init."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in (x, amplitude, v_init)]
    x, amplitude, v_init = leaves
    y, v_last = lif(x, amplitude, v_init=v_init, return_state=True, **case["neuron"])
    if case["through"] == "y":
        y.backward(grad_y)
    elif case["through"] == "v_last":
        v_last.backward(grad_v_last)
    elif case["through"] == "both":
        torch.autograd.backward([y, v_last], [grad_y, grad_v_last])
    else:
        y.sum().backward()
    gradients = [None if t is None else t.grad for t in leaves]
    return (y.detach(), v_last.detach(), *gradients)


def zero_if_none(grad, like):
    return torch.zeros_like(like) if grad is None else grad


def check_gradients(actual, inputs, expected, dtype, factor, what):
    """Compare (grad_x, grad_amplitude, grad_v_init) with those by hand, within their bounds."""
    x, amplitude, v_init = inputs
    certain = expected.certain
    grad_x = zero_if_none(actual[0], x).cpu()
    assert grad_x.dtype == dtype
    half_ulp = HALF_ULP[dtype] if dtype != torch.float32 else 0.0
    bound = expected.grad_x_bound * factor + half_ulp * expected.grad_x.abs() + SUBNORMAL[dtype]
    bound = bound * 1.01
    assert_within(
        grad_x[:, certain], expected.grad_x[:, certain], bound[:, certain], f"{what} grad_x"
    )
    if v_init is not None:
        bound = expected.grad_v_init_bound * factor + SUBNORMAL[torch.float32]
        grad_v_init = zero_if_none(actual[2], v_init).cpu()
        assert_within(
            *(grad_v_init[certain], expected.grad_v_init[certain], bound[certain]),
            f"{what} grad_v_init",
        )
    if amplitude is not None and certain.all():
        terms = expected.grad_amplitude_terms
        count = max(1, terms.numel()) / max(1, amplitude.numel())
        magnitude = sum_to(terms.abs(), amplitude.shape)
        bound = factor * count * U * magnitude + SUBNORMAL[torch.float32]
        grad_amplitude = zero_if_none(actual[1], amplitude).cpu()
        assert_within(
            grad_amplitude, sum_to(terms, amplitude.shape), bound, f"{what} grad_amplitude"
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded", "offset"])
def test_no_hidden_copies(layout, device):
    x = lay_out(normal((4, 2, 3, 5, 7), 1).to(device), layout)
    dense, channels_last, stride_t = dense_over_time(x)
    assert dense.data_ptr() == x.data_ptr()
    assert channels_last == (layout == "channels_last")
    assert stride_t == (0 if layout == "expanded" else 2 * 3 * 5 * 7)


@settings(max_examples=examples(200))
@given(case=cases())
def test_sweep(case, device):
    inputs = x, amplitude, v_init, *_ = make_inputs(case, device)
    y, v_last, *gradients = run_lif(rso.lif, case, *inputs)
    reference_y, reference_v, *reference_gradients = run_lif(rso.reference.lif, case, *inputs)

    # One answer, bit for bit; in the shape, dtype and memory format of the input.
    assert y.dtype == x.dtype
    assert v_last.dtype == torch.float32
    assert torch.equal(y, reference_y)
    assert torch.equal(v_last, reference_v)
    if case["layout"].endswith("channels_last") and x.dim() == 5 and x.numel() > 0:
        assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)

    on_cpu = [None if t is None else t.cpu() for t in inputs]
    expected = lif_by_hand(*on_cpu, **case["neuron"])
    certain = expected.certain
    a = torch.ones(()) if amplitude is None else amplitude.cpu()
    assert torch.equal(y.cpu()[:, certain], (a * expected.o.float()).to(x.dtype)[:, certain].cpu())
    assert_within(
        v_last.cpu()[certain],
        expected.v_last[certain],
        expected.v_last_bound[certain] + SUBNORMAL[torch.float32],
        "v_last",
    )
    if case["data"] == "normal" or case["T"] <= 8:
        # The bounds are tight enough that hardly any neuron is left out.
        assert (~certain).sum() <= 0.02 * certain.numel() + 1

    # A reference in float32 has rounding errors of its own, within the same bound.
    tensors = (x, amplitude, v_init)
    check_gradients(gradients, tensors, expected, x.dtype, 1.0, "lif")
    check_gradients(reference_gradients, tensors, expected, x.dtype, 1.0, "reference")


# Which of the dimensions [C, H, W] an amplitude follows; leading ones may be left out.
FOLLOWS = [f for rank in range(4) for f in itertools.product((False, True), repeat=rank)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("follows", FOLLOWS, ids=lambda f: "".join(".x"[i] for i in f) or "scalar")
def test_amplitude_follows_any_dimensions_of_a_cube(follows, layout, device):
    # All sizes are equal, so that a shape alone does not tell one dimension from another.
    x = lay_out(grid((3, 2, 3, 3, 3), 1).to(device), layout)
    amplitude = grid([3 if f else 1 for f in follows], 2, 0.125).to(device).requires_grad_()
    grad_y = grid(x.shape, 3).to(device)
    y = rso.lif(x, amplitude)
    o = rso.lif(x)
    assert torch.equal(y, amplitude * o)
    y.backward(grad_y)
    assert torch.equal(amplitude.grad, sum_to(grad_y * o, amplitude.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("amplitude", [None, (1,), (5, 1, 1), (5, 4, 3)], ids=str)
def test_half_spikes_are_those_of_the_float32_run(dtype, amplitude, device):
    x = normal((9, 2, 5, 4, 3), 1).to(dtype).to(device)
    amplitude = None if amplitude is None else normal(amplitude, 2).to(device)
    y, v_last = rso.lif(x, amplitude, return_state=True)
    full, full_v = rso.lif(x.float(), amplitude, return_state=True)
    assert y.dtype == dtype
    assert v_last.dtype == torch.float32
    assert torch.equal(y, full.to(dtype))
    assert torch.equal(v_last, full_v)
    assert 0.1 < (full != 0).float().mean() < 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_half_value_is_read_exactly(dtype, device):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    _, v_last = rso.lif(every.to(device), v_threshold=3.4e38, return_state=True)
    finite = every[0].isfinite()
    assert torch.equal(v_last.cpu()[finite], every[0].float()[finite])
    assert v_last.cpu()[every[0].isnan()].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_outputs_round_to_nearest_even(dtype, device):
    bits = torch.randint(-(2**31), 2**31 - 1, (60_000,), generator=generator(3))
    amplitude = bits.to(torch.int32).view(torch.float32)
    largest = torch.finfo(dtype).max
    edges = torch.tensor([largest, 65519.996, 65520.0, 2.0**-25, 2.0**-24 * 1.5, 0.0, -0.0])
    halfway = 1 + torch.arange(64) * HALF_ULP[dtype]
    amplitude = torch.cat([amplitude[amplitude.isfinite()], edges, halfway, -halfway])
    x = torch.ones(1, 1, amplitude.numel(), dtype=dtype, device=device)
    assert torch.equal(rso.lif(x, amplitude.to(device))[0, 0].cpu(), amplitude.to(dtype))


# --- pieces of a sequence, graphs, memory ---------------------------------------------------------

NEURONS = {
    "bits": {"detach_reset": True},
    "bits-soft": {"detach_reset": True, "v_reset": None, "decay": 0.9},
    "attached": {},
    "attached-soft": {"v_reset": None, "decay": 1.0},
    "attached-value": {"v_reset": -0.25, "surrogate": "triangle"},
    "atan": {"surrogate": "atan"},
    "sigmoid-detached": {"surrogate": "sigmoid", "detach_reset": True},
}


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pieces", [[3, 4, 1], [1] * 11, [8, 9], [16, 3]], ids=str)
def test_pieces_equal_one_run(neuron, pieces, device):
    neuron = NEURONS[neuron]
    whole = normal((sum(pieces), 2, 3, 5, 1), 5).to(device).requires_grad_()
    grad_y, grad_v = normal(whole.shape, 6).to(device), normal(whole.shape[1:], 7).to(device)
    v_init = normal(whole.shape[1:], 8).to(device).requires_grad_()

    y, v_last = rso.lif(whole, v_init=v_init, return_state=True, **neuron)
    torch.autograd.backward([y, v_last], [grad_y, grad_v])
    expected = [y, v_last, whole.grad.clone(), v_init.grad.clone()]
    whole.grad = v_init.grad = None

    ys, v = [], v_init
    for piece in whole.split(pieces):
        y, v = rso.lif(piece, v_init=v, return_state=True, **neuron)
        ys.append(y)
    torch.autograd.backward([torch.cat(ys), v], [grad_y, grad_v])
    for a, b in zip([torch.cat(ys), v, whole.grad, v_init.grad], expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("shape", [(3, 5000), (9, 2, 5, 30, 31)], ids=str)
def test_same_bits_run_after_run_and_for_any_number_of_threads(neuron, shape, device):
    case = {"neuron": NEURONS[neuron], "through": "both"}
    amplitude = normal((5, 30, 31), 2).to(device) if len(shape) == 5 else None
    x, grad_y = (normal(shape, seed).to(device) for seed in (1, 3))
    inputs = (x, amplitude, None, grad_y, normal(shape[1:], 4).to(device))
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for count in (2, 2, 1, 3):
            torch.set_num_threads(count)
            outcomes.append(run_lif(rso.lif, case, *inputs))
    finally:
        torch.set_num_threads(threads)
    for outcome in outcomes[1:]:
        for a, b in zip(outcome, outcomes[0], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("amplitude", [None, (1,), (7, 1, 1), (7, 20, 41)], ids=str)
def test_many_neurons(amplitude, layout, device):
    # More neurons than a block and than a task of the CPU kernels; every amplitude is its own.
    x = lay_out(grid((4, 9, 7, 20, 41), 1).to(device), layout)
    a = 1.0
    if amplitude is not None:
        a = torch.arange(1.0, torch.Size(amplitude).numel() + 1, device=device).reshape(amplitude)
    y = rso.lif(x, None if amplitude is None else a)
    v = torch.zeros_like(x[0])
    for t in range(4):
        h = 0.25 * v + x[t]
        o = h >= 0.5
        assert torch.equal(y[t], a * o)
        v = torch.where(o, 0.0, h)


@pytest.mark.parametrize(
    ("shape", "layout", "amplitude", "form", "save"),
    [
        pytest.param((5, 2, 3), "contiguous", None, {}, True, id="attached"),
        pytest.param((9, 2, 3), "contiguous", (1,), {"detach_reset": True}, True, id="bits"),
        pytest.param(
            (9, 2, 3, 4, 5),
            "channels_last",
            (3, 1, 1),
            {"reset": "soft", "surrogate": "atan"},
            True,
            id="channels_last-soft-atan",
        ),
        pytest.param((4, 2, 3), "expanded", (3,), {}, True, id="expanded"),
        pytest.param((2, 0, 3), "contiguous", (3,), {"detach_reset": True}, True, id="empty"),
        pytest.param((9, 2, 3, 4, 5), "channels_last", (3, 4, 5), {}, False, id="inference"),
        pytest.param(
            (9, 2, 3),
            "contiguous",
            (3,),
            {"detach_reset": True, "ternary": True},
            True,
            id="ternary-bits",
        ),
        pytest.param(
            (9, 2, 3, 4, 5), "channels_last", (3, 1, 1), {"learn": (3, 1, 1)}, True, id="learnable"
        ),
    ],
)
@pytest.mark.parametrize("keep_state", [False, True], ids=["stateless", "stateful"])
def test_opcheck(shape, layout, amplitude, form, save, keep_state, device):
    x = lay_out(normal(shape, 1).to(device), layout).requires_grad_(save)
    learn = form.get("learn")
    amplitude, decay, v_threshold = (
        None if size is None else grid(size, seed, 0.125, 1.0).to(device).requires_grad_(save)
        for seed, size in enumerate((amplitude, learn, learn))
    )
    v_init = normal(shape[1:], 3).to(device).requires_grad_(save) if keep_state else None
    name = form.get("surrogate", "rectangular")
    neuron = Neuron(
        *(0.25, 0.5, 0.0, form.get("reset", "hard"), form.get("detach_reset", False)),
        *(form.get("ternary", False), name, SCALES[name]),
    )
    kept = what_to_save(neuron, decay, v_threshold) if save else SAVE_NOTHING
    args = (x, amplitude, decay, v_threshold, v_init, *neuron, kept, keep_state)
    torch.library.opcheck(torch.ops.realspike.lif_fwd.default, args)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("form", ["bits", "attached", "atan"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compile(form, layout, dynamic, device):
    torch._dynamo.reset()

    def step(x, amplitude):
        y, v_last = rso.lif(x * 1.5, amplitude, return_state=True, **NEURONS[form])
        return (y * y).sum() + v_last.sum(), y

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for T, B in ((5, 2), (9, 3)) if dynamic else ((5, 2),):
        results = []
        for function in (step, compiled):
            x = lay_out(normal((T, B, 3, 4, 6), 1).to(device), layout).requires_grad_()
            amplitude = normal((3, 1, 1), 2).to(device).requires_grad_()
            loss, y = function(x, amplitude)
            loss.backward()
            results.append((loss, y, x.grad, amplitude.grad))
        for eager, traced in zip(*results, strict=True):
            assert torch.equal(eager, traced)
            assert eager.stride() == traced.stride()


@pytest.mark.parametrize("form", ["bits", "attached"])
def test_a_second_derivative_is_refused(form, device):
    """The surrogate has none; anything but an error would be a wrong number."""
    x = normal((5, 2, 3), 1).to(device).requires_grad_()
    amplitude = torch.ones(3, device=device, requires_grad=True)
    y = rso.lif(x, amplitude, **NEURONS[form])

    def second_derivative():
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(grad.square().sum() + y.sum(), amplitude)

    with pytest.raises(RuntimeError):
        second_derivative()


@pytest.mark.parametrize("form", ["bits", "attached"])
def test_checkpoint(form, device):
    def block(x):
        return rso.lif(rso.lif(x, **NEURONS[form]) - 0.25, **NEURONS[form])

    grads = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        x = normal((5, 2, 30), 1).to(device).requires_grad_()
        run(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert grads[0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("T", [1, 3, 4, 5, 8, 9, 16, 17, 40])
def test_bytes_kept_for_backward(T, layout, dtype, device):
    x = lay_out(normal((T, 2, 3, 5, 7), 1).to(dtype).to(device), layout).requires_grad_()
    amplitude = torch.ones(3, 1, 1, device=device, requires_grad=True)
    N = 2 * 3 * 5 * 7
    two_bits = N * -(-T // 4)
    assert bytes_kept(x, amplitude, detach_reset=True) == two_bits + 12
    assert bytes_kept(x, None, detach_reset=True, v_reset=None) == two_bits
    potentials = 4 * N * (-(-T // 8) - 1)
    its_input = T * N * dtype.itemsize
    assert bytes_kept(x, amplitude) == its_input + potentials + 12
    assert bytes_kept(x, None, detach_reset=True, surrogate="atan") == its_input + potentials


def test_a_constant_current_is_kept_once(device):
    current = normal((1, 2, 30), 1).to(device).requires_grad_()
    assert bytes_kept(current.expand(8, 2, 30), None) == 4 * 2 * 30


def test_inference_keeps_nothing(device):
    x = normal((9, 2, 3), 1).to(device)
    for neuron, requires_grad in itertools.product(NEURONS.values(), (True, False)):
        with torch.no_grad():
            y = rso.lif(x.requires_grad_(requires_grad), **neuron)
        assert not y.requires_grad
    neuron = Neuron(0.25, 0.5, 0.0, "hard", False, False, "rectangular", 1.0)
    _, v_last, saved = torch.ops.realspike.lif_fwd(
        x.detach(), None, None, None, None, *neuron, SAVE_NOTHING, False
    )
    assert saved.numel() == v_last.numel() == 0


def test_arguments_are_left_untouched(device):
    x, amplitude = normal((5, 2, 3), 1).to(device), normal((3,), 2).to(device)
    v_init, copies = normal((2, 3), 3).to(device), []
    tensors = (x, amplitude, v_init)
    copies = [t.clone() for t in tensors]
    for t in tensors:
        t.requires_grad_()
    rso.lif(x, amplitude, v_init=v_init).sum().backward()
    for t, copy in zip(tensors, copies, strict=True):
        assert torch.equal(t, copy)


@pytest.mark.parametrize(
    "shape", [(1, 0), (4, 0, 3), (4, 2, 0), (3, 0, 2, 4, 4), (3, 2, 2, 0, 4)], ids=str
)
def test_empty(shape, device):
    x = torch.zeros(shape, device=device, requires_grad=True)
    amplitude = torch.ones(1, device=device, requires_grad=True)
    y, v_last = rso.lif(x, amplitude, return_state=True)
    assert y.shape == shape
    assert v_last.shape == shape[1:]
    (y.sum() + v_last.sum()).backward()
    assert x.grad.shape == shape
    assert amplitude.grad.tolist() == [0.0]


def test_frozen_spikes_reach_an_amplitude_alone(device):
    x = binary((6, 4, 3), 1).to(device)
    amplitude = torch.ones(3, device=device, requires_grad=True)
    rso.lif(x, amplitude, detach_reset=True).sum().backward()
    assert torch.equal(amplitude.grad, x.sum((0, 1)))


def test_forward_mode_is_refused(device):
    x = normal((4, 2, 3), 1).to(device)
    with pytest.raises(NotImplementedError, match="x carries a tangent"):
        torch.func.jvp(rso.lif, (x,), (torch.ones_like(x),))
    amplitude = torch.ones(3, device=device)
    with pytest.raises(NotImplementedError, match="amplitude carries a tangent"):
        torch.func.jvp(lambda a: rso.lif(x, a), (amplitude,), (torch.ones_like(amplitude),))
