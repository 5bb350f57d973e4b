"""Which channels and pixels of maps a tensor holds, and where it writes them, by hand."""

import itertools

import pytest
import torch

from realspike_ops.reparam.algebra import layers, layout, value
from realspike_ops.reparam.algebra.layout import NoWindow, _aligned, _separate, _stride
from realspike_ops.reparam.algebra.value import Layout, Source, Term, Value
from realspike_ops.reparam.algebra.window import placed, scale_window

pytestmark = pytest.mark.usefixtures("one_thread")


class Folding:
    """What `layout` needs of one."""

    small_batch = 3
    layer_name = "layer"

    def __init__(self):
        self.moved = []

    def refuse(self, reason):
        raise ValueError(reason)

    def spikes(self, name, module, step):
        self.moved.append((name, module, step))
        return f"{name}{len(self.moved)}"


def spikes(grid, rank=4, timesteps=2, amplitude=None, step="lif", **given) -> Value:
    if amplitude is not None:
        amplitude = torch.tensor(amplitude, dtype=torch.float64)
    return value.of_source(Source(step, grid, rank, amplitude, False, timesteps, **given))


def indices(*shape) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


# One axis: pixels[y] = y * stride - padding


@pytest.mark.parametrize(
    ("pixels", "size", "expected"),
    [
        ([0, 1, 2], 3, (1, 0)),
        ([0, 2, 4], 5, (2, 0)),
        ([0, 2, 4], 6, (2, 0)),
        ([1, 4, 7], 9, (3, -1)),
        ([3, 5, 7], 8, (2, -3)),
        ([-1, -1, 0, 1], 2, (1, 2)),
        ([-1, 1, 4, -1], 7, (3, 2)),  # 7 is behind a map of 7
        ([-1, 1, 4, -1], 8, None),
        ([-1, -1, 5, 6, -1], 7, None),  # 4 and 3 are inside the map
        ([0, 1, -1], 2, (1, 0)),
        ([0, 1, -1], 3, None),
        ([2], 5, (1, -2)),
        ([-1, 0, -1], 1, (1, 1)),
        ([-1, 2, -1], 3, (3, 1)),  # a single pixel of several: all the others are outside
        ([-1, 0, -1], 3, (3, 3)),
        ([-1, 1, -1], 3, (3, 2)),
        ([-1, -1], 3, None),
        ([2, 1, 0], 3, None),
        ([1, 1], 3, None),
        ([0, 1, 3], 4, None),
        ([0, 2, 3], 4, None),
        ([0, -1, 2], 3, None),
    ],
)
def test_the_stride_of_pixels(pixels, size, expected):
    assert _stride(pixels, size) == expected


# Three axes


def test_axes_that_do_not_depend_on_each_other():
    """Channels 1 and 0, a row of zeros and rows 0 and 2, columns 3 and 1 of [2, 3, 4]."""
    picked = indices(2, 3, 4)[[1, 0]][:, [0, 0, 2]][:, :, [3, 1]]
    picked[:, 0] = -1
    assert picked[0].tolist() == [[-1, -1], [15, 13], [23, 21]]
    assert _separate(picked, (2, 3, 4)) == ([1, 0], [-1, 0, 2], [3, 1])
    picked[1] = -1
    assert _separate(picked, (2, 3, 4)) == ([1, -1], [-1, 0, 2], [3, 1])
    picked[:, :, 1] = -1
    assert _separate(picked, (2, 3, 4)) == ([1, -1], [-1, 0, 2], [3, -1])


@pytest.mark.parametrize("place", list(itertools.product((0, 1), (0, 1, 2), (0, 1))))
def test_axes_that_depend_on_each_other(place):
    """One element more that is zero, or another one."""
    for other in (-1, 5):
        picked = indices(2, 3, 4)[:, :, 1:3].clone()
        if picked[place] == other:
            continue
        picked[place] = other
        assert _separate(picked, (2, 3, 4)) is None
    assert _separate(indices(2, 3, 3).mT.contiguous(), (2, 3, 3)) is None


# Features


