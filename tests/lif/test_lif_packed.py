"""lif(packed=True): a table by hand, then the dense spikes of the reference, packed bit by bit."""

import itertools

import pytest
import torch
from helpers import examples, grid, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from lif_cases import DTYPES, LAYOUTS, NAN, lay_out, parameter_sizes

import realspike_ops as rso
from realspike_ops.ops.lif_contract import Neuron


def positive(spikes):
    return (spikes > 0).float()


def dense_then_packed(x, **form):
    """What packed=True stands for, by the reference and by the definition of a word's bits."""
    y, v_last = rso.reference.lif(x, return_state=True, **form)
    planes = [positive(y), positive(-y)] if form.get("emission") == "ternary" else [y.float()]
    words = []
    for plane in planes:
        bits = plane.movedim(2, -1).long()  # [T, B, ..., C]
        padded = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 32))
        word = (padded.unflatten(-1, (-1, 32)) << torch.arange(32)).sum(-1)
        words.append(torch.where(word >= 2**31, word - 2**32, word).to(torch.int32))
    return (torch.stack(words) if len(planes) == 2 else words[0]), v_last


def assert_packed(x, **form):
    expected, expected_v = dense_then_packed(x.cpu(), **form)
    form = {k: v.to(x.device) if isinstance(v, torch.Tensor) else v for k, v in form.items()}
    packed, v_last = rso.lif(x, packed=True, return_state=True, **form)
    assert packed.dtype == torch.int32
    assert torch.equal(packed.cpu(), expected)
    assert torch.equal(v_last.cpu(), expected_v)
    assert torch.equal(rso.lif(x, packed=True, **form), packed)


def test_words_by_hand(device):
    x = torch.zeros(2, 1, 34, device=device)
    x[0, 0, [0, 3, 31, 32]] = torch.tensor([0.5, 1.0, 0.75, -0.5], device=device)
    x[1, 0, [1, 33]] = torch.tensor([-0.5, 2.0], device=device)
    x[1, 0, 2] = NAN
    assert rso.lif(x, packed=True).tolist() == [[[9 - 2**31, 0]], [[0, 2]]]
    ternary = rso.lif(x, packed=True, emission="ternary").tolist()
    assert ternary == [[[[9 - 2**31, 0]], [[0, 2]]], [[[0, 1]], [[2, 0]]]]


@st.composite
def cases(draw):
    shape = (
        draw(st.sampled_from([0, 1, 2, 3])),
        draw(st.sampled_from([1, 2, 31, 32, 33, 70])),
        *draw(st.sampled_from([(), (1,), (9,), (70,), (3, 6), (9, 8), (1, 65)])),
    )
    return {
        "T": draw(st.integers(1, 9)),
        "shape": shape,
        "decay": draw(parameter_sizes(shape)),
        "v_threshold": draw(parameter_sizes(shape)),
        "v_init": draw(st.booleans()),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "seed": draw(st.integers(0, 2**20)),
        "form": {
            "v_reset": draw(st.sampled_from([0.0, -0.25])),
            "reset": draw(st.sampled_from(["hard", "soft", "none", "soft_delayed"])),
            "emission": draw(st.sampled_from(["binary", "ternary"])),
        },
    }


@settings(max_examples=examples(120))
@given(case=cases())
def test_sweep(case, device):
    shape, seed = (case["T"], *case["shape"]), case["seed"]
    x = lay_out(grid(shape, seed).to(case["dtype"]).to(device), case["layout"])
    form = dict(case["form"])
    if case["decay"] is not None:
        form["decay"] = normal(case["decay"], seed + 1).sigmoid()
    if case["v_threshold"] is not None:
        form["v_threshold"] = grid(case["v_threshold"], seed + 2).abs() + 0.125
    if case["v_init"]:
        form["v_init"] = normal(shape[1:], seed + 3)
    assert_packed(x, **form)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(3, 2, 2100, 3, 2), (2, 9, 40, 33, 5), (70, 3, 33, 9, 9), (1, 1, 5, 130, 67)], ids=str
)
def test_many_neurons(shape, layout, device):
    """More channels than a task packs at once, more pixels, more timesteps; any threads."""
    x = lay_out(grid(shape, 1).to(device), layout)
    form = {"emission": "ternary", "decay": normal(shape[2:], 2).sigmoid()}
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert_packed(x, **form)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(3, 0, 4, 2, 2), (3, 2, 4, 0, 2), (3, 2, 4, 2, 0)], ids=str)
def test_empty(shape, device):
    packed, v_last = rso.lif(torch.zeros(shape, device=device), packed=True, return_state=True)
    T, B, C, H, W = shape
    assert packed.shape == (T, B, H, W, 1)
    assert v_last.shape == (B, C, H, W)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_convolution_reads_it(layout, device):
    x = lay_out(normal((4, 2, 40, 5, 6), 1).to(device), layout)
    weight = normal((3, 4, 1, 3, 3, 40, 7), 2).to(device)
    packed = rso.lif(x, packed=True)
    from_bits = rso.unshared_spike_conv(packed.flatten(0, 1), weight)
    assert torch.equal(from_bits, rso.unshared_spike_conv(rso.lif(x).flatten(0, 1), weight))
    assert from_bits.any()
    assert torch.equal(packed.flatten(0, 1), rso.pack_spikes(rso.lif(x).flatten(0, 1)))


def test_no_dense_spikes(device):
    """An inference of 32 channels allocates one bit per neuron and timestep, and nothing else."""
    allocated = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            outputs = out if isinstance(out, tuple) else (out,)
            allocated.extend(t.untyped_storage().nbytes() for t in outputs)
            return out

    x = normal((4, 2, 32, 5, 6), 1).to(device)
    with Watch():
        rso.lif(x, packed=True)
    assert sum(allocated) == x.numel() // 8


@pytest.mark.parametrize("keep_state", [False, True], ids=["stateless", "stateful"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
def test_opcheck(layout, keep_state, device):
    x = lay_out(normal((5, 2, 34, 3, 2), 1).to(device), layout)
    for ternary, reset in itertools.product((False, True), ("hard", "soft")):
        neuron = Neuron(0.25, 0.5, 0.0, reset, False, ternary, "rectangular", 1.0)
        decay = torch.full((34, 1, 1), 0.5, device=device) if ternary else None
        v_init = normal(x.shape[1:], 2).to(device) if keep_state else None
        torch.library.opcheck(
            torch.ops.realspike.lif_packed.default,
            (x, decay, None, v_init, *neuron, keep_state),
        )


@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_compile(emission, device):
    torch._dynamo.reset()

    def step(x):
        packed, v_last = rso.lif(x * 1.5, packed=True, emission=emission, return_state=True)
        return packed + 1, v_last * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = normal((5, 2, 34, 3, 2), 1).to(device)
    with torch.no_grad():
        for eager, traced in zip(step(x), compiled(x), strict=True):
            assert torch.equal(eager, traced)
            assert eager.stride() == traced.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_under_no_grad_nothing_is_refused(layout, device):
    x = lay_out(normal((3, 2, 3, 4, 5), 1).to(device), layout).requires_grad_()
    with pytest.raises(ValueError, match="packed=True is for inference"):
        rso.lif(x, packed=True)
    with torch.no_grad():
        packed = rso.lif(x, packed=True)
    assert torch.equal(packed, rso.lif(x.detach(), packed=True))
