"""The C++ launches of batch_norm_lif: moments by hand, sizes at the edges of blocks and tiles."""

import math

import pytest
import torch
from helpers import normal

import realspike_ops as rso
from realspike_ops.ops.batch_norm_lif_cpu import launch_moments, launch_statistics
from realspike_ops.ops.layout import dense_over_time


def moments(x):
    """Return (means, variances, count)."""
    x, channels_last, stride_t = dense_over_time(x)
    found = launch_moments(x, stride_t, channels_last)
    C = x.shape[2]
    return found[:C], found[C : 2 * C], found[-1].item()


def channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


LAYOUTS = {"contiguous": lambda x: x, "channels_last": channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 2.0**20, -(2.0**22)])
def test_moments_by_hand(offset, layout):
    """Values k and -k around an offset: the mean is the offset, the variance the mean of k^2.

    float32 squares of the offsets have no digit left for these deviations.
    """
    k = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, -3.0]).view(1, 1, 1, 2, 3)
    scale = torch.tensor([1.0, 0.0, 0.5 if offset == 0 else 2.0]).view(3, 1, 1)
    x = LAYOUTS[layout]((offset + k * scale).expand(5, 7, 3, 2, 3).contiguous())
    mean, variance, count = moments(x)
    assert count == 5 * 7 * 6
    assert mean.tolist() == pytest.approx([offset] * 3, rel=0, abs=1e-6)
    assert variance.tolist() == pytest.approx((28 / 6 * scale.flatten() ** 2).tolist(), rel=1e-6)


