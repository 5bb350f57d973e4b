"""realspike_ops.lif beyond the paper's neuron: ternary spikes, no reset, decay and threshold as
tensors. Tables by hand, then the reference in float64 against the equations written once more, then
the kernels against the reference, spikes bit for bit."""

import pytest
import torch
from helpers import U, examples, grid, lif_gradients_by_hand, normal, sum_to
from hypothesis import given, settings
from hypothesis import strategies as st
from lif_cases import DTYPES, LAYOUTS, NAN, SCALES, SHAPES, lay_out, parameter_sizes

import realspike_ops as rso

INF = float("inf")
BELOW_HALF = 0.5 - 2**-25  # the float32 before 0.5
TINY = 2.0**-149
TERNARY = {"emission": "ternary"}
SOFT_TERNARY = {"emission": "ternary", "reset": "soft"}
DELAYED = {"reset": "soft_delayed"}
DELAYED_TERNARY = {"emission": "ternary", **DELAYED}

# --- tables by hand: threshold 0.5 and decay 0.25 unless stated -----------------------------------

SPIKES = {
    # id: (x, neuron, spikes, v_last)
    "ternary-ties": ([0.5, -0.5], TERNARY, [1, -1], 0.0),
    "ternary-one-ulp-inside": ([-BELOW_HALF], TERNARY, [0], -BELOW_HALF),
    "ternary-tie-through-decay": ([-0.25, -0.4375], TERNARY, [0, -1], 0.0),
    "ternary-one-ulp-inside-through-decay": (
        *([-0.25, -0.4375 + 2**-25], TERNARY, [0, 0], -BELOW_HALF),
    ),
    "ternary-zeros-are-silent": ([-0.0, 0.0], TERNARY, [0, 0], 0.0),
    "ternary-reset-is-not-mirrored": (
        *([-0.5, 0.5625], TERNARY | {"v_reset": -0.25}, [-1, 1], -0.25),
    ),
    "ternary-soft-adds-the-threshold": ([-1.25, -0.25], SOFT_TERNARY, [-1, 0], -0.4375),
    "ternary-soft-tie-is-0": ([-0.5, 0.0], SOFT_TERNARY | {"decay": 1.0}, [-1, 0], 0.0),
    "ternary-soft-crosses": ([-0.75, 0.5625], SOFT_TERNARY, [-1, 1], 0.0),
    "ternary-none-keeps": ([-1.0, -0.25], TERNARY | {"reset": "none"}, [-1, -1], -0.5),
    "ternary-nan": ([NAN, 1.0], TERNARY, [0, 0], NAN),
    "ternary-minus-nan": ([-NAN, -1.0], SOFT_TERNARY, [0, 0], NAN),
    "ternary-minus-inf-resets": ([-INF, 0.25], TERNARY, [-1, 0], 0.25),
    "ternary-minus-inf-soft-stays": ([-INF, 0.0], SOFT_TERNARY, [-1, -1], -INF),
    "ternary-denormal-threshold": ([-TINY, TINY], TERNARY | {"v_threshold": TINY}, [-1, 1], 0.0),
    "ternary-denormal-is-kept": ([-TINY], TERNARY, [0], -TINY),
    "none-ties": ([0.5, 0.375, 0.375], {"reset": "none"}, [1, 1, 1], 0.5),
    "none-one-ulp-below": ([0.5, 0.375 - 2**-25], {"reset": "none"}, [1, 0], BELOW_HALF),
    "none-negative": ([-4.0, 1.5, 0.375], {"reset": "none"}, [0, 1, 1], 0.5),
    "none-inf": ([INF, 0.0], {"reset": "none"}, [1, 1], INF),
    "none-nan": ([1.0, NAN, 1.0], {"reset": "none"}, [1, 0, 0], NAN),
    "none-ignores-v_reset": ([0.5, 0.375], {"reset": "none", "v_reset": 9.0}, [1, 1], 0.5),
    "soft-by-name": ([1.25, 0.25], {"reset": "soft"}, [1, 0], 0.4375),
    # The threshold itself is subtracted, not what the decay leaves of it (h = 0.25 * 1 - 0.5 + x).
    "delayed-subtracts-undecayed": ([1.0, 0.75], DELAYED, [1, 1], 0.5),
    "delayed-one-ulp-below": ([1.0, 0.75 - 2**-24], DELAYED, [1, 0], 0.5 - 2**-24),
    # 0.25 + x is rounded to 1 before the threshold goes.
    "delayed-rounds-before-it-subtracts": ([1.0, 0.75 - 2**-25], DELAYED, [1, 1], 0.5),
    "delayed-state-is-before-the-reset": ([1.0], DELAYED, [1], 1.0),
    "delayed-tie-subtracts": ([0.5, 0.0], DELAYED | {"decay": 1.0}, [1, 0], 0.0),
    "delayed-no-spike-no-reset": ([BELOW_HALF, 0.0], DELAYED | {"decay": 1.0}, [0, 0], BELOW_HALF),
    "delayed-silent-after": ([0.5, 0.0, 0.625], DELAYED, [1, 0, 1], 0.53125),
    "delayed-inf": ([INF, 0.0], DELAYED, [1, 1], INF),
    "delayed-nan": ([1.0, NAN, 1.0], DELAYED, [1, 0, 0], NAN),
    "delayed-zero-threshold": ([0.0, -0.5, 0.5], DELAYED | {"v_threshold": 0.0}, [1, 0, 1], 0.375),
    # A potential of 0 has reached a negative threshold before the first timestep.
    "delayed-negative-threshold": ([-1.0, -1.0], DELAYED | {"v_threshold": -0.5}, [1, 0], -0.625),
    "delayed-ternary-adds": ([-1.0, -0.75], DELAYED_TERNARY, [-1, -1], -0.5),
    "delayed-ternary-crosses": ([-1.0, 0.25], DELAYED_TERNARY, [-1, 1], 0.5),
    "delayed-ternary-tie": ([-0.5, -0.375], DELAYED_TERNARY, [-1, 0], 0.0),
    "hard-by-name": ([0.5, 0.5625], {"reset": "hard", "v_reset": -0.25}, [1, 1], -0.25),
}


