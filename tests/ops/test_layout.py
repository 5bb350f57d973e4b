"""How time-major tensors and the neurons' parameters lie in memory: strides and orders by hand."""

import pytest
import torch

from realspike_ops.ops import layout
from realspike_ops.ops.lif_contract import in_memory_order, period_of
from realspike_ops.ops.ordered_sum import sum_in_one_order

SHAPE = (3, 2, 5, 7, 11)  # T, B, C, H, W
CONTIGUOUS, CHANNELS_LAST = (385, 77, 11, 1), (385, 1, 55, 5)  # of a timestep


def made(step, over_time=770, shape=SHAPE):
    """Return numbers that lie with these strides."""
    size = 1 + sum((n - 1) * s for n, s in zip(shape, (over_time, *step), strict=True))
    return torch.arange(float(size)).as_strided(shape, (over_time, *step))


def test_strides_of_a_timestep():
    assert layout.step_strides(SHAPE[1:], False) == CONTIGUOUS
    assert layout.step_strides(SHAPE[1:], True) == CHANNELS_LAST
    assert layout.step_strides((2, 5), False) == layout.step_strides((2, 5), True) == (5, 1)
    # A size of 0 counts as 1, as torch has it.
    assert layout.step_strides((2, 0, 3), False) == torch.empty(2, 0, 3).stride() == (3, 3, 1)


def test_what_is_dense():
    """The stride of one element, or of none, is free; any other is not."""
    assert layout.is_dense((2, 1, 3), (3, 99, 1), (3, 3, 1))
    assert layout.is_dense((2, 0, 3), (3, 99, 1), (3, 3, 1))
    assert not layout.is_dense((2, 2, 3), (3, 99, 1), (3, 3, 1))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (made(CONTIGUOUS), False),
        (made(CHANNELS_LAST), True),
        (made(CHANNELS_LAST, over_time=0), True),
        (made(CHANNELS_LAST, over_time=1000), True),
        (made((770, 2, 110, 10), over_time=1540), False),  # every other element
        (made((5, 1), 10, (3, 2, 5)), False),  # features have one order
        (made((7, 7, 7, 1), 7, (1, 1, 1, 1, 7)), False),  # both orders at once
    ],
)
def test_channels_last_is_the_order_of_a_timestep(x, expected):
    assert layout.is_channels_last(x) is expected


@pytest.mark.parametrize(
    ("step", "over_time", "shape", "copied", "channels_last", "stride"),
    [
        (CONTIGUOUS, 770, SHAPE, False, False, 770),
        (CHANNELS_LAST, 770, SHAPE, False, True, 770),
        (CONTIGUOUS, 0, SHAPE, False, False, 0),
        (CHANNELS_LAST, 0, SHAPE, False, True, 0),
        (CONTIGUOUS, 771, SHAPE, True, False, 770),
        (CHANNELS_LAST, 771, SHAPE, True, True, 770),
        ((0, 77, 11, 1), 0, SHAPE, True, False, 770),  # one sample for all
        (CONTIGUOUS, 0, (1, *SHAPE[1:]), False, False, 770),  # one timestep is not repeated
        (CHANNELS_LAST, 0, (1, *SHAPE[1:]), False, True, 770),
    ],
)
def test_a_timestep_is_copied_only_if_it_must_be(
    step, over_time, shape, copied, channels_last, stride
):
    x = made(step, over_time, shape)
    out, *told = layout.dense_over_time(x)
    assert told == [channels_last, stride]
    assert torch.equal(out, x)
    assert (out.data_ptr() != x.data_ptr()) == copied
    assert out.stride()[1:] == (CHANNELS_LAST if channels_last else CONTIGUOUS)
    if copied:
        assert out.stride(0) == stride
    for form in (False, True):
        laid = layout.as_dense_over_time(x, form)
        assert torch.equal(laid, x)
        assert laid.stride()[1:] == (CHANNELS_LAST if form else CONTIGUOUS)
        assert (laid.data_ptr() == x.data_ptr()) == (laid.stride() == x.stride())


