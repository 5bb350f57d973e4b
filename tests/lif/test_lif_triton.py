"""The Triton LIF kernels against the C++ kernels: the same bits, in the interpreter and on a GPU.

Where there is no GPU the interpreter executes the kernels (conftest.py selects it);
test_lif_triton_compiled.py looks at what the compiler makes of them.
"""

import functools
import itertools

import pytest
import torch
from helpers import WithSize, generator, grid, normal

from realspike_ops.ops import lif as lif_op
from realspike_ops.ops import (
    lif_contract,
    lif_cpu,
    lif_cuda,
    lif_packed,
    lif_tiling,
    rounding_cuda,
)
from realspike_ops.ops.lif_contract import Neuron

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With a card the compiled kernels run, under `make gpu`; without one the interpreter does.
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

cpu_fwd = lif_op.forward_with(lif_cpu.launch_fwd)
cpu_bwd = lif_op.backward_with(lif_cpu.launch_bwd, lif_cpu.partial_shapes)
cpu_packed = lif_packed._packed_with(lif_cpu.launch_packed)
triton_fwd = lif_op.forward_with(lif_cuda.launch_fwd)
triton_bwd = lif_op.backward_with(lif_cuda.launch_bwd, lif_cuda.partial_shapes)
triton_packed = lif_packed._packed_with(lif_cuda.launch_packed)

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
NEURONS = {
    "bits": PAPERS._replace(decay=0.3),
    "bits-soft-wide": PAPERS._replace(decay=0.9, reset="soft", surrogate_scale=2.0),
    "bits-none": PAPERS._replace(decay=0.6, reset="none"),
    "bits-ternary": PAPERS._replace(ternary=True, v_reset=0.125),
    "bits-ternary-soft": PAPERS._replace(decay=0.9, ternary=True, reset="soft"),
    "attached": PAPERS._replace(detach_reset=False),
    "attached-reset-value": Neuron(1.0, 0.7, -0.2, "hard", False, False, "triangle", 1.5),
    "attached-soft": Neuron(0.6, 0.5, 0.0, "soft", False, False, "atan", 2.0),
    "detached-smooth": Neuron(0.6, 0.5, 0.1, "hard", True, False, "sigmoid", 4.0),
    "none-smooth": Neuron(0.6, 0.5, 0.0, "none", True, False, "triangle", 2.0),
    "ternary-attached": Neuron(0.9, 0.5, 0.125, "hard", False, True, "rectangular", 1.5),
    "ternary-soft": Neuron(0.9, 0.5, 0.0, "soft", False, True, "rectangular", 1.0),
    "bits-delayed": PAPERS._replace(decay=0.9, reset="soft_delayed"),
    "delayed": Neuron(0.9, 0.5, 0.0, "soft_delayed", False, False, "rectangular", 1.5),
    "delayed-detached": Neuron(0.9, 0.5, 0.0, "soft_delayed", True, False, "triangle", 2.0),
    "ternary-delayed": Neuron(0.9, 0.5, 0.0, "soft_delayed", False, True, "atan", 2.0),
    "ternary-none": Neuron(0.9, 0.5, 0.0, "none", True, True, "atan", 2.0),
}
SHAPE = (2, 3, 5, 7)  # [B, C, H, W]
SIZES = {"none": None, "layer": (1,), "channel": (3, 1, 1), "element": (3, 5, 7)}
# (dtype, channels_last, sizes of amplitude, decay, v_threshold, learnable, with v_init and v_last)
LAYOUTS = {
    "plain": (torch.float32, False, "none", "none", "none", False, True),
    "amplitude-layer": (torch.float32, False, "layer", "none", "none", False, False),
    "amplitude-element": (torch.float32, False, "element", "none", "none", False, True),
    "channels_last-element": (torch.float32, True, "element", "none", "element", False, False),
    "learn-layer": (torch.float32, False, "none", "layer", "layer", True, True),
    "learn-channel": (torch.float32, True, "channel", "channel", "channel", True, True),
    "contiguous-channel": (torch.float32, False, "channel", "channel", "channel", True, False),
    "learn-element": (torch.float32, False, "layer", "element", "channel", True, False),
    "float16-channel": (torch.float16, True, "channel", "channel", "none", True, True),
    "bfloat16-channel": (torch.bfloat16, False, "channel", "none", "channel", False, False),
}


