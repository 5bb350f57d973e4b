"""The Triton kernels of batch norm and LIF neurons, in the interpreter and on a GPU.

What is normalised is computed here in PyTorch, one rounded operation after the other; the neurons
behind it are the C++ kernels of lif. So outputs, what is kept for backward and the gradient of the
current are compared bit for bit.
"""

import itertools

import pytest
import torch
from helpers import WithSize, generator, grid, normal

from realspike_ops import reference
from realspike_ops.ops import batch_norm_lif_cuda, lif_contract, lif_cpu, lif_cuda, lif_tiling
from realspike_ops.ops import lif as lif_op
from realspike_ops.ops.batch_norm_lif import PASSES, passes_with
from realspike_ops.ops.batch_norm_lif_contract import inverse_deviation
from realspike_ops.ops.lif_contract import Neuron

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# With a card the compiled kernels run, under `make gpu`; without one the interpreter does.
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []

cpu_fwd = lif_op.forward_with(lif_cpu.launch_fwd)
cpu_bwd = lif_op.backward_with(lif_cpu.launch_bwd, lif_cpu.partial_shapes)
passes = passes_with(lambda: batch_norm_lif_cuda)

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
NEURONS = {
    "bits": PAPERS._replace(decay=0.3),
    "bits-ternary-soft": PAPERS._replace(decay=0.9, ternary=True, reset="soft"),
    "attached": PAPERS._replace(detach_reset=False),
    "attached-soft": Neuron(0.6, 0.5, 0.0, "soft", False, False, "triangle", 2.0),
    "ternary-delayed": Neuron(0.9, 0.5, 0.0, "soft_delayed", False, True, "rectangular", 1.5),
}
# [B, C, ...] and what of the tiles it is for, where those are of 256 columns.
SHAPES = {
    "odd": (2, 3, 5, 7),
    "channels of a tile": (3, 8, 4, 4),
    "tiles of a channel": (1, 2, 16, 32),
    "one channel": (5, 1, 3, 3),
    "no pixels": (40, 6),
    "volumes": (2, 3, 2, 2, 3),
}


def lay_out(x, channels_last):
    return x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x


def per_channel(values, x):
    return values.view(-1, *(1 for _ in x.shape[3:]))


def current_of(x, residual, mean, inv_std, weight, bias):
    scale = inv_std if weight is None else weight * inv_std
    current = (x.float() - per_channel(mean, x)) * per_channel(scale, x)
    current = current + (0.0 if bias is None else per_channel(bias, x))
    return current if residual is None else current + residual.float()


def to_device(*tensors):
    return [None if t is None else t.to(DEVICE) for t in tensors]


def same_bits(actual, expected, what):
    assert (actual is None) == (expected is None), what
    if expected is not None:
        actual = actual.cpu()
        assert actual.dtype == expected.dtype, what
        assert torch.equal(actual, expected), (
            what,
            (actual.float() - expected.float()).abs().max(),
        )


def close(actual, expected, what, bound):
    difference = (actual.cpu().double() - expected.double()).abs().max()
    assert difference <= bound * (1e-30 + expected.double().abs().max()), (what, difference)


