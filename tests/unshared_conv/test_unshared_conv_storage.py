"""How unshared weights are stored: float16, bfloat16, int8, factored, one kernel for all positions;
and the modules that take them. Each against a float64 computation on the values that
are stored, so that only the sums can differ."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    U,
    as_pair,
    assert_within,
    binary,
    examples,
    generator,
    grid,
    kernel_order,
    normal,
    unshared_conv_by_hand,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import realspike_ops as rso
from realspike_ops._native import extension
from realspike_ops.ops.unshared_conv_factored import factored_conv2d

HALVES = [torch.float16, torch.bfloat16]
# Whole vectors of every width, and one channel less and more.
WIDTHS = [1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 600]


def biased(int8: torch.Tensor) -> torch.Tensor:
    return (int8.to(torch.int16) + 128).to(torch.uint8)


def random_int8(shape, seed: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, generator=generator(seed), dtype=torch.int8)


def stored_weight(shape, dtype, seed, device):
    """Return the weight as the op takes it, and its values in float64."""
    if dtype == torch.uint8:
        int8 = random_int8(shape, seed)
        return biased(int8).to(device), int8.double()
    weight = normal(shape, seed).to(dtype)
    return weight.to(device), weight.double()


def by_hand(spikes, values, bias, dtype, scale=None, **geometry):
    """Return the result in float64 and its bound; sums of int8 are exact."""
    out, bound = unshared_conv_by_hand(spikes, values, **geometry)
    if dtype == torch.uint8:
        bound = torch.zeros_like(bound)
    if scale is not None:
        out = out * scale.double()[:, None, None]
        bound = bound + U * out.abs()
    if bias is not None:
        out = out + bias.double().reshape(-1, *(bias.shape[1:] or (1, 1)))
        bound = bound + U * (out.abs() + bias.double().abs().max())
    return out, bound * 1.01


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.uint8], ids=str)
@pytest.mark.parametrize("Cout", WIDTHS)
def test_rows_of_every_width(Cout, dtype, device):
    spikes = binary((3, 40, 3, 2), Cout)
    weight, values = stored_weight((3, 2, 1, 3, 1, 40, Cout), dtype, 1, device)
    out = rso.unshared_spike_conv(spikes.to(device), weight, padding=(1, 0))
    expected, bound = by_hand(spikes, values, None, dtype, padding=(1, 0))
    assert_within(out.cpu(), expected, bound, "out")


@st.composite
def cases(draw):
    kernel_size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.one_of(st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 1))))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_size, dilation, strict=True)]
    size = tuple(
        max(1, r - 2 * p) + draw(st.integers(0, 4))
        for r, p in zip(reach, as_pair(padding), strict=True)
    )
    groups = draw(st.sampled_from([1, 2, 3]))
    return {
        "size": size,
        "Cin_g": draw(st.sampled_from([1, 3, 31, 33, 130])),
        "Cout_g": draw(st.sampled_from([1, 16, 17, 40, 70])),
        "groups": groups,
        "kernel_size": kernel_size,
        "geometry": {"stride": stride, "padding": padding, "dilation": dilation},
        "N": draw(st.sampled_from([1, 2, 5, 20])),
        "rate": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "dtype": draw(st.sampled_from([torch.float32, *HALVES, torch.uint8])),
        "storage": draw(st.sampled_from(["unshared", "shared", "factored"])),
        "bias": draw(st.sampled_from([None, "channel", "element"])),
        "scaled": draw(st.booleans()),
        "packed": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**20)),
    }


def output_size(size, kernel_size, stride, padding, dilation):
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            size, kernel_size, as_pair(stride), as_pair(padding), as_pair(dilation), strict=True
        )
    )


def unshared_values(kernel, amplitude, size, groups, stride, padding, dilation):
    """Return amplitude * kernel in kernel order, in float64, by one loop over the taps."""
    (sh, sw), (ph, pw), (dh, dw) = (as_pair(x) for x in (stride, padding, dilation))
    OH, OW = size
    _, _, G, KH, KW, Cin_g, Cout_g = kernel.shape
    _, H, W = amplitude.shape
    values = torch.zeros(OH, OW, G, KH, KW, Cin_g, Cout_g, dtype=torch.float64)
    positions = (range(OH), range(OW), range(KH), range(KW))
    for oh, ow, kh, kw in itertools.product(*positions):
        h, w = oh * sh - ph + kh * dh, ow * sw - pw + kw * dw
        if 0 <= h < H and 0 <= w < W:
            a = amplitude[:, h, w].double().view(groups, Cin_g, 1)
            values[oh, ow, :, kh, kw] = a * kernel[0, 0, :, kh, kw].double()
    return values


@settings(max_examples=examples(150))
@given(case=cases())
def test_sweep(case, device):
    dtype, storage, geometry = case["dtype"], case["storage"], case["geometry"]
    if storage == "factored" and dtype == torch.uint8:
        dtype = torch.float32
    size = output_size(case["size"], case["kernel_size"], **geometry)
    G, Cin_g, Cout_g = case["groups"], case["Cin_g"], case["Cout_g"]
    shape = (G, *case["kernel_size"], Cin_g, Cout_g)
    spikes = binary((case["N"], G * Cin_g, *case["size"]), case["seed"], case["rate"])
    position = size if storage == "unshared" else (1, 1)
    weight, values = stored_weight((*position, *shape), dtype, case["seed"] + 1, device)
    amplitude = scale = bias = None
    if storage == "factored":
        amplitude = normal((G * Cin_g, *case["size"]), case["seed"] + 2)
        values = unshared_values(values, amplitude, size, G, **geometry)
    else:
        values = values.expand(*size, *shape)
    if dtype == torch.uint8 and case["scaled"]:
        scale = torch.rand(G * Cout_g, generator=generator(case["seed"] + 3)) + 0.5
    if case["bias"] is not None:
        bias = normal((G * Cout_g, *(size if case["bias"] == "element" else ())), case["seed"] + 4)
    given_spikes = rso.pack_spikes(spikes) if case["packed"] else spikes
    tensors = [None if t is None else t.to(device) for t in (bias, amplitude, scale)]
    out = rso.unshared_spike_conv(
        *(given_spikes.to(device), weight, tensors[0]),
        **(geometry | {"amplitude": tensors[1], "scale": tensors[2]}),
    )
    expected, bound = by_hand(spikes, values, bias, dtype, scale, **geometry)
    if amplitude is not None:  # every product is rounded as well
        bound = 2 * bound
    assert out.dtype == torch.float32
    assert_within(out.cpu(), expected, bound, "out")


def test_int8_lanes_do_not_overflow(device):
    # More than 257 rows of the largest byte, in every part of a vector.
    for Cout in (64, 33):
        for value in (-128, 127):
            weight = biased(torch.full((1, 1, 1, 2, 2, 700, Cout), value, dtype=torch.int8))
            spikes = torch.ones(2, 700, 2, 2)
            out = rso.unshared_spike_conv(spikes.to(device), weight.to(device))
            assert torch.equal(out.cpu(), torch.full((2, Cout, 1, 1), 2800.0 * value))


def test_half_weights_are_widened_exactly(device):
    # Subnormals, the largest finite number, infinities; each in every lane of a vector.
    special = torch.tensor([2.0**-24, 2.0**-14 - 2.0**-24, 65504.0, float("inf"), -0.0])
    for dtype, Cout in itertools.product(HALVES, (5, 16, 37, 64)):
        weight = torch.stack([special.roll(i) for i in range(5)]).repeat(1, Cout)[:, :Cout]
        weight = weight.to(dtype).view(1, 1, 1, 1, 1, 5, Cout)
        for channel in range(5):
            spikes = torch.zeros(1, 5, 1, 1)
            spikes[0, channel] = 1
            out = rso.unshared_spike_conv(spikes.to(device), weight.to(device))
            assert torch.equal(out[0, :, 0, 0].cpu(), weight[0, 0, 0, 0, 0, channel].float())


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.uint8], ids=str)
def test_weights_beyond_the_cache(dtype, device):
    # More than 8 MiB of weights: the rows are fetched ahead. Few and many samples are cut unlike.
    elements = 2**23 // torch.empty(0, dtype=dtype).element_size()
    Cout = -(-elements // (6 * 6 * 9 * 66)) + 1
    weight, values = stored_weight((6, 6, 1, 3, 3, 66, Cout), dtype, 2, device)
    assert weight.nbytes > 2**23
    for N in (3, 40):
        spikes = binary((N, 66, 6, 6), 1, 0.1)
        out = rso.unshared_spike_conv(spikes.to(device), weight, padding=1)
        expected, bound = by_hand(spikes, values, None, dtype, padding=1)
        assert_within(out.cpu(), expected, bound, "out")


def test_quantize_weight_by_hand():
    weight = torch.tensor([[1.27, 0.0], [-0.005, 0.0], [0.015, 0.0]]).view(1, 1, 1, 1, 1, 3, 2)
    quantized, scale = rso.quantize_weight(weight)
    # Steps of 0.01 in the first channel, of 1 in the empty one; ties go to even.
    assert torch.allclose(scale, torch.tensor([0.01, 1.0]))
    assert (quantized.int() - 128).view(3, 2).tolist() == [[127, 0], [0, 0], [2, 0]] or (
        quantized.int() - 128
    ).view(3, 2).tolist() == [[127, 0], [-1, 0], [1, 0]]
    error = (quantized.double() - 128) * scale.double() - weight.double()
    assert (error.abs() <= scale.double() * 0.5 * (1 + 1e-6)).all()


def test_quantized_weights_of_all_positions_share_the_scale_of_a_channel():
    weight = normal((3, 2, 2, 3, 3, 5, 4), 1)
    quantized, scale = rso.quantize_weight(weight)
    largest = weight.abs().amax((0, 1, 3, 4, 5)).flatten()
    assert torch.equal(scale, (largest.double() / 127).float())
    steps = scale.view(2, 1, 1, 1, 4)
    error = ((quantized.float() - 128) * steps - weight).abs()
    assert (error <= 0.5 * steps * (1 + 1e-5)).all()
    assert (
        (quantized.amax((0, 1, 3, 4, 5)) == 255)
        .logical_or(quantized.amin((0, 1, 3, 4, 5)) == 1)
        .all()
    )


# --- gradients ------------------------------------------------------------------------------------


def leaf_of(tensor: torch.Tensor, device="cpu") -> torch.Tensor:
    return tensor.detach().clone().to(device).requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_factored_storage(groups, stride, device):
    geometry = {"padding": 1, "stride": stride}
    spikes = binary((3, 6, 5, 4), 1)
    kernel, amplitude = grid((1, 1, groups, 3, 3, 6 // groups, 4), 2), grid((6, 5, 4), 3)
    leaves = [leaf_of(t, device) for t in (spikes, kernel, amplitude)]
    out = rso.unshared_spike_conv(leaves[0], leaves[1], amplitude=leaves[2], **geometry)
    grad_out = grid(out.shape, 4)
    out.backward(grad_out.to(device))
    by_conv = [leaf_of(t.double()) for t in (spikes, kernel, amplitude)]
    conv_weight = by_conv[1][0, 0].permute(0, 4, 3, 1, 2).flatten(0, 1)
    x = by_conv[2] * by_conv[0]
    F.conv2d(x, conv_weight, groups=groups, **geometry).backward(grad_out.double())
    for name, leaf, expected in zip(
        ("spikes", "weight", "amplitude"), leaves, by_conv, strict=True
    ):
        assert torch.equal(leaf.grad.cpu().double(), expected.grad), name


@pytest.mark.parametrize("what", ["spikes", "weight", "amplitude"])
def test_gradient_of_one_argument_of_factored_storage(what, device):
    tensors = {
        "spikes": binary((2, 3, 4, 4), 1),
        "weight": grid((1, 1, 1, 3, 3, 3, 2), 2),
        "amplitude": grid((3, 4, 4), 3),
    }
    together = {name: leaf_of(t, device) for name, t in tensors.items()}
    rso.unshared_spike_conv(**together, padding=1).sum().backward()
    alone = {name: t.to(device) for name, t in tensors.items()}
    alone[what].requires_grad_()
    rso.unshared_spike_conv(**alone, padding=1).sum().backward()
    assert torch.equal(alone[what].grad, together[what].grad)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_gradient_of_one_kernel_for_all_is_that_of_conv2d(padding, device):
    spikes = binary((2, 6, 5, 5), 1).to(device)
    kernel = grid((4, 3, 2, 3), 2).to(device)
    grads = []
    for shared in (False, True):
        leaves = [leaf_of(t, device) for t in (spikes, kernel)]
        if shared:
            weight = kernel_order(leaves[1], 2)[None, None]
            out = rso.unshared_spike_conv(leaves[0], weight, padding=padding)
        else:
            out = F.conv2d(*leaves, padding=padding, groups=2)
        out.backward(grid(out.shape, 3).to(device))
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gradients_of_half_weights(dtype, device):
    spikes = binary((2, 3, 4, 4), 1).to(device)
    weight = grid((4, 4, 1, 3, 3, 3, 2), 2).to(device)
    grads = []
    for each in (torch.float32, dtype):
        leaves = [leaf_of(spikes, device), leaf_of(weight.to(each), device)]
        rso.unshared_spike_conv(*leaves, padding=1).sum().backward()
        assert leaves[1].grad.dtype == each
        grads.append([leaf.grad.float() for leaf in leaves])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
def test_gradient_of_the_spikes_through_int8(scaled, device):
    spikes = binary((2, 3, 4, 4), 1)
    int8 = random_int8((4, 4, 1, 3, 3, 3, 2), 2)
    scale = torch.tensor([0.5, 2.0]) if scaled else None
    leaf = leaf_of(spikes, device)
    rso.unshared_spike_conv(
        *(leaf, biased(int8).to(device)),
        padding=1,
        scale=None if scale is None else scale.to(device),
    ).sum().backward()
    weight = int8.float() * (1 if scale is None else scale)
    expected = leaf_of(spikes)
    rso.reference.unshared_spike_conv(expected, weight, padding=1).sum().backward()
    assert torch.equal(leaf.grad.cpu(), expected.grad)


# --- factored storage on a GPU --------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [(8,), (8, 2, 3)], ids=str)
def test_convolution_of_amplitude_times_spikes_is_the_gather(packed, bias):
    """What stands for the kernel that a GPU lacks; here on the CPU, where both exist."""
    spikes = binary((3, 66, 4, 5), 1)
    weight, amplitude = grid((1, 1, 2, 3, 3, 33, 4), 2), grid((66, 4, 5), 4)
    options = {"bias": grid(bias, 3), "amplitude": amplitude, "stride": 2, "padding": (1, 1)}
    expected = rso.unshared_spike_conv(spikes, weight, **options)
    assert expected.any()
    spikes = rso.pack_spikes(spikes) if packed else spikes.double()
    geometry = ((2, 2), (1, 1), (1, 1))
    out = factored_conv2d(spikes, weight, options["bias"], amplitude, (2, 3), geometry)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


def test_the_check_can_be_switched_off():
    spikes = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)
    weight = torch.tensor([1.0, 4.0]).view(1, 1, 1, 1, 1, 2, 1)
    assert rso.unshared_spike_conv(spikes, weight, check_binary=False).item() == 4.0
    packed = torch.full((1, 1, 1, 1), 0b110, dtype=torch.int32)
    assert rso.unshared_spike_conv(packed, weight, check_binary=False).item() == 4.0


# --- modules --------------------------------------------------------------------------------------

STEP = {torch.float32: U, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def a_layer(groups=2):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 20, 3, padding=1, stride=(1, 2), groups=groups)
    return conv, normal((6, 5, 4), 1), binary((3, 6, 5, 4), 2, 0.5)


@pytest.mark.parametrize("storage", ["materialized", "factored"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES, torch.int8], ids=str)
def test_from_conv2d_in_every_storage(dtype, storage, device):
    if storage == "factored" and dtype == torch.int8:
        pytest.skip("refused")
    conv, amplitude, spikes = a_layer()
    layer = rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, dtype=dtype, storage=storage)
    out = layer.to(device)(spikes.to(device)).detach().cpu().double()
    conv = conv.double()
    expected = conv(amplitude.double() * spikes.double())
    magnitude = F.conv2d(
        (amplitude.double() * spikes.double()).abs(), conv.weight.abs(), None, (1, 2), 1, 1, 2
    )
    if dtype == torch.int8:
        fired = F.conv2d(spikes.double(), torch.ones_like(conv.weight), None, (1, 2), 1, 1, 2)
        rounding = 0.5 * layer.scale.cpu().double()[:, None, None] * fired
    else:
        rounding = STEP[dtype] * magnitude
    # Rounding of the weights, and of at most 28 products and sums.
    error = (out - expected).abs().detach()
    assert (error <= 1.01 * (rounding + 60 * U * (magnitude + 1))).all()
    positions = (1, 1) if storage == "factored" else (5, 2)
    assert tuple(layer.weight.shape) == (*positions, 2, 3, 3, 3, 10)
    assert layer.weight.element_size() == (1 if dtype == torch.int8 else dtype.itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("storage", ["materialized", "factored"])
def test_an_amplitude_constant_over_space_needs_one_kernel(storage, dtype, device):
    if storage == "factored" and dtype == torch.int8:
        pytest.skip("refused")
    conv, amplitude, spikes = a_layer()
    constant = amplitude[:, :1, :1].expand(6, 5, 4)
    layer = rso.UnsharedSpikeConv.from_conv2d(conv, constant, dtype=dtype, storage=storage)
    assert tuple(layer.weight.shape[:2]) == (1, 1)
    assert layer.amplitude is None
    expected = conv(constant * spikes).detach()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.int8: 0.05}[dtype]
    out = layer.to(device)(spikes.to(device)).detach().cpu()
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    changed = constant.clone()
    changed[0, 0, 1] += 1
    layer = rso.UnsharedSpikeConv.from_conv2d(conv, changed)
    assert tuple(layer.weight.shape[:2]) == (5, 2)


def test_folded_scale_leaves_the_spikes_of_the_neurons(device):
    """In steps of the scale, potential and threshold shrink alike; nothing is multiplied."""
    conv, amplitude, spikes = a_layer()
    layers = [
        rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, dtype=torch.int8, fold_scale=folded).to(
            device
        )
        for folded in (False, True)
    ]
    currents = [layer(spikes.to(device)).detach() for layer in layers]
    scale = layers[1].scale[:, None, None]
    torch.testing.assert_close(currents[1] * scale, currents[0], rtol=1e-5, atol=1e-6)
    assert layers[0].threshold(0.5) == 0.5
    fired = [
        rso.lif(current[:, None], v_threshold=layer.threshold(0.5))
        for current, layer in zip(currents, layers, strict=True)
    ]
    near = ((currents[0] - 0.5).abs() < 1e-5).any()
    assert not near
    assert fired[0].any()
    assert torch.equal(*fired)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [2, "same"])
@pytest.mark.parametrize("amplitude", [None, (1,), (6, 1), (6, 11)], ids=str)
def test_conv1d(amplitude, padding, groups, device):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(6, 8, 5, padding=padding, groups=groups)
    amplitude = None if amplitude is None else normal(amplitude, 1)
    spikes = binary((3, 6, 11), 2, 0.5)
    layer = rso.UnsharedSpikeConv1d.from_conv1d(conv, amplitude, 11).to(device)
    expected = conv(spikes if amplitude is None else amplitude * spikes).detach()
    for given_spikes in (spikes, rso.pack_spikes(spikes)):
        out = layer(given_spikes.to(device)).detach().cpu()
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_conv1d_takes_its_size_from_the_amplitude():
    conv = torch.nn.Conv1d(6, 8, 5, stride=2, dilation=2, bias=False)
    layer = rso.UnsharedSpikeConv1d.from_conv1d(conv, normal((6, 21), 1))
    assert layer.input_size == (1, 21)
    assert tuple(layer.weight.shape) == (1, 7, 1, 1, 5, 6, 8)
    own = rso.UnsharedSpikeConv1d(6, 8, 5, input_size=21, stride=2, dilation=2, bias=False)
    assert own.weight.shape == layer.weight.shape
    assert own(torch.zeros(2, 6, 21)).shape == (2, 8, 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8], ids=str)
def test_initial_weights_in_every_storage(dtype):
    torch.manual_seed(0)
    layer = rso.UnsharedSpikeConv(6, 8, 3, input_size=(5, 4), dtype=dtype)
    bound = (9 * 6) ** -0.5
    values = layer.weight.float()
    if dtype == torch.int8:
        values = (values - 128) * layer.scale
    assert values.abs().max() <= bound * (1 + 2.0**-11)
    assert values.std() > 0.4 * bound
    factored = rso.UnsharedSpikeConv(6, 8, 3, input_size=(5, 4), storage="factored")
    assert (factored.amplitude == 1).all()
    assert tuple(factored.weight.shape[:2]) == (1, 1)


def test_spike_linear_reads_packed_spikes(device):
    layer = rso.SpikeLinear(70, 5).to(device)
    spikes = binary((3, 70), 1).to(device)
    assert torch.equal(layer(rso.pack_spikes(spikes)), layer(spikes))


def test_memory_is_checked_before_anything_is_allocated(monkeypatch):
    from realspike_ops.nn.synapses import storage

    monkeypatch.setattr(storage, "bytes_available", lambda device: 5 * 2 * 2 * 9 * 3 * 10 * 4 - 1)
    conv, amplitude, _ = a_layer()
    with pytest.raises(ValueError, match=r"needs 21600 bytes; 21599 are available on cpu"):
        rso.UnsharedSpikeConv.from_conv2d(conv, amplitude)
    rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, dtype=torch.float16)
    rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, storage="factored")


def test_int8_folding_never_holds_the_weights_in_float(monkeypatch):
    """Rows of positions alone pass through it."""
    from realspike_ops.nn.synapses import storage

    sizes = []
    steps = storage.int8_steps
    monkeypatch.setattr(
        storage, "int8_steps", lambda row, scale: sizes.append(row.shape[:1]) or steps(row, scale)
    )
    conv, amplitude, _ = a_layer()
    rso.UnsharedSpikeConv.from_conv2d(conv, amplitude, dtype=torch.int8)
    assert sizes == 5 * [(2,)]


# --- how the work is cut --------------------------------------------------------------------------


def tiles(N, Cin, Cout, size, dtype=0, threads=2, kernel=3, shared=False, stride_c=1, **others):
    fields = {
        **{"weight_dtype": dtype, "N": N, "H": size, "W": size, "words": -(-Cin // 32)},
        **{"OH": size, "OW": size, "G": 1, "KH": kernel, "KW": kernel, "Cin_g": Cin},
        **{"Cout_g": Cout, "stride_h": 1, "stride_w": 1, "padding_h": 1, "padding_w": 1},
        **{"dilation_h": 1, "dilation_w": 1, "bias_stride_c": 0, "bias_stride_p": 0},
        "weight_stride_p": 0 if shared else kernel * kernel * Cin * Cout,
        **{"out_stride_n": 0, "out_stride_c": stride_c, "out_stride_p": 0},
    }
    params = extension().UnsharedConvParams(**fields | others)
    return extension().unshared_conv_tiles(params, threads)


def test_a_record_whose_fields_are_named_wrongly_is_refused():
    with pytest.raises(TypeError, match="weight_dtype"):
        extension().UnsharedConvParams(N=1, H=1)
    with pytest.raises(TypeError, match="height"):
        tiles(4, 32, 32, 8, height=1)


@pytest.mark.parametrize(
    ("N", "dtype", "blocks"),
    [
        # of 9 taps of 128 channels; a row of 128 channels
        pytest.param(4, 0, 1, id="few-float32"),
        pytest.param(4, 2, 1, id="few-bfloat16"),
        pytest.param(4, 3, 3, id="few-int8"),
        pytest.param(64, 0, 1, id="many-float32"),
        pytest.param(64, 1, 3, id="many-float16"),
        pytest.param(64, 3, 9, id="many-int8"),
    ],
)
def test_loop_order_of_a_wide_layer(N, dtype, blocks):
    assert tiles(N, 128, 128, 32, dtype)["blocks_per_pass"] == blocks


def test_passes_of_a_position_are_equal():
    for N, Cin, Cout, dtype, kernel in itertools.product(
        (4, 64), (1, 64, 128, 512), (16, 128, 512), (0, 2, 3), (1, 3, 5)
    ):
        blocks = kernel * kernel * -(-Cin // 128)
        per_pass = tiles(N, Cin, Cout, 8, dtype, kernel=kernel)["blocks_per_pass"]
        passes = -(-blocks // per_pass)
        assert 1 <= per_pass <= 32
        assert per_pass == -(-blocks // passes)


def test_few_samples_take_narrow_tiles_and_many_wide_ones():
    assert tiles(4, 128, 512, 8)["channels"] == 128
    assert tiles(64, 128, 512, 8)["channels"] == 512
    assert tiles(256, 128, 512, 8)["channels"] == 128
    for N, Cout in itertools.product((1, 16, 17, 64, 100, 256, 1000), (1, 64, 300, 5000)):
        chosen = tiles(N, 8, Cout, 4)
        assert chosen["samples"] * chosen["channels"] <= 32768


def test_prefetch_beyond_the_cache_alone():
    assert tiles(4, 128, 128, 32)["prefetch"]
    assert not tiles(4, 16, 16, 8)["prefetch"]
    assert not tiles(4, 128, 128, 32, shared=True)["prefetch"]


def test_outputs_wait_until_they_fill_lines():
    # channels_last: 256 bytes that lie side by side; contiguous: a line of 16 positions
    kept = {Cout: tiles(64, 32, Cout, 32)["kept"] for Cout in (1, 16, 32, 48, 64, 128)}
    assert kept == {1: 16, 16: 4, 32: 2, 48: 2, 64: 1, 128: 1}
    assert {tiles(64, 32, Cout, 32, stride_c=1024)["kept"] for Cout in (1, 16, 128)} == {16}
    assert tiles(64, 32, 16, 2, stride_c=4)["kept"] <= 2


def test_one_position_is_shared_out_by_samples():
    assert tiles(300, 200, 30, 1, kernel=1, threads=4)["tasks"] >= 16
    assert tiles(300, 200, 30, 1, kernel=1, threads=1)["tasks"] >= 1