@pytest.fixture
def split(monkeypatch):
    """split(PROGRAMS=3): split the neurons otherwise, whatever was planned before."""

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(lif_tiling, name, value)
        monkeypatch.setattr(lif_cuda, "_backward", lif_cuda._backward.__wrapped__)

    return change


def to(device, *tensors):
    return [None if t is None else t.to(device) for t in tensors]


def assert_same_bits(actual, expected, what):
    if expected is None:
        assert actual is None, what
        return
    actual = actual.cpu()
    assert actual.dtype == expected.dtype, what
    assert torch.equal(actual, expected), (what, (actual.float() - expected.float()).abs().max())


def assert_close(actual, expected, what, ulps=8):
    # The surrogates' exponentials and divisions may differ in the last bit between backends.
    if expected is None:
        assert actual is None, what
        return
    assert actual.shape == expected.shape, what
    scale = 1 + expected.float().abs().amax() if expected.numel() else 1
    error = (actual.cpu().float() - expected.float()).abs() / scale
    assert (error <= ulps * torch.finfo(expected.dtype).eps).all(), (what, error.max())


def positive(size, seed):
    """Values of [0.25, 1] in steps of 1/16, so that bfloat16 holds them."""
    if size is None:
        return None
    return torch.randint(4, 17, size, generator=generator(seed)) / 16


def compare(neuron, layout, T, shape=SHAPE):
    dtype, channels_last, *sizes, learn, with_state = LAYOUTS[layout]
    amplitude, decay, v_threshold = (SIZES[size] for size in sizes)
    # float32 alone rounds; on a grid, ties are common.
    draw = normal if T % 2 else grid
    x = draw((T, *shape), T).mul(0.75).to(dtype)
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    amplitude = None if amplitude is None else normal(amplitude, 2)
    decay, v_threshold = positive(decay, 3), positive(v_threshold, 4)
    # The interpreter truncates float32 to bfloat16 where cards and C++ round to nearest.
    truncates = dtype == torch.bfloat16 and DEVICE == "cpu"
    if truncates:
        amplitude = amplitude.bfloat16().float()
    v_init = normal(shape, 5) if with_state else None
    parameters = (amplitude, decay, v_threshold)
    learnable = (t.clone().requires_grad_(learn) for t in parameters[1:] if t is not None)
    save = lif_contract.what_to_save(neuron, *learnable)
    inputs = (x, *parameters, v_init)
    expected = cpu_fwd(*inputs, neuron, save, with_state)
    actual = triton_fwd(*to(DEVICE, *inputs), neuron, save, with_state)
    for name, left, right in zip(("y", "v_last", "saved"), actual, expected, strict=True):
        assert_same_bits(left, right, name)
    y, v_last, saved = triton_fwd(*to(DEVICE, *inputs), neuron, lif_contract.SAVE_NOTHING, False)
    assert_same_bits(y, expected[0], "y without saving")
    assert v_last is saved is None

    grad_y = normal(x.shape, 6).to(dtype)
    grad_v = normal(shape, 7) if with_state else None
    bits = save == lif_contract.SAVE_BITS
    inputs = (grad_y, grad_v, None if bits else x, *parameters, None if bits else v_init)
    inputs = (*inputs, expected[2])
    wanted = [amplitude is not None, *(learn and t is not None for t in parameters[1:]), with_state]
    form = (channels_last, wanted, neuron, save)
    expected_grads = cpu_bwd(*inputs, *form)
    actual_grads = triton_bwd(*to(DEVICE, *inputs), *form)
    same = assert_close if truncates or neuron.surrogate != "rectangular" else assert_same_bits
    # Neurons that share a parameter are summed in an order of each device's own.
    summed = functools.partial(assert_close, ulps=64)
    checks = (same, summed, summed, summed, same)
    names = ("grad_x", "grad_amplitude", "grad_decay", "grad_v_threshold", "grad_v_init")
    for check, name, left, right in zip(checks, names, actual_grads, expected_grads, strict=True):
        check(left, right, name)


@pytest.mark.parametrize("T", [1, 8, 11])
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("layout", ["plain", "learn-channel"])
def test_every_neuron_equals_cpu(layout, neuron, T):
    compare(NEURONS[neuron], layout, T)