def compare(
    neuron, shape, T, *, dtype=torch.float32, channels_last=False, residual=True, affine=True,
    state=True, amplitude=None, learn=None, constant=False,
):  # fmt: skip
    C = shape[1]
    draw = normal if T % 2 else grid
    x = lay_out(draw((T, *shape), T).to(dtype), channels_last)
    x = x[:1].expand_as(x) if constant else x
    residual = lay_out(draw((T, *shape), 1).mul(0.5).to(dtype), channels_last) if residual else None
    mean, inv_std = normal((C,), 2).mul(0.25), normal((C,), 3).abs().add(0.5)
    weight, bias = (normal((C,), 4), normal((C,), 5)) if affine else (None, None)
    amplitude = None if amplitude is None else normal(amplitude, 6)
    decay = None if learn is None else torch.rand(learn, generator=generator(7)).requires_grad_()
    threshold = None if learn is None else decay.detach().add(0.25).requires_grad_()
    v_init = normal(shape, 8) if state else None
    norm = (mean, inv_std, weight, bias)
    parameters = (amplitude, decay, threshold)
    save = lif_contract.what_to_save(neuron, decay, threshold)

    # The interpreter truncates float32 to half precision where cards round, but not 0 and 1.
    if dtype != torch.float32:
        amplitude = None
        parameters = (None, decay, threshold)
    with torch.no_grad():
        current = current_of(x, residual, *norm)
        expected = cpu_fwd(current, *parameters, v_init, neuron, save, state)
        inputs = to_device(x, residual, *norm, *parameters, v_init)
        actual = passes.fwd(*inputs, neuron, save, state)
        assert actual[0].dtype == dtype
        assert (
            actual[0].stride() == torch.empty_like(x if not constant else actual[0].cpu()).stride()
        )
        same_bits(actual[0].float(), expected[0], "y")
        same_bits(actual[1], expected[1], "v_last")
        same_bits(actual[2], expected[2], "saved")

        grad_y = lay_out(grid((T, *shape), 9), channels_last)
        grad_v = normal(shape, 10) if state else None
        wanted = [amplitude is not None, learn is not None, learn is not None, state]
        bits = save == lif_contract.SAVE_BITS
        kept = (None if bits else current, *parameters, None if bits else v_init, expected[2])
        expected = cpu_bwd(grad_y, grad_v, *kept, channels_last, wanted, neuron, save)
        kept = (x, None if bits else residual, *norm, *parameters, None if bits else v_init)
        actual = passes.bwd(
            *to_device(grad_y.to(dtype), grad_v, *kept), actual[2], wanted, neuron, save
        )
    grad_current, sums, *grads = actual
    grad = expected[0].double()
    if dtype == torch.float32:
        same_bits(grad_current, expected[0], "grad_current")
    else:
        close(grad_current, expected[0], "grad_current", 2 * torch.finfo(dtype).eps)
    over = [d for d in range(x.dim()) if d != 2]
    distance = x.double() - per_channel(mean, x)
    for found, exact in zip(sums.cpu(), (grad, grad * distance), strict=True):
        difference = (found - exact.sum(over)).abs()
        assert (difference <= 1e-6 * exact.abs().sum(over) + 1e-30).all()
    for name, found, exact in zip("adtv", grads, expected[1:], strict=True):
        assert (found is None) == (exact is None), name
        if exact is not None:
            assert found.shape == exact.shape
            close(found, exact, name, 2e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_every_neuron(neuron, channels_last):
    for T in (1, 9):
        compare(NEURONS[neuron], SHAPES["odd"], T, channels_last=channels_last)


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [
        *((shape, False) for shape in SHAPES),
        *((shape, True) for shape in SHAPES if len(SHAPES[shape]) == 4 and shape != "one channel"),
    ],
)
def test_every_shape(shape, channels_last):
    for neuron in ("bits", "attached"):
        compare(NEURONS[neuron], SHAPES[shape], 4, channels_last=channels_last, state=False)


@pytest.mark.parametrize(
    "how",
    [
        {"residual": False},
        {"affine": False},
        {"constant": True},
        {"dtype": torch.float16},
        {"dtype": torch.bfloat16, "channels_last": True},
        {"amplitude": (1,)},
        {"amplitude": (8, 1, 1), "channels_last": True},
        {"amplitude": (8, 4, 4)},
        {"amplitude": (8, 4, 4), "channels_last": True},
        {"learn": (1,)},
        {"learn": (8, 1, 1), "amplitude": (8, 4, 4)},
    ],
    ids=str,
)
def test_every_form(how):
    for neuron, T in (("bits", 4), ("attached", 5)):
        compare(NEURONS[neuron], SHAPES["channels of a tile"], T, **how)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_rows_of_a_tile_are_walked(channels_last, monkeypatch):
    monkeypatch.setattr(lif_tiling, "PROGRAMS", 2)
    monkeypatch.setattr(lif_cuda, "_backward", lif_cuda._backward.__wrapped__)
    for shape in ((25, 3, 5, 7), (9, 8, 4, 4)):
        for neuron in ("bits", "attached-soft"):
            compare(NEURONS[neuron], shape, 3, channels_last=channels_last)