def test_allocations_lie_as_they_are_told():
    for form, step in ((False, CONTIGUOUS), (True, CHANNELS_LAST)):
        out = layout.empty_over_time(SHAPE, form, torch.float16, torch.device("cpu"))
        assert (out.shape, out.stride(), out.dtype) == (SHAPE, (770, *step), torch.float16)
        assert out._base is None
        like = layout.empty_like_over_time(made(step), form)
        assert (like.shape, like.stride()) == (SHAPE, (770, *step))
        maps = layout.empty_maps(SHAPE[1:], form, torch.device("cpu"))
        assert (maps.shape, maps.stride(), maps.dtype) == (SHAPE[1:], step, torch.float32)
        state = layout.as_step(made(CONTIGUOUS)[0], form)
        assert torch.equal(state, made(CONTIGUOUS)[0])
        assert state.stride() == step
    empty = layout.empty_over_time((3, 0, 5, 7, 11), False, torch.float32, torch.device("cpu"))
    assert empty.stride() == (385, *CONTIGUOUS)


@pytest.mark.parametrize(
    ("parameter", "channels_last", "inner", "in_order"),
    [
        # csrc/core/lif.h: neuron n has values[(n / inner) % size].
        ((5,), False, 1, [0, 1, 2, 3, 4]),
        ((5, 1), False, 3, [0, 1, 2, 3, 4]),
        ((2, 1, 1), False, 12, [0, 1]),
        ((2, 3, 1), False, 4, [0, 1, 2, 3, 4, 5]),
        ((2, 1, 1), True, 1, [0, 1]),
        ((2, 3, 1), True, 1, [c * 3 + h for h in range(3) for _ in range(4) for c in range(2)]),
        ((1, 3, 4), True, 1, [h * 4 + w for h in range(3) for w in range(4) for _ in range(2)]),
        ((2,), True, 1, [w for _ in range(3) for w in (0, 1) for _ in range(2)]),
    ],
)
def test_parameters_in_the_order_of_the_neurons(parameter, channels_last, inner, in_order):
    shape = {(5,): (5,), (5, 1): (5, 3), (2,): (2, 3, 2)}.get(parameter, (2, 3, 4))
    values = torch.arange(float(torch.Size(parameter).numel())).view(parameter)
    got = in_memory_order(values, 0.25, shape, channels_last)
    assert (got.all, got.inner, got.size) == (0.25, inner, len(in_order))
    assert got.values.flatten().tolist() == in_order
    assert got.values.is_contiguous()


def test_one_value_for_all_neurons():
    none = in_memory_order(None, 0.75, (2, 3, 4), True)
    assert (none.values, none.all, none.inner, none.size) == (None, 0.75, 1, 1)
    one = torch.tensor([2.0])
    alone = in_memory_order(one, 0.75, (2, 3, 4), True)
    assert alone.values is one
    assert (alone.inner, alone.size) == (1, 1)
    assert period_of((none, alone), torch.Size((2, 3, 4))) == 1
    channels = in_memory_order(torch.ones(2, 1, 1), 0.75, (2, 3, 4), True)
    assert period_of((none, channels), torch.Size((2, 3, 4))) == 24


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1023, 70001])
def test_a_sum_in_one_order_adds_every_row_once(rows):
    """Whole numbers are added up without rounding, whatever the order."""
    x = (torch.arange(rows * 3) % 11).float().view(rows, 3)
    assert torch.equal(sum_in_one_order(x, [0]), x.double().sum(0).float())
    assert torch.equal(sum_in_one_order(x, [0, 1]), x.double().sum().float())


def test_a_sum_in_one_order_adds_the_halves():
    """2^25 + 1 is 2^25 in float32, so what is added to it is lost: the 1s are kept if the second
    half of the 65536 numbers is added to the first before anything else."""
    x = torch.zeros(65536)
    x[0], x[32768], x[32], x[5000] = 2.0**25, -(2.0**25), 1.0, 1.0
    assert sum_in_one_order(x, [0]).item() == 2.0