@pytest.mark.parametrize("neuron", ["bits", "bits-ternary-soft", "attached", "ternary-soft"])
@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"plain", "learn-channel"}))
def test_every_layout_equals_cpu(layout, neuron):
    for T in (3, 10):
        compare(NEURONS[neuron], layout, T)


@pytest.mark.skipif(DEVICE == "cuda", reason="plans of a card were made for other sizes")
def test_neurons_that_32_bits_just_count(monkeypatch):
    """Of one timestep, programs see the memory of their rows alone, however many neurons follow."""
    for name in ("lif_fwd_kernel", "lif_bwd_kernel"):
        kernel = WithSize(getattr(lif_cuda, name), "N", 2**31 - 1)
        monkeypatch.setattr(lif_cuda, name, kernel)
    monkeypatch.setitem(SIZES, "element", (8, 16, 16))
    for neuron in ("bits", "attached"):
        compare(NEURONS[neuron], "amplitude-element", 1, (2, 8, 16, 16))


@pytest.mark.parametrize("shape", [(25, 3, 5, 7), (7, 3, 12, 19)], ids=["rows", "columns"])
@pytest.mark.parametrize("neuron", ["bits-ternary", "attached"])
def test_rows_of_a_tile_are_walked(neuron, shape, split, monkeypatch):
    """More neurons than programs: a program adds up its rows, of which the last may be short."""
    split(PROGRAMS=3, FEW_PROGRAMS=1)
    monkeypatch.setitem(SIZES, "element", shape[1:])
    for layout in ("learn-channel", "learn-element", "amplitude-element"):
        compare(NEURONS[neuron], layout, 3, shape)
    tiles = lif_tiling.tiling(torch.Size(shape).numel(), torch.Size(shape[1:]).numel(), 256, 3)
    assert tiles.rows_per_chunk > 1


@pytest.mark.parametrize(("layout", "T"), [("amplitude-layer", 6), ("learn-channel", 3)])
def test_next_chunks_and_rows_are_loaded_ahead(layout, T, split):
    split(PROGRAMS=2)
    compare(NEURONS["bits"], layout, T, (25, 3, 5, 7))


MANY = 2**20
SAVE_NOTHING, SAVE_BITS, SAVE_POTENTIALS = 0, 1, 2
# (T, N, period, save, element size): steps of a chunk, neurons of a thread, whether a chunk is
# loaded ahead
FORWARD = {
    (16, MANY, 1, SAVE_NOTHING, 4): (4, 4, False),
    (16, MANY, 1, SAVE_NOTHING, 2): (4, 8, False),
    (16, MANY, 1, SAVE_BITS, 4): (4, 4, False),
    (16, MANY, 1, SAVE_BITS, 2): (4, 4, False),
    (16, MANY, 1, SAVE_POTENTIALS, 4): (8, 4, False),
    # 256 programs of 128 threads with 4 neurons each.
    (16, 2**17, 1, SAVE_BITS, 4): (4, 4, False),
    (16, 2**17 - 1, 1, SAVE_BITS, 4): (4, 2, True),
    (4, 1, 1, SAVE_NOTHING, 2): (4, 2, True),
}
# Behind them: whether there are sums, and whether they are of one column each.
BACKWARD = {
    (16, MANY, 1, SAVE_BITS, 4, False, False): (4, 4, False),
    (16, MANY, 1, SAVE_BITS, 2, False, False): (4, 8, False),
    (16, MANY, 1, SAVE_BITS, 2, True, False): (4, 4, False),
    # Up to 4 timesteps no potential is kept, and from the ninth on one every 8.
    (4, MANY, 1, SAVE_POTENTIALS, 4, True, False): (4, 4, False),
    (5, MANY, 1, SAVE_POTENTIALS, 4, True, False): (8, 2, False),
    (5, MANY, 1, SAVE_POTENTIALS, 4, False, False): (8, 2, False),
    (16, MANY, 1, SAVE_POTENTIALS, 2, True, False): (8, 4, False),
    # Sums of a column: few columns a program, unless there are many of them.
    (16, MANY, 2**16, SAVE_BITS, 4, True, True): (4, 2, True),
    (16, MANY, 2**18, SAVE_BITS, 4, True, True): (4, 4, False),
    # 8 steps of x and the gradient are loads enough.
    (16, MANY, 2**16, SAVE_POTENTIALS, 4, True, True): (8, 2, False),
    (4, MANY, 2**16, SAVE_POTENTIALS, 4, True, True): (4, 2, True),
    (16, 64, 1, SAVE_POTENTIALS, 4, False, False): (8, 2, False),
}