@pytest.mark.skipif(DEVICE == "cuda", reason="plans of a card were made for other sizes")
def test_values_that_32_bits_just_count(monkeypatch):
    """Programs see the memory of their rows alone, however many values follow."""
    x, grad = normal((1, 2, 8, 16, 16), 1), normal((1, 2, 8, 16, 16), 2)
    C = x.shape[2]
    norm = (normal((C,), 3), normal((C,), 4).abs(), normal((C,), 5))
    sums, count = normal((2, C), 6).double(), torch.tensor([512.0], dtype=torch.float64)

    def results():
        moments = passes.moments(x)
        return moments, passes.norm_bwd(grad, x, *norm, sums, count)

    expected = results()
    for name in ("batch_norm_moments_kernel", "batch_norm_bwd_kernel"):
        kernel = WithSize(getattr(batch_norm_lif_cuda, name), "size", 2**31 - 1)
        monkeypatch.setattr(batch_norm_lif_cuda, name, kernel)
    for found, exact in zip(results(), expected, strict=True):
        same_bits(found, exact, "with as many values as 32 bits count")


# (x, mean, inv_std, weight, bias, residual): the current, worked out by hand.
ULP = 2.0**-24  # of numbers in [0.5, 1)
BY_HAND = [
    ((2.5, 2.0, 1.0, 1.0, 0.0, None), 0.5),  # a tie fires
    ((2.5, 2.0, 1.0, 1.0, -ULP, None), 0.5 - ULP),
    ((2.5, 2.0, 2.0, 0.5, 0.0, None), 0.5),
    ((2.5, 2.0, 0.5, None, 0.25, None), 0.5),  # 0.5 * 0.5 + 0.25
    ((2.0, 2.0, 3.0, 1.0, 0.25, 0.25), 0.5),  # the residual is not normalised
    ((2.0, 2.0, 3.0, 1.0, None, 0.5 - ULP), 0.5 - ULP),
    # (1 + 2^-12) (1 + 3 2^-12) is rounded up by 2^-24: with one rounding there would be no spike.
    ((1 + 2.0**-12, 0.0, 1 + 3 * 2.0**-12, None, -0.5 - 2.0**-10 - 2.0**-22, None), 0.5),
]


@pytest.mark.parametrize(("numbers", "current"), BY_HAND)
def test_currents_by_hand(numbers, current):
    x, *per_channel_numbers, residual = numbers
    norm = [None if number is None else torch.tensor([number]) for number in per_channel_numbers]
    x = torch.tensor([x]).view(1, 1, 1)
    residual = None if residual is None else torch.tensor([residual]).view(1, 1, 1)
    inputs = to_device(x, residual, *norm, None, None, None, None)
    y, v_last, _ = passes.fwd(*inputs, PAPERS._replace(v_reset=-2.0), 0, True)
    assert y.item() == (current >= 0.5)
    assert v_last.item() == (-2.0 if current >= 0.5 else current)