# (T, B, C, H, W): pixels of less than a vector, of a rest, of one and of several runs of 4096;
# channels that share a row of 64 columns with pixels left over, of one and of several strips, of
# more than a task; several ranges of rows.
SIZES = [
    (1, 2, 1, 1, 1),
    (3, 5, 3, 1, 1),
    (2, 7, 5, 3, 3),
    (1, 9, 17, 7, 7),
    (2, 3, 65, 4, 4),
    (1, 2, 100, 14, 14),
    (2, 2, 3, 64, 65),
    (1, 1, 2, 91, 91),
    (2, 3, 2049, 1, 1),
    (2, 2, 2100, 1, 3),
    (4, 80, 16, 8, 9),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_moments_of_every_size(dtype, size, layout):
    """Means drift over the images, so that no block is like the ones before it."""
    drift = torch.linspace(-40, 60, size[0] * size[1]).view(*size[:2], 1, 1, 1)
    x = LAYOUTS[layout]((normal(size, 1) + drift).to(dtype))
    mean, variance, count = moments(x)
    wide = x.double()
    assert count == wide.numel() / size[2]
    expected = wide.mean((0, 1, 3, 4))
    exact = (wide - expected.view(-1, 1, 1)).square().mean((0, 1, 3, 4))
    # Rounding errors of float32, 6e-8 of a deviation at most, mostly cancel.
    assert ((mean - expected).abs() <= 1e-6 * exact.sqrt()).all()
    torch.testing.assert_close(variance, exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_beyond_the_range_of_float32(layout):
    """The squares of 3e19 are more than float32 has; the variance, in float64, is not."""
    x = torch.tensor([3e19, -3e19]).view(1, 2, 1, 1, 1).expand(4, 2, 3, 5, 5) + 0.0
    mean, variance, _ = moments(LAYOUTS[layout](x))
    assert mean.tolist() == [0.0] * 3
    assert variance.tolist() == pytest.approx([float(x[0, 0, 0, 0, 0]) ** 2] * 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_that_are_not_finite(layout):
    """As the mean in float64 has it; other channels do not notice."""
    x = normal((3, 4, 4, 5, 5), 1)
    expected = moments(x[:, :, 3:])
    x[1, 2, 0, 3, 3] = math.inf
    x[2, 0, 1, 0, 0] = math.nan
    x[0, 0, 2, 0, 0], x[2, 3, 2, 4, 4] = math.inf, -math.inf
    mean, variance, _ = moments(LAYOUTS[layout](x))
    assert mean[0].item() == math.inf
    assert mean[1:3].isnan().all()
    assert variance[:3].isnan().all()
    torch.testing.assert_close(mean[3:], expected[0])
    torch.testing.assert_close(variance[3:], expected[1])


def test_repeated_timesteps_are_read_once_and_counted():
    x = normal((1, 3, 4, 5, 5), 1)
    mean, variance, count = moments(x.expand(6, 3, 4, 5, 5))
    once = moments(x)
    assert torch.equal(mean, once[0])
    assert torch.equal(variance, once[1])
    assert count == 6 * 3 * 25


def test_statistics_by_hand():
    """Variance 12 over 4 values is 16 unbiased; eps 4 makes 1 / sqrt(16)."""
    moments = torch.tensor([2.0, 12.0, 4.0], dtype=torch.float64)
    running = [torch.tensor([1.0]), torch.tensor([8.0])]
    mean, inv_std = launch_statistics(moments, *running, 0.25, 4.0)
    assert mean.tolist() == [2.0]
    assert inv_std.tolist() == [0.25]
    assert [statistic.item() for statistic in running] == [1.25, 10.0]


FORMS = {
    "bits": {"detach_reset": True},
    "recomputed": {"surrogate": "atan"},
    "ternary": {"emission": "ternary", "detach_reset": True, "reset": "soft"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(6, 3, 5, 9, 13), (9, 2, 67, 7, 11)], ids=str)
def test_same_bits_for_any_number_of_threads(size, form, layout):
    """Sums per channel and per amplitude, of tiles that end within a channel."""

    def run(threads):
        torch.set_num_threads(threads)
        tensors = [normal(size, 1), normal(size, 2)]
        x, residual = (LAYOUTS[layout](tensor).requires_grad_() for tensor in tensors)
        C = size[2]
        parameters = [normal((C,), seed).requires_grad_() for seed in (3, 4)]
        amplitude = normal((C, 1, 1), 5).requires_grad_()
        y = rso.batch_norm_lif(
            x, *parameters, None, None, residual=residual, amplitude=amplitude, **FORMS[form]
        )
        return y, *torch.autograd.grad(y, (x, residual, *parameters, amplitude), tensors[1])

    before = torch.get_num_threads()
    try:
        expected = run(1)
        for threads in (2, 3):
            for one, other in zip(expected, run(threads), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


# The last has more timesteps of a column, 1032 in a task, than are added up in float32.
EXACT = [(2, 3, 4, 1, 3), (3, 2, 5, 16, 41), (1, 40, 70, 3, 5), (8, 8225, 1, 1, 257)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", EXACT, ids=str)
def test_sums_of_whole_numbers_are_exact(size, layout):
    """Constant statistics, whole gradients, a neuron that hands them on: every sum is exact.

    x - 1 is the current; with a window of 1000 around the threshold and a soft reset that is
    detached, the gradient of a timestep is that of y / 1000 and a quarter of the next one's.
    """
    C = size[2]
    x = LAYOUTS[layout](normal(size, 1).mul(8).round()).requires_grad_()
    weight, bias = torch.ones(C).requires_grad_(), torch.zeros(C).requires_grad_()
    grad_y = normal(size, 2).mul(4).round() * 1024
    y = rso.batch_norm_lif(
        *(x, weight, bias, torch.ones(C), torch.full((C,), 1.0)),
        training=False,
        eps=0.0,
        reset="soft",
        detach_reset=True,
        surrogate=("rectangular", 1024.0),
    )
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, weight, bias), grad_y)
    expected = grad_y.clone() / 1024
    for t in reversed(range(size[0] - 1)):
        expected[t] += expected[t + 1] / 4
    assert torch.equal(grad_x, expected)
    over, wide = (0, 1, 3, 4), expected.double()
    assert torch.equal(grad_bias, wide.sum(over).float())
    assert torch.equal(grad_weight, (wide * (x.detach() - 1)).sum(over).float())