def run_table(x, neuron, device, **tensors):
    x = torch.tensor(x, dtype=torch.float32, device=device)[:, None]
    return rso.lif(x, return_state=True, **neuron, **tensors)


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("case", SPIKES)
def test_spikes_by_hand(case, as_tensor, device):
    x, neuron, spikes, v_last = SPIKES[case]
    neuron = dict(neuron)
    if as_tensor:
        for name, default in (("decay", 0.25), ("v_threshold", 0.5)):
            neuron[name] = torch.tensor([neuron.get(name, default)], device=device)
    y, v = run_table(x, neuron, device)
    assert y[:, 0].tolist() == spikes
    torch.testing.assert_close(v.cpu(), torch.tensor([v_last]), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("T", range(1, 10))
@pytest.mark.parametrize("reset", ["hard", "soft", "none", "soft_delayed"])
@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_every_length_by_hand(emission, reset, T, device):
    """x = -1, 1, -1, ... at decay 1 and threshold 1: every step is a tie or 0."""
    x = torch.tensor([[-1.0, 1.0][t % 2] for t in range(T)], device=device)[:, None]
    y, v = rso.lif(
        *(x,), decay=1.0, v_threshold=1.0, emission=emission, reset=reset, return_state=True
    )
    if emission == "ternary" and reset == "soft_delayed":
        # -1, -1 + 1 + 1 = 1, 1 - 1 - 1 = -1, ...: every step fires
        spikes, v_last = x[:, 0].tolist(), x[-1].item()
    elif emission == "ternary" and reset != "none":
        spikes, v_last = x[:, 0].tolist(), 0.0  # every step fires and returns to 0
    elif emission == "ternary":
        spikes, v_last = [-1.0 * (t % 2 == 0) for t in range(T)], -1.0 * (T % 2)  # -1, 0, -1, ...
    else:
        spikes, v_last = [0.0] * T, -1.0 * (T % 2)  # never above 0
    assert y[:, 0].tolist() == spikes
    assert v.item() == v_last


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_parameters_by_hand(layout, device):
    x = lay_out(torch.full((2, 1, 3, 1, 1), 0.25, device=device), layout)
    decay, v_threshold = (
        torch.tensor(values, device=device)[:, None, None]
        for values in ([0.0, 0.5, 1.0], [0.5, 0.25, 1.0])
    )
    y, v = rso.lif(x, decay=decay, v_threshold=v_threshold, return_state=True)
    assert y[:, 0, :, 0, 0].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert v.flatten().tolist() == [0.25, 0.0, 0.5]


GRADIENTS = {
    # id: (x, v_init, neuron, grad_v_last, grad_x, grad_decay, grad_v_threshold); decay 0.5
    "hard": (0.5, 1.0, {}, 0.0, 1.0, 1.0, -1.0),
    "hard-state": (0.5, 1.0, {}, 0.5, 0.5, 0.5, -0.5),
    "hard-state-detached": (0.5, 1.0, {"detach_reset": True}, 0.5, 1.0, 1.0, -1.0),
    "soft": (0.5, 1.0, {"reset": "soft"}, 1.0, 1.5, 1.5, -1.5),
    "soft-detached": (0.5, 1.0, {"reset": "soft", "detach_reset": True}, 1.0, 2.0, 2.0, -2.0),
    "soft-outside-the-window": (1.5, 1.0, {"reset": "soft"}, 1.0, 1.0, 1.0, -1.0),
    "none": (0.5, 1.0, {"reset": "none"}, 1.0, 2.0, 2.0, -1.0),
    # h = 0.5 * 1 + x - 0.5, since v_init has fired; the slope at v_init is 1, too.
    "delayed-detached": (0.5, 1.0, DELAYED | {"detach_reset": True}, 1.0, 2.0, 2.0, -3.0),
    "ternary-hard": (-1.5, 1.0, TERNARY, 0.5, 0.5, 0.5, 0.5),
    "ternary-soft": (-1.5, 1.0, SOFT_TERNARY, 0.5, 1.25, 1.25, 1.25),
    "ternary-none": (-1.5, 1.0, TERNARY | {"reset": "none"}, 0.5, 1.5, 1.5, 1.0),
    "ternary-lower-edge": (-0.5, 1.0, TERNARY, 0.0, 1.0, 1.0, -1.0),
    "silent": (-0.25, 1.0, {"detach_reset": True}, 0.5, 1.5, 1.5, -1.0),
    "negative-potential": (0.5, -1.0, {"detach_reset": True}, 0.5, 1.5, -1.5, -1.0),
}


@pytest.mark.parametrize("wanted", ["both", "decay", "v_threshold", "neither"])
@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_by_hand(case, wanted, device):
    x, v_init, neuron, grad_v_last, grad_x, grad_decay, grad_v_threshold = GRADIENTS[case]
    x = torch.tensor([[x]], device=device, requires_grad=True)
    v_init = torch.tensor([v_init], device=device, requires_grad=True)
    parameters = {"decay": grad_decay, "v_threshold": grad_v_threshold}
    tensors = {
        name: torch.tensor([0.5], device=device, requires_grad=wanted in (name, "both"))
        for name in parameters
    }
    y, v_last = rso.lif(x, v_init=v_init, return_state=True, **tensors, **neuron)
    (y.sum() + grad_v_last * v_last.sum()).backward()
    assert x.grad.tolist() == [[grad_x]]
    assert v_init.grad.tolist() == [0.5 * grad_x]
    for name, expected in parameters.items():
        if tensors[name].requires_grad:
            assert tensors[name].grad.tolist() == [expected]
        else:
            assert tensors[name].grad is None


def test_gradients_of_a_delayed_reset_by_hand(device):
    """h = 0.5 * 1 + 0.5 - 0.5 ties; v_init = 1 has fired and is at the edge of its window."""
    x, v_init, decay, v_threshold = (
        torch.tensor(value, device=device, requires_grad=True)
        for value in ([[0.5]], [1.0], [0.5], [0.5])
    )
    y, v_last = rso.lif(
        *(x,), decay=decay, v_threshold=v_threshold, v_init=v_init, return_state=True, **DELAYED
    )
    (y.sum() + v_last.sum()).backward()
    assert x.grad.item() == 2.0  # through the spike and v_last, 1 each
    assert v_init.grad.item() == 0.0  # 0.5 * 2 through the decay, -0.5 * 2 through the reset
    assert decay.grad.item() == 2.0
    # -1 of the spike, +1 of whether v_init had fired, -2 of what it then subtracts
    assert v_threshold.grad.item() == -2.0


@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_a_delayed_reset_in_pieces(emission, device):
    """The state is one float, the potential before the reset; pieces equal the whole run."""
    form = {"decay": 0.75, "v_threshold": 0.5, "emission": emission, **DELAYED}
    x = grid((13, 2, 5), 1).to(device)
    whole = x.clone().requires_grad_()
    y, v = rso.lif(whole, return_state=True, **form)
    (y.sum() + v.sum()).backward()
    pieces, outputs, state = x.clone().requires_grad_(), [], None
    for piece in pieces.split([1, 4, 3, 5]):
        y_piece, state = rso.lif(piece, v_init=state, return_state=True, **form)
        outputs.append(y_piece)
    assert torch.equal(torch.cat(outputs), y)
    assert torch.equal(state, v)
    (torch.cat(outputs).sum() + state.sum()).backward()
    assert torch.equal(pieces.grad, whole.grad)
    assert 0 < y.abs().mean() < 1


# --- the sweep ------------------------------------------------------------------------------------


@st.composite
def cases(draw):
    shape = draw(SHAPES)
    name = draw(st.sampled_from(sorted(SCALES)))
    return {
        "T": draw(st.one_of(st.integers(1, 10), st.sampled_from([15, 16, 17, 24]))),
        "shape": shape,
        "amplitude": draw(parameter_sizes(shape)),
        "decay": draw(parameter_sizes(shape)),
        "v_threshold": draw(parameter_sizes(shape)),
        "learn": draw(st.sampled_from([(True, True), (True, False), (False, True), (False,) * 2])),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from([torch.float32, *DTYPES])),
        "data": draw(st.sampled_from(["grid", "normal"])),
        "state": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**20)),
        "form": {
            "v_reset": draw(st.sampled_from([0.0, -0.25, 0.3])),
            "reset": draw(st.sampled_from(["hard", "soft", "none", "soft_delayed"])),
            "detach_reset": draw(st.booleans()),
            "emission": draw(st.sampled_from(["binary", "ternary", "ternary"])),
            "surrogate": (name, draw(st.sampled_from([SCALES[name], 1.5]))),
        },
    }