def test_features_that_are_whole_channels():
    pick = layout._whole_channels
    whole = indices(4, 2, 3)
    assert pick(whole.flatten(), (4, 2, 3)) == [0, 1, 2, 3]
    assert pick(whole[[2, 0, 2]].flatten(), (4, 2, 3)) == [2, 0, 2]
    padded = torch.cat((torch.full((6,), -1), whole[3].flatten()))
    assert pick(padded, (4, 2, 3)) == [-1, 3]
    assert pick(torch.cat((padded, torch.full((1,), -1))), (4, 2, 3)) is None  # no whole number
    assert pick(whole.flatten()[1:13], (4, 2, 3)) is None  # from the middle of a channel
    assert pick(whole.flatten()[2:8], (4, 2, 3)) is None
    assert pick(whole.permute(1, 2, 0).flatten(), (4, 2, 3)) is None
    padded[2] = 5
    assert pick(padded, (4, 2, 3)) is None
    assert pick(indices(4), (4, 1, 1)) is None  # which windows of pixels are, too
    # Two pixels, by rows or columns.
    for grid in ((3, 1, 2), (3, 2, 1)):
        assert pick(indices(*grid)[[1, 2]].flatten(), grid) == [1, 2]


# Rows


def test_rows_that_hold_the_same_elements():
    """Ids count from 1, row by row, of 5 elements."""
    ids = 1 + 5 * torch.tensor([[2], [0], [1]]) + torch.tensor([4, 0, 3])
    rows, elements = _aligned(ids, 5, 3)
    assert (rows.tolist(), elements.tolist()) == ([2, 0, 1], [4, 0, 3])
    with_zeros = ids.clone()
    with_zeros[:, 1] = 0
    rows, elements = _aligned(with_zeros, 5, 3)
    assert (rows.tolist(), elements.tolist()) == ([2, 0, 1], [4, -1, 3])
    rows, elements = _aligned(ids[:2], 5, 3)  # some of the rows
    assert (rows.tolist(), elements.tolist()) == ([2, 0], [4, 0, 3])
    # Rows of zeros alone are all rows, or none is known.
    rows, elements = _aligned(torch.zeros_like(ids), 5, 3)
    assert (rows.tolist(), elements.tolist()) == ([0, 1, 2], [-1, -1, -1])
    assert _aligned(torch.zeros_like(ids[:2]), 5, 3) is None
    assert _aligned(ids[:0], 5, 3) is None


@pytest.mark.parametrize(
    "change",
    [
        ((0, 1), 1),  # an element of another row
        ((0, 1), 12),  # another element of the row
        ((0, 1), 0),  # zero in one row alone
        ((1, slice(None)), 0),  # a row of zeros
    ],
)
def test_rows_that_do_not(change):
    ids = 1 + 5 * torch.tensor([[2], [0], [1]]) + torch.tensor([4, 0, 3])
    ids[change[0]] = change[1]
    assert _aligned(ids, 5, 3) is None


def test_timesteps_side_by_side():
    """[T*B] rows of 2 elements; T = 3, B = 2: sample b has elements t * 2 + e."""
    x = spikes((2, 1, 1), timesteps=3)
    ids = torch.tensor([[1, 2], [3, 4], [5, 6], [0, 8], [9, 10], [11, 12]])
    got = layout.side_by_side(x, Layout(ids, 6))
    assert got.rows == 2
    # Of sample 0 the rows 0, 2, 4; a sample has 6 elements.
    assert got.ids.tolist() == [[1, 2], [7, 8], [3, 4], [0, 10], [5, 6], [11, 12]]


def test_the_plain_layout_is_none():
    folding, x = Folding(), spikes((2, 3, 4))
    plain = layout.layout_of(folding, x)
    assert plain.rows == 6  # of 3 samples, 2 timesteps of each
    assert torch.equal(plain.ids, 1 + indices(6, 2, 3, 4))
    one = value.by_timestep(Value((2, 3, 4), x.terms, time="averaged"))
    assert layout.layout_of(folding, one).rows == 3
    assert layout.laid_out(x, plain).layout is None
    flat = layout.laid_out(x, Layout(plain.ids.flatten(1), 6))
    assert (flat.layout, flat.rank, flat.grid, flat.shape) == (None, 2, (2, 3, 4), (24,))
    assert layout.layout_of(folding, flat).ids.shape == (6, 24)
    for other in (
        plain.ids.flatten(2),  # lines, but the maps have rows
        plain.ids.flatten(0, 1),
        plain.ids.mT,
        plain.ids[:5],
        plain.ids.flip(0),
        torch.where(plain.ids == 1, 0, plain.ids),
    ):
        got = layout.laid_out(x, Layout(other, 6))
        assert got.layout.ids is other
    line = spikes((2, 1, 4), rank=3)
    ids = layout.layout_of(folding, line).ids
    assert ids.shape == (6, 2, 4)
    for rank, shape in ((3, ids), (4, ids[:, :, None]), (2, ids.flatten(1))):
        got = layout.laid_out(line, Layout(shape, 6))
        assert (got.layout, got.rank) == (None, rank)
    kept = layout.layout_of(folding, layout.laid_out(x, Layout(plain.ids.mT, 6)))
    assert torch.equal(kept.ids, plain.ids.mT)


