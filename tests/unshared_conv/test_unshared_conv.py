"""realspike_ops.unshared_spike_conv: tables by hand, then a float64 computation over sizes,
geometry, layouts and dtypes. Weights on a grid make every sum exact, so that most results must be
equal; other weights are held to n_terms * u * sum |terms|."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from digests import digests
from helpers import (
    as_pair,
    assert_within,
    binary,
    examples,
    grid,
    kernel_order,
    normal,
    run_python,
    unshared_conv_by_hand,
    windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import realspike_ops as rso

CHANNELS = [1, 31, 32, 33, 63, 64, 65, 128, 129, 200]
SPIKE_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.bool, torch.uint8, torch.int8),
]
TABLE_SPIKES = torch.tensor([[[[1.0, 0], [1, 1]]]])  # [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("weight", "bias", "geometry", "out"),
    [
        # weight [OH, OW, KH, KW] of one channel
        pytest.param([[[[1]], [[2]]], [[[4]], [[8]]]], None, {}, [[1, 0], [4, 8]], id="1x1"),
        pytest.param([[[[1, 2], [4, 8]]]], None, {}, [[13]], id="2x2"),
        pytest.param([[[[1, 2], [4, 8]]]], [16], {}, [[29]], id="2x2-bias"),
        pytest.param([[[[1, 2], [4, 8]]]], [[[16]]], {}, [[29]], id="2x2-bias-per-element"),
        pytest.param(
            # Only the tap on pixel (0, 0), (1, 0) and (1, 1) is on a spike.
            [[[[1, 2], [4, 8]]] * 2] * 2,
            None,
            {"padding": 1, "stride": 2},
            [[8, 0], [2, 1]],
            id="padding-and-stride",
        ),
        pytest.param(
            [[[[1, 2], [4, 8]]] * 2] * 2, None, {"padding": "same"}, [[13, 4], [3, 1]], id="same"
        ),
        pytest.param([[[[1, 2], [4, 8]]]], None, {"padding": "valid"}, [[13]], id="valid"),
        pytest.param(
            [[[[1, 2], [4, 8]]] * 2] * 2,
            None,
            {"padding": 1, "dilation": 2},
            [[8, 4], [0, 1]],
            id="dilation",
        ),
        pytest.param(
            [[[[1], [4]], [[2], [8]]]],
            [[[16, 32]]],
            {},
            [[21, 40]],
            id="kernel-and-bias-follow-the-position",
        ),
    ],
)
@pytest.mark.parametrize(("N", "Cout"), [(1, 1), (1, 3), (4, 4)])
def test_by_hand(N, Cout, weight, bias, geometry, out, device):
    """One output channel, and several that are alike: other kernels on a CPU."""
    weight = torch.tensor(weight, dtype=torch.float32)[:, :, None, :, :, None, None].to(device)
    weight = weight.expand(*weight.shape[:-1], Cout)
    if bias is not None:
        bias = torch.tensor(bias, dtype=torch.float32, device=device).repeat_interleave(Cout, 0)
    spikes = TABLE_SPIKES.expand(N, -1, -1, -1).to(device)
    got = rso.unshared_spike_conv(spikes, weight, bias, **geometry)
    assert got.dtype == torch.float32
    assert got.tolist() == [[out] * Cout] * N


def output_size(size, kernel_size, stride=1, padding=0, dilation=1):
    maps = torch.empty(1, 1, *size)
    return tuple(windows(maps, kernel_size, stride, padding, dilation).shape[2:4])


def make_weight(size, Cin, Cout, kernel_size, groups, seed, draw=grid, **geometry):
    positions = output_size(size, kernel_size, **geometry)
    shape = (*positions, groups, *kernel_size, Cin // groups, Cout // groups)
    return draw(shape, seed)


def lay_out(spikes: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return spikes.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.ones_like(spikes).repeat(1, 1, 1, 2)
        wide[..., ::2] = spikes
        return wide[..., ::2]
    if layout == "transposed":
        return spikes.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "packed":
        return rso.pack_spikes(spikes)
    return spikes


@st.composite
def cases(draw):
    kernel_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = draw(
        st.one_of(
            st.integers(0, 3),
            st.tuples(st.integers(0, 3), st.integers(0, 2)),
            st.sampled_from(["same", "valid"]),
        )
    )
    stride = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    dilation = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 2), st.integers(1, 3))))
    if padding == "same":
        stride = 1
    # The smallest map that gives one output, and up to 5 more rows and columns.
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_size, as_pair(dilation), strict=True)]
    pad = (0, 0) if isinstance(padding, str) else as_pair(padding)
    size = tuple(
        max(1, r - 2 * p) + draw(st.integers(0, 5)) for r, p in zip(reach, pad, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 2, 3, 5]))
    depthwise = draw(st.booleans())
    Cin_g = 1 if depthwise else draw(st.sampled_from([1, 3, 16, 31, 33, 65]))
    Cout_g = draw(st.sampled_from([1, 2, 5, 16, 17, 40]))
    return {
        "size": size,
        "Cin": groups * Cin_g,
        "Cout": groups * Cout_g,
        "kernel_size": kernel_size,
        "groups": groups,
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation},
        "N": draw(st.sampled_from([0, 1, 2, 5])),
        "rate": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "dtype": draw(st.sampled_from(SPIKE_DTYPES)),
        "layout": draw(
            st.sampled_from(["contiguous", "channels_last", "sliced", "transposed", "packed"])
        ),
        "weight": draw(st.sampled_from(["grid", "normal", "shared", "strided"])),
        "bias": draw(st.sampled_from([None, "channel", "element", "element-strided"])),
        "seed": draw(st.integers(0, 2**20)),
    }


def make_inputs(case, device):
    spikes = binary((case["N"], case["Cin"], *case["size"]), case["seed"], case["rate"])
    draw = normal if case["weight"] == "normal" else grid
    weight = make_weight(
        *(case["size"], case["Cin"], case["Cout"], case["kernel_size"], case["groups"]),
        case["seed"] + 1,
        draw,
        **case["geometry"],
    ).to(device)
    if case["weight"] == "shared":
        weight = weight[:1, :1].expand_as(weight)
    if case["weight"] == "strided":
        weight = weight.transpose(0, 6).contiguous().transpose(0, 6)
    bias = None
    if case["bias"] is not None:
        shape = (case["Cout"], *weight.shape[:2])
        bias = draw(shape[:1] if case["bias"] == "channel" else shape, case["seed"] + 2).to(device)
    if case["bias"] == "element-strided":
        bias = bias.transpose(0, 2).contiguous().transpose(0, 2)
    return spikes.to(device, case["dtype"]), weight, bias


@settings(max_examples=examples(150))
@given(case=cases())
def test_sweep(case, device):
    spikes, weight, bias = make_inputs(case, device)
    laid_out = lay_out(spikes, case["layout"])
    out = rso.unshared_spike_conv(laid_out, weight, bias, **case["geometry"])
    by_hand = [None if t is None else t.cpu() for t in (spikes, weight, bias)]
    expected, bound = unshared_conv_by_hand(*by_hand, **case["geometry"])
    assert out.dtype == torch.float32
    if case["weight"] == "normal":
        assert_within(out.cpu(), expected, bound, "out")
    else:
        assert torch.equal(out.cpu().double(), expected)
    if spikes.numel() > 0:
        as_it_lies = laid_out.is_contiguous() and case["layout"] != "packed"
        is_channels_last = case["layout"] in ("channels_last", "packed") and not as_it_lies
        formats = {True: torch.channels_last, False: torch.contiguous_format}
        assert out.is_contiguous(memory_format=formats[is_channels_last])
    if case["geometry"]["padding"] not in ("same", "valid"):
        reference = rso.reference.unshared_spike_conv(spikes, weight, bias, **case["geometry"])
        assert_within(reference.cpu(), expected, bound, "reference")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "packed"])
@pytest.mark.parametrize("Cout", CHANNELS)
@pytest.mark.parametrize("Cin", CHANNELS)
def test_channels(Cin, Cout, layout, device):
    spikes = binary((2, Cin, 3, 2), Cin).to(device)
    weight = make_weight((3, 2), Cin, Cout, (2, 1), 1, Cout).to(device)
    out = rso.unshared_spike_conv(lay_out(spikes, layout), weight)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu())
    assert torch.equal(out.cpu().double(), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "packed"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("Cout_g", [1, 16, 17, 32, 40, 130])
def test_outputs_of_neighbouring_positions(Cout_g, groups, layout, device):
    # Enough positions for runs of 16, and a rest: they are written together.
    spikes = binary((5, groups * 20, 11, 13), 1).to(device)
    channels = (groups * 20, groups * Cout_g)
    weight = make_weight((11, 13), *channels, (1, 2), groups, 2).to(device)
    bias = grid((channels[1], *weight.shape[:2]), 3).to(device)
    out = rso.unshared_spike_conv(lay_out(spikes, layout), weight, bias)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu(), bias.cpu())
    assert torch.equal(out.cpu().double(), expected)


@pytest.mark.parametrize(("Cin_g", "Cout_g"), [(31, 33), (33, 16), (64, 129), (130, 7), (200, 1)])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_whose_words_overlap(groups, Cin_g, Cout_g, device):
    spikes = binary((3, groups * Cin_g, 3, 3), 1, 0.5).to(device)
    channels = (groups * Cin_g, groups * Cout_g)
    weight = make_weight((3, 3), *channels, (3, 3), groups, 2, padding=1).to(device)
    out = rso.unshared_spike_conv(spikes, weight, padding=1)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu(), padding=1)
    assert torch.equal(out.cpu().double(), expected)


def corners(sizes):
    return [tuple(at) for at in itertools.product(*((0, n - 1) for n in sizes))]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "packed"])
def test_one_spike_at_every_corner(layout, stride, device):
    shape, geometry = (2, 65, 4, 5), {"padding": 1, "stride": stride}
    weight = make_weight(shape[2:], 65, 33, (3, 3), 1, 1, **geometry).to(device)
    for corner in corners(shape):
        spikes = torch.zeros(shape, device=device)
        spikes[corner] = 1
        out = rso.unshared_spike_conv(lay_out(spikes, layout), weight, **geometry)
        expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu(), **geometry)
        assert expected.any()
        assert torch.equal(out.cpu().double(), expected)


def test_silence_gives_the_bias(device):
    weight = torch.full((4, 4, 1, 3, 3, 5, 7), float("nan"), device=device)
    bias = normal((7, 4, 4), 1).to(device)
    spikes = torch.zeros(2, 5, 4, 4, device=device)
    out = rso.unshared_spike_conv(spikes, weight, bias, padding=1)
    assert torch.equal(out, bias.expand_as(out))
    assert not rso.unshared_spike_conv(spikes, weight, padding=1).any()


def test_taps_outside_the_map_and_silent_channels_are_never_read(device):
    # Whatever must not be added is NaN.
    spikes = binary((1, 40, 3, 4), 1, 0.5).to(device)
    weight = make_weight((3, 4), 40, 20, (3, 3), 1, 2, padding=1).to(device)
    seen = windows(spikes, (3, 3), padding=1)[0].permute(1, 2, 3, 4, 0)  # [OH, OW, KH, KW, Cin]
    poisoned = torch.where(seen[:, :, None, ..., None] == 1, weight, float("nan"))
    out = rso.unshared_spike_conv(spikes, poisoned, padding=1)
    assert torch.equal(out, rso.unshared_spike_conv(spikes, weight, padding=1))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, (2, 0), "same", "valid"], ids=str)
@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 4), (1, 1)], ids=str)
def test_equals_conv2d_where_all_positions_hold_one_kernel(kernel_size, padding, groups, device):
    spikes = binary((3, 6, 7, 8), 1).to(device)
    kernel = grid((4, 6 // groups, *kernel_size), 2).to(device)
    bias = grid((4,), 3).to(device)
    expected = F.conv2d(spikes, kernel, bias, padding=padding, groups=groups)
    shared = kernel_order(kernel, groups).expand(*expected.shape[2:], *[-1] * 5)
    for weight in (shared, shared.contiguous()):
        out = rso.unshared_spike_conv(spikes, weight, bias, padding=padding)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", SPIKE_DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_every_dtype_of_spikes(dtype, layout, device):
    spikes = binary((2, 33, 4, 4), 1).to(device)
    weight = make_weight((4, 4), 33, 5, (3, 3), 1, 2).to(device)
    expected = rso.unshared_spike_conv(spikes, weight)
    typed = spikes.to(dtype)
    if dtype.is_floating_point:
        typed = torch.where(typed == 0, -0.0, typed)
        assert typed.signbit().any()
    assert torch.equal(rso.unshared_spike_conv(lay_out(typed, layout), weight), expected)


@pytest.mark.parametrize("N", [1, 255, 256, 257, 600])
def test_many_samples(N, device):
    spikes = binary((N, 40, 2, 2), 1).to(device)
    weight = make_weight((2, 2), 40, 19, (2, 2), 1, 2, padding=1).to(device)
    out = rso.unshared_spike_conv(spikes, weight, padding=1)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu(), padding=1)
    assert torch.equal(out.cpu().double(), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_beyond_the_cache(groups, device):
    # More than 8 MiB of weights: the rows are fetched ahead.
    spikes = binary((3, 66, 12, 12), 1, 0.2).to(device)
    weight = make_weight((12, 12), 66, 60, (3, 3), groups, 2, padding=1).to(device)
    assert weight.nbytes > 8 * 2**20
    out = rso.unshared_spike_conv(spikes, weight, padding=1)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu(), padding=1)
    assert torch.equal(out.cpu().double(), expected)


def test_many_channels_and_taps(device):
    # More channels than a block and than the widest registers; more taps than one pass.
    spikes = binary((2, 300, 9, 9), 1, 0.2).to(device)
    weight = make_weight((9, 9), 300, 290, (9, 9), 1, 2).to(device)
    out = rso.unshared_spike_conv(spikes, weight)
    expected, _ = unshared_conv_by_hand(spikes.cpu(), weight.cpu())
    assert torch.equal(out.cpu().double(), expected)


def test_sums_ascend_over_taps_and_channels_then_the_bias():
    spikes = binary((2, 150, 5, 4), 1, 0.5)
    weight = make_weight((5, 4), 150, 23, (3, 2), 1, 2, normal, padding=1)
    bias = normal((23,), 3)
    seen = windows(spikes, (3, 2), padding=1)  # [N, Cin, OH, OW, KH, KW]
    expected = torch.zeros(2, 6, 5, 23)[:, : weight.shape[0], : weight.shape[1]]
    for kh, kw, ci in itertools.product(range(3), range(2), range(150)):
        expected = expected + seen[:, ci, :, :, kh, kw, None] * weight[:, :, 0, kh, kw, ci]
    expected = (expected + bias).permute(0, 3, 1, 2)
    assert torch.equal(rso.unshared_spike_conv(spikes, weight, bias, padding=1), expected)


@pytest.mark.parametrize(
    ("N", "Cin", "Cout", "size"),
    [
        pytest.param(70, 33, 40, (9, 11), id="maps"),
        pytest.param(300, 200, 30, (1, 1), id="one-position"),
        pytest.param(1, 16, 200, (16, 16), id="one-sample"),
        pytest.param(2, 5, 1, (3, 3), id="tiny"),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_same_bits_for_any_number_of_threads(N, Cin, Cout, size, layout):
    spikes = lay_out(binary((N, Cin, *size), 1), layout)
    weight = make_weight(size, Cin, Cout, (3, 3), 1, 2, normal, padding=1)
    bias = normal((Cout,), 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2, 3, 7):
            torch.set_num_threads(count)
            results.append(rso.unshared_spike_conv(spikes, weight, bias, padding=1))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.fixture(scope="module")
def own_digests():
    return digests()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_same_bits_for_every_instruction_set(isa, own_digests):
    # In a process of its own: the instruction set is chosen once.
    outcome = json.loads(run_python("-m", "digests", REALSPIKE_CPU_ISA=isa))
    if outcome["isa"] != isa:
        pytest.skip(f"this CPU lacks {isa}")
    assert outcome["digests"] == own_digests


@pytest.mark.parametrize(
    ("shared", "packed", "channels_last", "N", "bias"),
    [
        pytest.param(False, False, True, 2, (6, 4, 5), id="dense-channels_last"),
        pytest.param(True, True, False, 2, (6,), id="packed-shared"),
        pytest.param(False, False, False, 0, (6,), id="empty"),
    ],
)
def test_opcheck(shared, packed, channels_last, N, bias, device):
    spikes = binary((N, 40, 4, 5), 1).to(device)
    spikes = rso.pack_spikes(spikes) if packed else spikes.requires_grad_()
    weight = make_weight((4, 5), 40, 6, (3, 3), 2, 2, padding=1).to(device)
    weight = weight[:1, :1].expand_as(weight) if shared else weight.requires_grad_()
    bias = None if bias is None else normal(bias, 3).to(device).requires_grad_()
    args = (spikes, weight, bias, None, None, (4, 5), (1, 1), (1, 1), (1, 1), channels_last, True)
    torch.library.opcheck(torch.ops.realspike.unshared_conv.default, args)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(dynamic, device):
    torch._dynamo.reset()
    weight = make_weight((4, 5), 40, 6, (3, 3), 1, 2, padding=1).to(device)

    def network(x):
        return rso.unshared_spike_conv((x > 0).float(), weight, padding=1) * 2

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for N in (2, 5) if dynamic else (2,):
        x = normal((N, 40, 4, 5), 1).to(device)
        with torch.no_grad():
            assert torch.equal(compiled(x), network(x))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "packed"])
def test_empty_batch(layout, device):
    weight = make_weight((4, 5), 40, 6, (3, 3), 1, 2).to(device)
    spikes = lay_out(torch.zeros(0, 40, 4, 5, device=device), layout)
    assert rso.unshared_spike_conv(spikes, weight).shape == (0, 6, 2, 3)


@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan")])
def test_real_valued_spikes_raise(value):
    spikes = torch.zeros(1, 2, 3, 3)
    spikes[0, 1, 2, 2] = value
    weight = make_weight((3, 3), 2, 1, (1, 1), 1, 1)
    with pytest.raises(ValueError, match=r"spikes must be 0 or 1"):
        rso.unshared_spike_conv(spikes, weight)


@settings(max_examples=examples(40))
@given(case=cases(), grad_layout=st.sampled_from(["contiguous", "channels_last", "expanded"]))
def test_gradients(case, grad_layout, device):
    """All gradients are sums of products of grid values: exact in float32 in any order."""
    case = case | {"weight": "grid", "N": max(1, case["N"])}
    spikes, weight, bias = make_inputs(case, device)
    if case["layout"] == "packed" or not spikes.dtype.is_floating_point:
        case = case | {"layout": "contiguous"}
        spikes = spikes.float()
    if spikes.dtype in (torch.float16, torch.bfloat16):
        spikes = spikes.float()
    leaves = [lay_out(spikes, case["layout"]), weight, bias]
    leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]
    out = rso.unshared_spike_conv(*leaves, **case["geometry"])
    by_hand = [None if t is None else t.detach().cpu().double().requires_grad_() for t in leaves]
    expected, _ = unshared_conv_by_hand(*by_hand, **case["geometry"])
    grad_out = lay_out(grid(out.shape, case["seed"] + 3).to(device), grad_layout)
    if grad_layout == "expanded":
        grad_out = torch.ones((), device=device).expand(out.shape)
    out.backward(grad_out)
    expected.backward(grad_out.cpu().double())
    for name, leaf, by in zip(("spikes", "weight", "bias"), leaves, by_hand, strict=True):
        if leaf is not None:
            assert leaf.grad.dtype == leaf.dtype
            assert torch.equal(leaf.grad.cpu().double(), by.grad), name


@pytest.mark.parametrize("groups", [1, 2])
def test_gradient_of_an_empty_batch(groups, device):
    spikes = torch.zeros(0, 6, 4, 4, device=device, requires_grad=True)
    weight = make_weight((4, 4), 6, 4, (3, 3), groups, 2, padding=1).to(device).requires_grad_()
    bias = grid((4,), 3).to(device).requires_grad_()
    rso.unshared_spike_conv(spikes, weight, bias, padding=1).sum().backward()
    assert spikes.grad.shape == spikes.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(bias.grad, torch.zeros_like(bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_gradient_in_the_dtype_of_the_spikes(dtype, device):
    weight = make_weight((4, 4), 3, 2, (3, 3), 1, 2, padding=1).to(device)
    grads = []
    for each in (torch.float32, dtype):
        spikes = binary((2, 3, 4, 4), 1).to(device, each).requires_grad_()
        rso.unshared_spike_conv(spikes, weight, padding=1).sum().backward()
        assert spikes.grad.dtype == each
        grads.append(spikes.grad)
    assert torch.equal(grads[1], grads[0].to(dtype))


def test_gradient_of_a_shared_kernel_is_that_of_conv2d(device):
    spikes = binary((2, 6, 5, 5), 1).to(device)
    kernel = grid((4, 3, 3, 3), 2).to(device)
    grad_out = grid((2, 4, 5, 5), 3).to(device)
    grads = []
    for shared in (False, True):
        leaf = kernel.clone().requires_grad_()
        if shared:
            weight = kernel_order(leaf, 2).expand(5, 5, *[-1] * 5)
            out = rso.unshared_spike_conv(spikes, weight, padding=1)
        else:
            out = F.conv2d(spikes, leaf, padding=1, groups=2)
        out.backward(grad_out)
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("what", ["spikes", "weight", "bias"])
def test_gradient_of_one_argument_alone(what, device):
    tensors = {
        "spikes": binary((2, 3, 4, 4), 1).to(device),
        "weight": make_weight((4, 4), 3, 2, (3, 3), 1, 2, padding=1).to(device),
        "bias": grid((2, 4, 4), 3).to(device),
    }
    together = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    rso.unshared_spike_conv(**together, padding=1).sum().backward()
    tensors[what].requires_grad_()
    rso.unshared_spike_conv(**tensors, padding=1).sum().backward()
    assert torch.equal(tensors[what].grad, together[what].grad)


def test_weights_learn_from_packed_spikes(device):
    spikes = binary((2, 40, 4, 4), 1).to(device)
    grads = []
    for given_spikes in (spikes, rso.pack_spikes(spikes)):
        weight = make_weight((4, 4), 40, 2, (3, 3), 1, 2, padding=1).to(device).requires_grad_()
        rso.unshared_spike_conv(given_spikes, weight, padding=1).sum().backward()
        grads.append(weight.grad)
    assert torch.equal(*grads)
    assert grads[0].any()


def test_backward_keeps_one_bit_per_spike(device):
    spikes = binary((2, 64, 4, 4), 1).to(device).requires_grad_()
    weight = make_weight((4, 4), 64, 2, (3, 3), 1, 2, padding=1).to(device).requires_grad_()
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rso.unshared_spike_conv(spikes, weight, padding=1)
    assert sum(storages.values()) == 2 * 64 * 16 // 8 + weight.nbytes


def test_no_gradient_arrives():
    """A function behind the convolution whose backward gives None: nothing is computed."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    weight = torch.ones(2, 2, 1, 2, 2, 1, 1, requires_grad=True)
    scale = torch.ones((), requires_grad=True)
    spikes = torch.ones(1, 1, 3, 3, requires_grad=True)
    out = Nothing.apply(rso.unshared_spike_conv(spikes, weight))
    (out * scale).sum().backward()
    assert scale.grad == 16.0
    assert all(x.grad is None or not x.grad.any() for x in (weight, spikes))