def make_inputs(case, device, exact=False):
    """Return x, amplitude, decay, v_threshold, v_init, grad_y, grad_v_last."""
    shape, seed = (case["T"], *case["shape"]), case["seed"]
    draw = grid if case["data"] == "grid" else normal

    def drawn(sizes, seed):
        return None if sizes is None else draw(sizes, seed).to(device)

    x = lay_out(draw(shape, seed).to(case["dtype"]).to(device), case["layout"])
    amplitude = drawn(case["amplitude"], seed + 1)
    decay = drawn(case["decay"], seed + 2)
    decay = 0.75 if decay is None else decay.abs().clamp(max=1.0)
    v_threshold = drawn(case["v_threshold"], seed + 3)
    v_threshold = 0.625 if v_threshold is None else v_threshold.abs() * 0.5 + 0.125
    v_init = drawn(shape[1:], seed + 4) if case["state"] else None
    grad_y = draw(shape, seed + 5).to(case["dtype"]).to(device)
    grad_v_last = drawn(shape[1:], seed + 6)
    return x, amplitude, decay, v_threshold, v_init, grad_y, grad_v_last


def run_lif(lif, case, x, amplitude, decay, v_threshold, v_init, grad_y, grad_v_last):
    """Return y, v_last and the gradients of x, amplitude, decay, v_threshold and v_init."""
    learn = (True, True, *case["learn"], True)
    leaves = [
        t.detach().requires_grad_(wanted) if isinstance(t, torch.Tensor) else t
        for t, wanted in zip((x, amplitude, decay, v_threshold, v_init), learn, strict=True)
    ]
    x, amplitude, decay, v_threshold, v_init = leaves
    y, v_last = lif(
        *(x, amplitude),
        decay=decay,
        v_threshold=v_threshold,
        v_init=v_init,
        return_state=True,
        **case["form"],
    )
    torch.autograd.backward([y, v_last], [grad_y, grad_v_last])
    grads = [t.grad if isinstance(t, torch.Tensor) else None for t in leaves]
    return y.detach(), v_last.detach(), grads