def test_a_number_for_every_element():
    numbers = torch.tensor([[1.5, 2.5], [3.5, 4.5]])
    ids = torch.tensor([[4, 0], [1, 1], [2, 3]])
    expected = [[4.5, 0], [1.5, 1.5], [2.5, 3.5]]
    assert layout.tensor_of(Layout(ids, 2), numbers).tolist() == expected
    first, second = layout.tensor_of(Layout((ids[0], ids[2]), 2), numbers)
    assert (first.tolist(), second.tolist()) == (expected[0], expected[2])


def test_arranged_rows():
    folding, x = Folding(), spikes((2, 1, 2))
    ids = layout.layout_of(folding, x).ids  # [6, 2, 1, 2]
    timesteps = layout.laid_out(x, Layout(ids.unflatten(0, (2, 3)), 6))
    got, rows, elements, count = layout.arranged(folding, timesteps, 3)
    assert (rows.tolist(), elements.tolist(), count) == (indices(2, 3).tolist(), [0, 1, 2, 3], 6)
    assert got.time == "steps"
    # The last timestep; whoever needs every row reads both.
    last = layout.laid_out(x, Layout(ids[3:], 6))
    got, rows, elements, count = layout.arranged(folding, last, 3)
    assert (rows.tolist(), elements.tolist(), count) == ([3, 4, 5], [0, 1, 2, 3], 6)
    got, rows, elements, count = layout.arranged(folding, last, 3, every_row=True)
    assert (rows.tolist(), elements.tolist(), count) == ([0, 1, 2], [4, 5, 6, 7], 3)
    assert (got.grid, got.time) == ((4, 1, 2), "single")
    # Timesteps as features, [B, T * 4]
    mixed = ids.view(2, 3, 4).transpose(0, 1).flatten(1)
    got, rows, elements, count = layout.arranged(folding, layout.laid_out(x, Layout(mixed, 6)), 1)
    assert (rows.tolist(), elements.tolist(), count) == ([0, 1, 2], list(range(8)), 3)
    assert got.grid == (4, 1, 2)
    with pytest.raises(ValueError, match="not those of single samples"):
        layout.arranged(folding, layout.laid_out(x, Layout(ids.flatten(0, 1), 6)), 2)
    with pytest.raises(ValueError, match="read them one by one"):
        layout.arranged(folding, layout.laid_out(x, Layout((ids, ids), 6)), 3)


def test_mapped_rows_are_written_back():
    folding, x = Folding(), spikes((2, 3, 4))
    got, rows = layout.mapped(folding, x, 4)
    assert got is x
    assert (rows.ids.tolist(), rows.rows) == ([0, 1, 2, 3, 4, 5], 6)
    ids = layout.layout_of(folding, x).ids
    later = layout.laid_out(x, Layout(ids.unflatten(0, (2, 3))[:, :, :1], 6))
    got, rows = layout.mapped(folding, later, 4)
    assert (got.grid, got.rank, got.layout) == ((1, 3, 4), 4, None)
    assert (rows.ids.tolist(), rows.rows) == (indices(2, 3).tolist(), 6)
    back = layout.on_rows(got, rows)
    assert torch.equal(back.layout.ids, 1 + indices(2, 3, 1, 3, 4))
    some = layout.on_rows(got, Layout(torch.tensor([5, 0]), 6))
    assert torch.equal(some.layout.ids, 1 + indices(6, 1, 3, 4)[[5, 0]])
    assert layout.on_rows(got, Layout(torch.arange(6), 6)).layout is None


# Maps of the elements that a tensor has