@pytest.mark.parametrize("sizes", FORWARD, ids=str)
def test_forward_shape_follows_from_sizes(sizes):
    chosen = lif_tiling.forward_shape(*sizes)
    neurons = chosen.block // (32 * chosen.warps)
    assert (chosen.steps, neurons, chosen.prefetch) == FORWARD[sizes]


@pytest.mark.parametrize("sizes", BACKWARD, ids=str)
def test_backward_shape_follows_from_sizes(sizes):
    chosen = lif_tiling.backward_shape(*sizes)
    neurons = chosen.block // (32 * chosen.warps)
    assert (chosen.steps, neurons, chosen.prefetch) == BACKWARD[sizes]


@pytest.mark.parametrize(
    ("N", "period", "columns", "chunks"),
    [
        (16 * 2**16, 2**16, 512, 1),  # 512 programs of 128 columns walk all 16 samples
        (16 * 2**18, 2**18, 512, 1),  # 512 columns each
        (128 * 2**14, 2**14, 128, 4),  # 128 programs would leave a card idle
        (3 * 2**14, 2**14, 128, 3),
    ],
)
def test_programs_walk_all_rows_of_a_column(N, period, columns, chunks):
    tiles = lif_tiling.backward_shape(4, N, period, SAVE_BITS, 4, True, True).tiles
    assert (tiles.row, tiles.columns, tiles.chunks) == (period, columns, chunks)


# (inner, size, columns of a tile): (run, sums that a tile keeps, groups)
FOLDINGS = {
    (1, 1, 512): (512, 1, 1),  # one value
    (1024, 16, 512): (512, 1, 1),  # a tile in one channel
    (64, 16, 512): (64, 8, 1),  # eight channels in a tile
    (49, 16, 512): (1, 512, 1),  # channels that end anywhere
    (196, 16, 512): (4, 128, 1),
    (1, 64, 512): (1, 64, 8),  # channels_last
    (1, 48, 512): (1, 512, 1),
    (16, 4, 512): (16, 4, 8),  # a tile of eight samples
    (1, 4096, 512): (1, 512, 1),  # a value for each column
}


@pytest.mark.parametrize("sizes", FOLDINGS, ids=str)
def test_columns_that_share_a_value_are_folded(sizes):
    inner, size, block = sizes
    parameter = lif_contract.PerNeuron(torch.empty(0), 0.0, inner, size)
    assert lif_tiling.Folding.of(parameter, block) == FOLDINGS[sizes]


@pytest.mark.parametrize(
    ("inner", "size", "row", "kind"),
    [
        (1, 1, 4096, "tile"),
        (1024, 4, 4096, "tile"),
        (256, 16, 4096, "gather"),
        (1, 4096, 4096, "dense"),
        (1, 16, 4096, "gather"),
        (1, 64, 512, "gather"),
    ],
)
def test_a_parameter_is_loaded_as_it_lies(inner, size, row, kind):
    parameter = lif_contract.PerNeuron(torch.empty(0), 0.0, inner, size)
    assert lif_tiling.kind_of(parameter, row, 512) == kind
    assert lif_tiling.kind_of(parameter._replace(values=None), row, 512) == "none"


SUMMED = ["amplitude-layer", "amplitude-element", "channels_last-element", "contiguous-channel"]


@pytest.mark.parametrize("shape", [(2, 8, 4, 16), (1, 2, 16, 32), (5, 16, 4, 4)], ids=str)
def test_sums_of_every_folding_equal_cpu(shape, monkeypatch):
    """Tiles in one channel, of several channels, of several samples."""
    monkeypatch.setitem(SIZES, "element", shape[1:])
    monkeypatch.setitem(SIZES, "channel", (shape[1], 1, 1))
    for layout in (*SUMMED, "float16-channel"):
        compare(NEURONS["bits"], layout, 2, shape)