NAMES = ("grad_x", "grad_amplitude", "grad_decay", "grad_v_threshold", "grad_v_init")


@settings(max_examples=examples(60))
@given(case=cases())
def test_reference_equals_the_equations_in_float64(case, device):
    case = {**case, "dtype": torch.float64}
    inputs = [t.double() if isinstance(t, torch.Tensor) else t for t in make_inputs(case, device)]
    y, v_last, grads = run_lif(rso.reference.lif, case, *inputs)
    expected = lif_gradients_by_hand(*inputs, **case["form"])
    assert torch.equal(y, expected.pop("y"))
    torch.testing.assert_close(v_last, expected.pop("v_last"), rtol=1e-12, atol=1e-12)
    for name, grad, leaf in zip(NAMES, grads, inputs, strict=False):
        if grad is not None:
            by_hand = sum_to(expected[name], leaf.shape)
            torch.testing.assert_close(grad, by_hand, rtol=1e-9, atol=1e-9, msg=name)


@settings(max_examples=examples(150))
@given(case=cases())
def test_sweep(case, device):
    inputs = make_inputs(case, device)
    y, v_last, grads = run_lif(rso.lif, case, *inputs)
    expected_y, expected_v, expected = run_lif(rso.reference.lif, case, *inputs)
    assert y.dtype == inputs[0].dtype
    assert torch.equal(y, expected_y)
    assert torch.equal(v_last, expected_v)
    # The potentials are the same bits, so that gradients differ by the rounding of their own sums.
    amplitude = inputs[1]
    largest = 1.0
    if amplitude is not None and amplitude.numel() > 0:
        largest = amplitude.abs().max().item()
    terms = lif_gradients_by_hand(
        *(t.double() if isinstance(t, torch.Tensor) else t for t in inputs), **case["form"]
    )
    for name, actual, grad, leaf in zip(NAMES, grads, expected, inputs, strict=False):
        assert (actual is None) == (grad is None), name
        if actual is None or actual.numel() == 0:
            continue
        assert actual.shape == grad.shape, name
        if name == "grad_x":
            rounding = torch.finfo(actual.dtype).eps
            bound = rounding * grad.abs() + 64 * U * (4 * largest + terms["magnitude"])
        elif name == "grad_v_init":
            bound = 64 * U * (4 * largest + terms["magnitude"])
        else:
            # Both add up in float32, in orders of their own.
            bound = 64 * U * (1 + sum_to(terms[f"abs_{name}"], leaf.shape))
        error = (actual.double() - grad.double()).abs()
        assert (error <= bound).all(), (name, (error / bound).max())