def current(grid) -> Value:
    """Convolutions of two maps of spikes: no element is one spike."""
    weight = 1 + indices(grid[0], grid[0], 2, 1).double() % 5
    first = value.apply(layers.conv2d(grid, weight, padding=(1, 0)), spikes(grid))
    cut = layers.strided(first.grid, grid[1:], (1, 1), (0, 0))
    second = value.apply(layers.conv2d(grid, weight[:, :, :1]), spikes(grid, step="other"))
    return value.add(value.apply(cut, first), second, None)


def computed(x: Value, maps):
    """[C, H, W] of a value, given the spikes of every source."""
    out = torch.zeros(x.grid, dtype=torch.float64)
    for term in x.terms:
        w = term.window
        read = maps[term.source.step].double().view(w.in_shape)
        if term.source.amplitude is not None:
            read = read * term.source.amplitude
        (sh, sw), (ph, pw), (dh, dw) = w.stride, w.padding, w.dilation
        G, KH, KW, Ci, Co = w.kernel.shape[2:]
        places = itertools.product(range(G), range(Co), *map(range, w.out_shape[1:]))
        for g, co, y, z in places:
            for i, j, ci in itertools.product(range(KH), range(KW), range(Ci)):
                row, column = y * sh - ph + i * dh, z * sw - pw + j * dw
                if 0 <= row < w.in_shape[1] and 0 <= column < w.in_shape[2]:
                    factor = w.kernel[w.rows[y], w.columns[z], g, i, j, ci, co]
                    out[w.first_channel + g * Co + co, y, z] += (
                        factor * read[g * Ci + ci, row, column]
                    )
    return out if x.constant is None else out + x.constant


def padded(maps, index):
    return torch.cat((maps.flatten(), maps.new_zeros(1)))[index]