@pytest.mark.parametrize(
    ("pixels", "words", "channels_last", "tile", "warps"),
    [
        *((16 * 1024, 1, False, 16, 1), (16 * 1024 - 1, 1, False, 16, 4), (16, 9, False, 16, 4)),
        *((4096, 2, True, 32, 4), (4095, 2, True, 8, 4), (1, 1, True, 8, 4)),
    ],
)
def test_packed_options_follow_from_sizes(pixels, words, channels_last, tile, warps):
    chosen = lif_cuda.packed_options(pixels, words, channels_last)
    assert (chosen["PIXELS"], chosen["num_warps"]) == (tile, warps)


TIES = {
    # id: (neuron, x, y, v_last)
    "binary": (PAPERS, [0.5, 0.49999997, 0.25, -0.5], [0.0] * 4, [1, 0, 0, 0], None),
    "binary-decays": (
        PAPERS,
        [0.25, 0.25, 0.0],
        [0.4375, 0.43749997, 0.5],
        [0, 0, 0],
        [1, 0, 1],
    ),
    "ternary": (
        PAPERS._replace(ternary=True),
        [0.5, -0.5, -0.49999997, -0.0],
        [0.0] * 4,
        [1, -1, 0, 0],
        None,
    ),
}


@pytest.mark.parametrize("case", TIES)
def test_ties_fire(case):
    neuron, first, second, y0, y1 = TIES[case]
    x = torch.tensor([first, second])[:, None].to(DEVICE)
    y, _, _ = triton_fwd(x, None, None, None, None, neuron, lif_contract.SAVE_NOTHING, False)
    assert y[0, 0].tolist() == y0
    if y1 is not None:
        assert y[1, 0].tolist() == y1


def test_constant_input_is_read_in_place():
    x = normal((1, 2, 300), 1)
    save = lif_contract.SAVE_POTENTIALS
    nothing = (None,) * 4
    expected = cpu_fwd(x.repeat(9, 1, 1), *nothing, NEURONS["attached"], save, True)
    expanded = x.to(DEVICE).expand(9, -1, -1)
    actual = triton_fwd(expanded, *nothing, NEURONS["attached"], save, True)
    for left, right in zip(actual, expected, strict=True):
        assert_same_bits(left, right, "expanded input")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 33, 6, 7), (2, 70, 1, 1)], ids=str)
@pytest.mark.parametrize(
    "neuron", ["bits", "bits-none", "ternary-attached", "bits-ternary-soft", "bits-delayed"]
)
def test_packed_equals_cpu(neuron, shape, channels_last):
    neuron, C = NEURONS[neuron], shape[1]
    for T, dtype in itertools.product((1, 6), (torch.float32, torch.bfloat16)):
        x = grid((T, *shape), T).to(dtype)
        if channels_last:
            x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        for decay, v_threshold in ((None, (1,)), ((C, 1, 1), shape[1:])):
            inputs = (x, positive(decay, 1), positive(v_threshold, 2), normal(shape, 3))
            expected = cpu_packed(*inputs, neuron, True)
            actual = triton_packed(*to(DEVICE, *inputs), neuron, True)
            for left, right in zip(actual, expected, strict=True):
                assert_same_bits(left, right, (T, dtype, decay))
        packed, v_last = triton_packed(x.to(DEVICE), None, None, None, neuron, False)
        assert_same_bits(packed, cpu_packed(x, None, None, None, neuron, False)[0], "stateless")
        assert v_last is None


@pytest.mark.parametrize(
    ("capability", "version", "is_refused"),
    [
        ((10, 0), "3.6.0", True),
        ((12, 0), "3.6.1+git", True),
        ((9, 0), "3.6.0", False),
        ((10, 0), "3.7.0", False),
        ((12, 1), "3.10.0", False),
        ((10, 0), "4.0.0", False),
    ],
)
def test_a_compiler_that_fuses_is_refused(capability, version, is_refused):
    if not is_refused:
        rounding_cuda.check_rounds_separately(capability, version)
        return
    with pytest.raises(RuntimeError, match=rf"Triton {version[:3]}.*{capability[0]}\.0.*2\.12"):
        rounding_cuda.check_rounds_separately(capability, version)
