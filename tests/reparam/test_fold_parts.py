"""Small parts of folding, by hand: constants of maps, sizes of a batch, what verify predicts."""

import math

import pytest
import torch

from realspike_ops.reparam.algebra.value import add_constants, compressed
from realspike_ops.reparam.check.verify import _larger, _predictions
from realspike_ops.reparam.trace import sizes

P = sizes.PRIME


def test_a_constant_of_channels_is_stored_once_per_channel():
    channels = torch.tensor([2.0, -3.0]).double().view(2, 1, 1)
    full = channels.expand(2, 4, 5).contiguous()
    assert torch.equal(compressed(full), channels)
    assert compressed(channels) is channels
    assert compressed(None) is None
    full[1, 3, 4] += 1e-3
    assert compressed(full) is full
    row = torch.arange(3.0).double().expand(1, 1, 3)  # varies along one axis alone
    assert compressed(row) is row
    assert compressed(row.mT) is not None
    assert compressed(row.mT).shape == (1, 3, 1)


def test_constants_add_up():
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    assert add_constants(None, None) is None
    assert add_constants(a, None) is a
    assert add_constants(None, b) is b
    assert add_constants(a, b) == 3.0


@pytest.mark.parametrize(
    ("number", "rows", "size"),
    [
        # The example has 4 rows, and so the trace 4 * P.
        (4 * P, 6, 6),
        (8 * P, 6, 12),  # two timesteps of each
        (2 * P, 6, 3),  # half of them
        (-4 * P, 6, -6),
        (4 * P - 3, 6, 3),  # all but three
        (4 * P + 10_000, 6, 10_006),
        (4 * P + 10_001, 6, None),  # no multiple, near enough
        (17, 6, 17),
        (P // 2, 6, P // 2),
        (True, 6, True),
        (0.5, 6, 0.5),
    ],
)
def test_sizes_follow_the_rows(number, rows, size):
    got = sizes.size_of(number, rows, 4)
    assert got == size
    assert type(got) is type(size)
    if sizes.is_of_batch(number) and size is not None:
        assert sizes.batch_size(torch.empty(rows, 1), *sizes.of_batch(number, 4)) == size


def test_what_is_no_multiple_of_the_batch_is_refused():
    with pytest.raises(ValueError, match="no multiple"):
        sizes.of_batch(4 * P * P, 4)  # a product of two sizes
    with pytest.raises(ValueError, match="no multiple"):
        sizes.of_batch(4 * P - 10_001, 4)


def test_predictions():
    """The largest of several, a yes or no of one; per row, or per pixel."""
    assert _predictions(torch.tensor([[1.0, 3, 2], [5, 4, 0]])).tolist() == [1, 0]
    assert _predictions(torch.tensor([[-1.0], [0.0], [2.0]])).tolist() == [[False], [False], [True]]
    assert _predictions(torch.tensor([-1.0, 2.0])).tolist() == [False, True]
    pixels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    assert _predictions(pixels).tolist() == [[[0, 1]]]


def test_nan_is_larger_than_everything():
    assert (_larger(1.0, 2.0), _larger(2.0, 1.0)) == (2.0, 2.0)
    assert math.isnan(_larger(1.0, math.nan))
    assert math.isnan(_larger(math.nan, 1.0))