PARTS = {
    "everything": lambda e: e,
    "channels": lambda e: e[1:3],
    "a channel of zeros before": lambda e: torch.cat((torch.full_like(e[:1], -1), e)),
    "zeros around": lambda e: torch.nn.functional.pad(e, (1, 2, 0, 1), value=-1),
    "every other pixel": lambda e: e[:, ::2, 1::3],
    "channels of the other order": lambda e: e.flip(0),
    "one pixel": lambda e: e[:, 1:2, 4:5],
    "nothing": lambda e: torch.full_like(e, -1),
    "nothing, more of it": lambda e: torch.full((5, 2, 3), -1),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_current_are_windows(name):
    grid = (4, 4, 6)
    x, elements = current(grid), PARTS[name](indices(*grid))
    maps = {"lif": 1.0 + indices(*grid) % 7, "other": 1.0 + indices(*grid) % 5}
    folding = Folding()
    got = layout.as_map(folding, x, elements.flatten(), tuple(elements.shape), for_neurons=True)
    assert (got.grid, got.rank, got.layout, folding.moved) == (elements.shape, 4, None, [])
    assert torch.equal(computed(got, maps), padded(computed(x, maps), elements))


def test_parts_of_a_current_that_are_no_windows():
    x, elements = current((4, 4, 4)), indices(4, 4, 4)
    for other in (elements.mT, elements.flip(2), elements[:, [0, 0]], elements[:, [0, 1, 3]]):
        with pytest.raises(NoWindow, match=r"are not a part of maps \[4, 4, 4\]"):
            layout.as_map(Folding(), x, other.flatten(), tuple(other.shape))


def test_everything_in_another_shape_is_no_part():
    x, elements = current((4, 2, 3)), indices(4, 2, 3).flatten()
    for shape in ((2, 4, 3), (4, 3, 2), (8, 3)):
        with pytest.raises(NoWindow):
            layout.as_map(Folding(), x, elements, shape)
        folding = Folding()
        got = layout.as_map(folding, spikes((4, 2, 3)), elements, shape)
        assert got.shape == shape
        assert [module.index.tolist() for _, module, _ in folding.moved] == [elements.tolist()]


def test_nothing_of_a_value_with_a_constant():
    """Zeros, read from beside its maps, so that something is read at all."""
    x = value.apply(
        layers.scale_and_shift((2, 5, 6), torch.ones(2, 1, 1), torch.ones(2, 1, 1)),
        spikes((2, 5, 6)),
    )
    got = layout.as_map(Folding(), x, torch.full((16,), -1), (4, 2, 2))
    assert got.grid == (4, 2, 2)
    assert got.terms
    assert not computed(got, {"lif": torch.ones(2, 5, 6)}).any()


def test_features_of_a_current():
    grid = (4, 2, 3)
    x, elements = current(grid), indices(*grid)
    maps = {"lif": 1.0 + elements % 7, "other": 1.0 + elements % 5}
    whole = layout.as_map(Folding(), x, elements.flatten(), (24,))
    assert whole.terms is x.terms  # as they are
    assert (whole.grid, whole.rank) == (grid, 2)
    for picked in (elements.flatten(), elements[1:3].flatten(), elements[[3, 0]].flatten()):
        got = layout.as_map(Folding(), x, picked, tuple(picked.shape))
        assert got.shape == tuple(picked.shape)
        assert got.rank == 2
        assert torch.equal(computed(got, maps).flatten(), computed(x, maps).flatten()[picked])
    # One pixel per channel is a map of its own.
    got = layout.as_map(Folding(), x, elements[:, 1, 2], (4,))
    assert (got.grid, got.rank) == ((4, 1, 1), 2)
    assert torch.equal(computed(got, maps)[:, 0, 0], computed(x, maps)[:, 1, 2])


def test_what_would_store_more_is_moved():
    """Neurons read currents in another order; windows would give every channel all weights."""
    grid = (4, 2, 2)
    full = current(grid)
    pooled = value.apply(layers.avg_pool2d((4, 3, 3), 2, 1), spikes((4, 3, 3)))
    elements = indices(*grid)

    def made(x, picked, **options):
        return layout.as_map(Folding(), x, picked.flatten(), tuple(picked.shape), **options)

    flipped, run = elements.flip(0), elements[1:3]
    assert made(full, flipped, for_neurons=True).grid == grid  # full kernels anyway
    with pytest.raises(NoWindow):
        made(pooled, flipped, for_neurons=True)
    with pytest.raises(NoWindow):
        made(pooled, run, for_neurons=True)
    assert made(pooled, flipped).terms[0].window.groups == 1
    around = torch.cat((torch.full_like(run, -1), elements))
    assert made(pooled, around, for_neurons=True).terms[0].window.groups == 4
    # Spikes of one layer after another are whole; in front of neurons they are not moved.
    x = spikes(grid)
    assert made(x, around, for_neurons=True).terms[0].window.groups == 4
    with pytest.raises(NoWindow):
        made(x, flipped, for_neurons=True)
    between = torch.cat((elements[:2], torch.full_like(run, -1), elements[2:]))
    for picked in (flipped, between, elements[1:]):
        folding = Folding()
        layout.as_map(folding, x, picked.flatten(), tuple(picked.shape))
        assert len(folding.moved) == 1
        with pytest.raises(NoWindow):
            made(x, picked, for_neurons=True)


@pytest.mark.parametrize("shape", [(6, 2), (2, 2, 3), (12,)])
def test_spikes_are_moved_to_lines_maps_and_features(shape):
    """[2, 2, 3] transposed, written in `shape`."""
    grid, folding = (2, 2, 3), Folding()
    elements = indices(*grid).mT.flatten()
    got = layout.as_map(folding, spikes(grid), elements, shape)
    [(_, module, _)] = folding.moved
    assert module.shape == shape
    assert (got.shape, got.rank) == (shape, len(shape) + 1)
    assert got.terms[0].source.rank == got.rank


def test_other_spikes_are_moved():
    """Elements in another order, with their amplitudes: factors of 2 of the second channel."""
    grid = (2, 2, 3)
    x = spikes(grid, amplitude=[[[3.0]], [[2.0]]])
    x = value.Value(grid, x.terms, constant=torch.tensor([[[0.5]], [[0.25]]]).double())
    elements = indices(*grid).flip(0).mT.contiguous()  # [2, 3, 2]
    elements[0, 0, 0] = -1
    folding = Folding()
    got = layout.as_map(folding, x, elements.flatten(), (2, 3, 2))
    [(name, module, step)] = folding.moved
    assert (name, step, module.shape) == ("layer_moved", "lif", (2, 3, 2))
    assert torch.equal(module.index, elements.flatten())
    (term,) = got.terms
    assert term.source.amplitude.flatten().tolist() == [2, 3]
    assert (term.source.shape, term.source.rank, got.grid) == ((2, 3, 2), 4, (2, 3, 2))
    assert (term.source.timesteps, term.source.signed) == (2, False)
    expected = torch.tensor([0.25, 0.5]).view(2, 1, 1).expand(2, 3, 2).clone()
    expected[0, 0, 0] = 0
    assert torch.equal(got.constant.expand(2, 3, 2), expected.double())


def test_moved_spikes_of_several_layers():
    """Channels 0 and 1 of one layer, 2 of another: a layer without a channel is not read."""
    a = spikes((2, 2, 2), step="a")
    b = spikes((1, 2, 2), step="b")
    x = value.concatenate([a, b])
    elements = indices(3, 2, 2)
    folding = Folding()
    moved = elements.mT.contiguous()
    got = layout.as_map(folding, x, moved.flatten(), (3, 2, 2))
    assert [(step, m.index.tolist()) for _, m, step in folding.moved] == [
        ("a", [0, 2, 1, 3, 4, 6, 5, 7, -1, -1, -1, -1]),
        ("b", [-1] * 8 + [0, 2, 1, 3]),
    ]
    assert [t.source.amplitude for t in got.terms] == [None, None]
    folding = Folding()
    layout.as_map(folding, x, moved[:2].flatten(), (2, 2, 2))
    assert [step for _, _, step in folding.moved] == ["a"]
    folding = Folding()
    layout.as_map(folding, x, moved[2:].flatten(), (1, 2, 2))
    assert [(step, m.index.tolist()) for _, m, step in folding.moved] == [("b", [0, 2, 1, 3])]


def test_the_amplitude_of_moved_spikes():
    """3 and 5 of two channels, each scaled pixel by pixel; where nothing is read, 0 or 1."""
    grid = (2, 1, 2)
    source = spikes(grid, amplitude=[[[3.0]], [[5.0]]]).terms[0].source
    factor = torch.tensor([[[1.0, 2.0]], [[1.0, 1.0]]]).double()

    def amplitude(elements, shape, source=source, factor=factor):
        term = Term(source, scale_window(factor, grid))
        got = layout._moved_amplitude(term, torch.tensor(elements), shape)
        return got if got is None else got.tolist()

    assert amplitude([0, 1, 2, 3], grid) == [[[3, 6]], [[5, 5]]]
    assert amplitude([1, 1, 3, -1], grid) == [[[6]], [[5]]]  # one per channel
    assert amplitude([-1, -1, 3, 2], grid) == [[[1]], [[5]]]
    assert amplitude([1, -1, 0, 1], grid) == [[[6, 0]], [[3, 6]]]
    assert amplitude([-1, 2, 0, 0], (1, 2, 2)) == [[[0, 5], [3, 3]]]
    plain = spikes(grid).terms[0].source
    ones = torch.ones(2, 1, 1)
    assert amplitude([1, 0, 3, 2], grid, plain, ones) is None
    assert amplitude([1, 0, 3, 2], grid, plain, 2 * ones) == [[[2]], [[2]]]
    assert amplitude([1, 0, 3, 2], grid, source, ones) == [[[3]], [[5]]]


def test_channels_that_stay_side_by_side():
    a, b = spikes((2, 1, 1), step="a"), spikes((3, 1, 1), step="b")
    x = value.concatenate([a, b])
    for channels in (
        [0, 1, 2, 3, 4],
        [2, 3, 4, 0, 1],
        [2, 3, 4],
        [-1, 0, 1, -1],
        [0, 1, -1, 2, 3, 4],
    ):
        assert layout._are_runs(x, channels)
    for channels in (
        [1, 0, 2, 3, 4],
        [0, 2, 3, 4],
        [0, 2, 1, 3, 4],
        [0, 1, 0, 1],
        [0, -1, 1],
        [3, 4],
    ):
        assert not layout._are_runs(x, channels)


def test_what_are_spikes():
    x = spikes((2, 3, 3), amplitude=[[[3.0]], [[5.0]]])
    assert layout._are_spikes(x)
    assert layout._are_spikes(value.add(x, spikes((2, 3, 3), step="b"), None))
    assert not layout._are_spikes(value.unrolled(x))
    pooled = value.apply(layers.avg_pool2d((2, 3, 3), 3, 1, 1), x)
    assert not layout._are_spikes(pooled)
    assert not layout._are_spikes(value.add(x, pooled, None))
    some = value.of_channels(x, [1])
    assert not layout._are_spikes(some)
    wider = Term(x.terms[0].source, placed(x.terms[0].window, 1, 4))
    assert layout._are_spikes(Value((4, 3, 3), (wider,)))