@settings(max_examples=examples(60))
@given(case=cases())
def test_exact_sums(case, device):
    """Where every number is a multiple of a power of two and few are added, no rounding hides a
    missing term: the gradients equal those by hand."""
    case = {
        **case,
        "T": 1 + case["T"] % 3,
        "data": "grid",
        "dtype": torch.float32,
        "form": case["form"] | {"surrogate": ("rectangular", 1.0), "v_reset": 0.25},
    }
    x, amplitude, decay, v_threshold, v_init, grad_y, grad_v_last = make_inputs(case, device)
    decay = decay if isinstance(decay, float) else decay.mul(2).round().div(2)
    inputs = (x, amplitude, decay, v_threshold, v_init, grad_y, grad_v_last)
    _, v_last, grads = run_lif(rso.lif, case, *inputs)
    by_hand = lif_gradients_by_hand(
        *(t.double() if isinstance(t, torch.Tensor) else t for t in inputs), **case["form"]
    )
    assert torch.equal(v_last.double(), by_hand["v_last"])
    for name, grad, leaf in zip(NAMES, grads, inputs, strict=False):
        if grad is not None:
            exact = sum_to(by_hand[name], leaf.shape)
            torch.testing.assert_close(grad.double(), exact, rtol=3e-7, atol=1e-6, msg=name)