def test_eval_equals_the_reference():
    x, residual = normal((5, 2, 3, 4, 4), 1), normal((5, 2, 3, 4, 4), 2)
    weight, bias, mean, var = (
        normal((3,), 3),
        normal((3,), 4),
        normal((3,), 5),
        normal((3,), 6).abs(),
    )
    form = {"decay": 0.5, "v_threshold": 0.5, "residual": residual, "return_state": True}
    expected = reference.batch_norm_lif(x, weight, bias, mean, var, training=False, **form)
    inv_std = inverse_deviation(var, 1e-5)
    inputs = to_device(x, residual, mean, inv_std, weight, bias, None, None, None, None)
    actual = passes.fwd(*inputs, PAPERS._replace(decay=0.5), 0, True)
    for name, left, right in zip(("y", "v_last"), actual, expected, strict=False):
        same_bits(left, right, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_moments(shape, dtype):
    """Means and variances of data of whatever offset, with the error of one rounding or two."""
    size = SHAPES[shape]
    layouts = (False, True) if len(size) == 4 and size[1] > 1 else (False,)
    for offset, channels_last in itertools.product((0.0, 1e7), layouts):
        x = lay_out((normal((5, *size), 1, scale=3.0) + offset).to(dtype), channels_last)
        over = [d for d in range(x.dim()) if d != 2]
        moments = passes.moments(x.to(DEVICE)).cpu()
        assert moments.dtype == torch.float64
        mean, var, count = moments[: size[1]], moments[size[1] : -1], moments[-1]
        assert count == x.numel() // size[1]
        exact = x.double().var(over, unbiased=False)
        distance = (mean - x.double().mean(over)).abs()
        assert (distance <= 1e-6 * exact.sqrt()).all()
        assert ((var - exact).abs() <= 1e-6 * exact).all()


@pytest.mark.parametrize(("offset", "outlier"), [(0.0, 1e4), (1e7, 0.0)])
def test_moments_of_rows_that_a_program_walks(offset, outlier, monkeypatch):
    """Neither an offset nor a column whose first value is far from all others costs digits."""
    x = normal((3, 13, 4, 6, 6), 1, scale=3.0) + offset
    x[0, 0] += outlier
    exact_mean = x.double().mean((0, 1, 3, 4))
    exact = x.double().var((0, 1, 3, 4), unbiased=False)
    monkeypatch.setattr(batch_norm_lif_cuda, "MOMENT_PROGRAMS", 1)
    for channels_last in (False, True):
        moments = passes.moments(lay_out(x, channels_last).to(DEVICE)).cpu()
        assert ((moments[:4] - exact_mean).abs() <= 1e-6 * exact.sqrt()).all()
        assert ((moments[4:8] - exact).abs() <= 1e-6 * exact).all()
        again = passes.moments(lay_out(x, channels_last).to(DEVICE)).cpu()
        assert torch.equal(again, moments)


def test_moments_of_equal_timesteps():
    x = normal((1, 3, 4, 5, 5), 1)
    moments = passes.moments(x.to(DEVICE).expand(6, -1, -1, -1, -1)).cpu()
    assert moments[-1] == 6 * 3 * 25
    same_bits(moments[:-1], passes.moments(x.to(DEVICE)).cpu()[:-1], "moments")


def test_statistics_by_hand():
    """momentum 0.25 of the way to mean 3 and to the unbiased variance 4 * 5 / 4."""
    moments = torch.tensor([3.0, -1.0, 4.0, 0.25, 5.0], dtype=torch.float64, device=DEVICE)
    running_mean = torch.tensor([1.0, 1.0], device=DEVICE)
    running_var = torch.tensor([1.0, 1.3125], device=DEVICE)
    mean, inv_std = passes.statistics(moments, running_mean, running_var, 0.25, 0.0)
    assert mean.tolist() == [3.0, -1.0]
    assert inv_std.tolist() == [0.5, 2.0]
    assert running_mean.tolist() == [1.5, 0.5]
    assert running_var.tolist() == [2.0, 1.0625]
    _, inv_std = passes.statistics(moments, None, None, 0.25, 1e-5)
    var = torch.tensor([4.0, 0.25])
    same_bits(inv_std, inverse_deviation(var, 1e-5), "inv_std")


@pytest.mark.parametrize(
    ("count", "running"),
    [
        (0.0, ([2.0, -2.0], [4.0, 8.0])),  # an empty batch: they stay
        (
            1.0,
            ([2.5, -1.5], [3.0, 6.0]),
        ),  # half of the way to 3, -1 and 2, 4
    ],
)
def test_statistics_of_no_value_and_of_one(count, running):
    """One value has no unbiased variance: the biased one stands for it."""
    moments = torch.tensor([3.0, -1.0, 2.0, 4.0, count], dtype=torch.float64, device=DEVICE)
    running_mean = torch.tensor([2.0, -2.0], device=DEVICE)
    running_var = torch.tensor([4.0, 8.0], device=DEVICE)
    passes.statistics(moments, running_mean, running_var, 0.5, 1e-5)
    assert (running_mean.tolist(), running_var.tolist()) == running


def test_statistics_of_many_channels():
    moments = torch.cat((normal((300,), 1), normal((300,), 2).abs(), torch.ones(1))).double()
    mean, inv_std = passes.statistics(moments.to(DEVICE), None, None, 0.1, 1e-5)
    same_bits(mean, moments[:300].float(), "mean")
    same_bits(inv_std, inverse_deviation(moments[300:600].float(), 1e-5), "inv_std")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", ["odd", "channels of a tile", "tiles of a channel", "no pixels"])
def test_gradient_of_x(shape, dtype):
    """Equals PyTorch's derivative of batch norm in float64, in place too, and of constant x."""
    size = SHAPES[shape]
    C = size[1]
    weight, mean_0 = normal((C,), 1), normal((C,), 2)
    for channels_last, constant, in_place in itertools.product((False, True), repeat=3):
        if channels_last and len(size) != 4:
            continue
        x = lay_out(normal((3, *size), 3).to(dtype), channels_last)
        x = x[:1].expand_as(x) if constant else x
        grad = lay_out(normal((3, *size), 4).to(dtype), channels_last)
        wide = x.double().requires_grad_()
        over = [d for d in range(x.dim()) if d != 2]
        y = torch.nn.functional.batch_norm(
            wide.flatten(0, 1), None, None, weight.double(), training=True, eps=1e-5
        )
        (expected,) = torch.autograd.grad(y, wide, grad.double().flatten(0, 1))
        var, mean = torch.var_mean(x.double(), over, unbiased=False)
        inv_std = inverse_deviation(var.float(), 1e-5)
        mean = mean.float()
        distance = x.double() - per_channel(mean, x)
        sums = torch.stack((grad.double().sum(over), (grad.double() * distance).sum(over)))
        count = torch.tensor([x.numel() // C], dtype=torch.float64)
        given = grad.to(DEVICE)
        inputs = to_device(x, mean, inv_std, weight, sums)
        actual = passes.norm_bwd(given, *inputs, count.to(DEVICE), in_place=in_place)
        assert (actual.data_ptr() == given.data_ptr()) == in_place
        close(actual, expected, "grad_x", 4 * torch.finfo(dtype).eps)
        constant_statistics = passes.norm_bwd(
            grad.to(DEVICE), *to_device(x, mean_0, inv_std, weight, sums), None
        )
        exact = grad.double() * per_channel((weight * inv_std).double(), x)
        close(constant_statistics, exact, "grad_x in eval", 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
@pytest.mark.parametrize("backend", ["C++", "Triton"])
def test_passes_in_one_call(backend, layout, has_residual, training):
    """`norm` is moments and statistics; `gradients` what two passes and their sums come to."""
    one, on = (PASSES["cpu"], "cpu") if backend == "C++" else (passes, DEVICE)
    T, B, C, H, W = size = (3, 2, 3, 5, 7)
    x, residual, grad_y = (lay_out(normal(size, n), layout == "channels_last") for n in (1, 2, 3))
    x = x[:1].expand_as(x) if layout == "expanded" else x
    tensors = (x, residual if has_residual else None, grad_y, normal((C,), 4), normal((C,), 5))
    x, residual, grad_y, weight, bias = (None if t is None else t.to(on) for t in tensors)
    running = [[torch.full((C,), value, device=on) for value in (2.0, 3.0)] for _ in range(2)]
    mean, inv_std, count = one.norm(x, *running[0], 0.25, 1e-5)
    moments = one.moments(x)
    for together, apart in zip(
        (mean, inv_std, *running[0]),
        (*one.statistics(moments, *running[1], 0.25, 1e-5), *running[1]),
        strict=True,
    ):
        assert torch.equal(together, apart)
    assert count.tolist() == [T * B * H * W]
    amplitude = torch.full((C, 1, 1), 1.5, device=on)
    inputs = (x, residual, mean, inv_std, weight, bias, amplitude, None, None, None)
    saved = one.fwd(*inputs, PAPERS, lif_contract.SAVE_BITS, False)[2]
    how = (PAPERS, lif_contract.SAVE_BITS)
    count = count if training else None
    needs = [True, has_residual, False, False, True, True, True, False, False, False]
    together = one.gradients(grad_y, None, *inputs, saved, count, needs, *how)
    wanted = [True, False, False, False]
    grad_current, sums, grad_amplitude, *_ = one.bwd(grad_y, None, *inputs, saved, wanted, *how)
    grad_x = one.norm_bwd(grad_current, x, mean, inv_std, weight, sums, count)
    apart = [grad_x, grad_current if has_residual else None, None, None]
    apart += [(sums[1] * inv_std).float(), sums[0].float(), grad_amplitude, None, None, None]
    for found, expected in zip(together, apart, strict=True):
        assert found is expected is None or torch.equal(found, expected)
