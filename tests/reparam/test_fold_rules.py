"""What single operations become, by hand where a hand can do it."""

import pytest
import torch
import torch.nn.functional as F
from fold_networks import (
    T,
    assert_equal_in_float64,
    assert_rounding_alone,
    conv_norm,
    fold_between,
    synapses_of,
)
from helpers import normal
from torch import nn

import realspike_ops as rso
from realspike_ops.reparam.algebra.layers import adaptive_avg_pool2d, avg_pool2d, conv2d
from realspike_ops.reparam.algebra.window import compose, conv_window, identity_window, merge

pytestmark = pytest.mark.usefixtures("one_thread")


# --- windows --------------------------------------------------------------------------------------


def test_average_pooling_and_a_convolution_are_one_larger_kernel():
    """By hand: 1/4 of every tap, four times."""
    weight = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    pool = avg_pool2d((1, 6, 6), 2)
    window = compose(conv2d((1, 3, 3), weight).window, pool.window)
    assert (window.stride, window.padding, window.dilation) == ((2, 2), (0, 0), (1, 1))
    assert window.is_shared
    expected = torch.tensor([[1.0, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]) / 4
    assert torch.equal(window.kernel[0, 0, 0, :, :, 0, 0], expected.double())


def test_two_padded_convolutions_differ_at_the_edges():
    """By hand: ones with padding 1, twice. Inside 1 2 3 2 1; at the ends a tap of the outer kernel
    reads outside the inner map, so that what it would add is missing."""
    ones = conv2d((1, 1, 6), torch.ones(1, 1, 1, 3), padding=(0, 1)).window
    window = compose(ones, ones)
    assert (window.padding, window.rows, window.columns) == ((0, 2), (0,), (0, 1, 1, 1, 1, 2))
    kernels = window.kernel[0, :, 0, 0, :, 0, 0].tolist()
    assert kernels == [[0, 1, 2, 2, 1], [1, 2, 3, 2, 1], [1, 2, 2, 1, 0]]


def test_padding_that_reads_only_padding_leaves_a_kernel_shared():
    pool = avg_pool2d((1, 8, 8), 2).window
    window = compose(conv2d((1, 4, 4), torch.ones(1, 1, 3, 3), padding=1).window, pool)
    assert window.is_shared
    odd = avg_pool2d((1, 9, 9), 2).window
    window = compose(conv2d((1, 4, 4), torch.ones(1, 1, 3, 3), padding=1).window, odd)
    assert window.rows == (0, 0, 0, 1)  # row 8 is in no pool: the last kernel must not read it


def test_uneven_adaptive_windows():
    """By hand: 5 into 2: [0, 3) and [2, 5)."""
    window = adaptive_avg_pool2d((1, 5, 1), (2, 1)).window
    read = [
        {
            y * window.stride[0] - window.padding[0] + i
            for i, k in enumerate(window.kernel[window.rows[y], 0, 0, :, 0, 0, 0])
            if k != 0
        }
        for y in range(2)
    ]
    assert read == [{0, 1, 2}, {2, 3, 4}]


def test_sums_on_one_map_are_one_kernel():
    wide = conv_window(torch.ones(1, 3, 3, 2, 2).double(), (2, 6, 6), (6, 6), padding=(1, 1))
    narrow = conv_window(torch.full((1, 1, 1, 2, 2), 5.0).double(), (2, 6, 6), (6, 6))
    both = merge(merge(wide, narrow), identity_window((2, 6, 6)))
    assert both.kernel_size == (3, 3)
    assert both.kernel[0, 0, 0, 1, 1].tolist() == [[7, 6], [6, 7]]
    assert both.kernel.sum() == 9 * 4 + 20 + 2
    geometry = {"padding": (3, 3), "dilation": (3, 3)}
    dilated = conv_window(torch.ones(1, 3, 3, 2, 2).double(), (2, 6, 6), (6, 6), **geometry)
    assert merge(wide, dilated) is None  # 7 x 7 taps, for 18


def test_sums_of_dilated_kernels_keep_their_holes():
    """Along a row, taps at -2, 0, 2 and at -2, 0: the second kernel has 2 taps of the same step."""
    three, two = (torch.ones(1, 1, k, 1, 1).double() for k in (3, 2))
    geometry = {"padding": (0, 2), "dilation": (1, 2)}
    wide = conv_window(three, (1, 1, 6), (1, 6), **geometry)
    both = merge(wide, conv_window(two * 10, (1, 1, 6), (1, 6), **geometry))
    assert (both.dilation, both.padding) == ((1, 2), (0, 2))
    assert both.kernel.flatten().tolist() == [11, 11, 1]
    behind = conv_window(two * 10, (1, 1, 6), (1, 6), dilation=(1, 2))  # taps at 0, 2
    assert merge(wide, behind).kernel.flatten().tolist() == [1, 11, 11]
    fine = conv_window(two * 10, (1, 1, 6), (1, 6))  # at 0, 1: every pixel from -2 to 2
    both = merge(
        conv_window(torch.ones(1, 1, 4, 1, 1).double(), (1, 1, 6), (1, 6), **geometry), fine
    )
    assert both is None  # seven taps, for 4 + 2
    assert merge(wide, fine).kernel.flatten().tolist() == [1, 0, 11, 10, 1]


def grouped(groups: int):
    kernel = torch.ones(groups, 1, 1, 12 // groups, 12 // groups).double()
    return conv_window(kernel, (12, 2, 2), (2, 2))


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (2, 2, 2),  # 2 * 6 * 6 weights, for twice as many
        (1, 12, 1),  # 144, for 144 + 12
        (2, 4, 2),  # 72, for 72 + 36
        (4, 6, None),  # in two groups 72, for 36 + 24
        (3, 4, None),  # in one group 144, for 48 + 36
    ],
)
def test_groups_are_one_kernel_where_that_is_not_more(one, other, together):
    both = merge(grouped(one), grouped(other))
    assert (both and both.groups) == together
    if both:
        assert both.kernel.sum() == 144 / one + 144 / other


# --- kinds of synapses ----------------------------------------------------------------------------


@pytest.mark.parametrize("emission", ["binary", "ternary"])
@pytest.mark.parametrize("granularity", ["none", "layer", "channel", "element"])
def test_an_identity_shortcut_is_one_synapse_per_neuron(granularity, emission):
    network, folded, _ = fold_between(
        lambda m, o: m.end(m.layers["conv"](o) + m.layers["act"](m.layers["conv"](o)) + 0.25),
        granularity=granularity,
        emission=emission,
        layers={
            "conv": nn.Conv2d(4, 4, 3, padding=1),
            "act": rso.RealSpikeLIF(T, granularity, (4, 8, 8), emission=emission),
        },
    )
    (shortcut,) = (m for m in folded.modules() if isinstance(m, rso.OneToOneSynapses))
    expected = torch.ones(1) if granularity == "none" else network.layers["act"].amplitude
    assert shortcut.weight.numel() <= expected.numel()
    assert torch.equal(shortcut.weight.expand(4, 8, 8), expected.expand(4, 8, 8))


def test_spikes_alone_can_be_the_output():
    network, folded, x = fold_between(lambda m, o: o, granularity="none")
    assert torch.equal(folded(x), network(x))
    assert [step.name for step in folded.steps] == ["lif"]
    network, folded, x = fold_between(lambda m, o: o, granularity="element")
    assert torch.equal(folded(x), network(x))


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("granularity", ["none", "channel", "element"])
def test_pooled_shortcut(granularity, size):
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
    _, folded, _ = fold_between(
        lambda m, o: m.end(m.layers["norm"](m.layers["conv"](m.layers["pool"](o)))),
        granularity=granularity,
        size=size,
        layers={"pool": pool, "conv": nn.Conv2d(4, 6, 1), "norm": nn.BatchNorm2d(6)},
    )
    (synapses,) = synapses_of(folded)
    kinds = {
        ("none", 8): rso.SpikeConv2d,
        ("channel", 8): rso.SpikeConv2d,
        ("none", 9): rso.PiecewiseSpikeConv,
        ("channel", 9): rso.PiecewiseSpikeConv,
    }
    assert type(synapses) is kinds.get((granularity, size), rso.UnsharedSpikeConv)
    if type(synapses) is rso.PiecewiseSpikeConv:
        assert synapses.weight.shape[:2] == (2, 2)


def test_batch_norm_before_a_padded_convolution_shifts_by_position():
    _, folded, _ = fold_between(
        lambda m, o: m.end(m.layers["conv"](m.layers["norm"](o))),
        layers={
            "norm": _shifting_norm(4),
            "conv": nn.Conv2d(4, 4, 3, padding=1),
        },
    )
    (synapses,) = synapses_of(folded)
    assert synapses.bias.shape == (4, 8, 8)


def _shifting_norm(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = normal((channels,), 3)
    norm.bias.data = normal((channels,), 4)
    return norm


def test_a_global_average_and_a_classifier_are_one_kernel_per_pixel():
    """Not one per position of the map: 4 * 3 weights for 4 x 8 x 8 spikes, unless a varies."""

    def scores(m, o):
        return m.layers["fc"](m.layers["pool"](o).flatten(1))

    for granularity, weights in (("none", 12), ("channel", 12), ("element", 12 * 64)):
        layers = {"pool": nn.AdaptiveAvgPool2d(1), "fc": nn.Linear(4, 3)}
        for emission in ("binary", "ternary"):
            _, folded, _ = fold_between(
                scores, granularity=granularity, layers=layers, emission=emission
            )
            (synapses,) = synapses_of(folded)
            assert synapses.weight.numel() == weights


def test_branches_of_one_map_share_one_kernel():
    _, folded, _ = fold_between(
        lambda m, o: m.end(m.layers["wide"](o) + m.layers["narrow"](o) + o),
        layers={"wide": nn.Conv2d(4, 4, 3, padding=1), "narrow": nn.Conv2d(4, 4, 1)},
    )
    (synapses,) = synapses_of(folded)
    assert type(synapses) is rso.SpikeConv2d
    assert synapses.kernel_size == (3, 3)


@pytest.mark.parametrize("groups", [1, 3])
def test_concatenated_maps(groups):
    """4 + 2 channels in 3 groups of 2; in 1 group the kernel is cut by channels."""
    act = rso.RealSpikeLIF(T, "element", (2, 8, 8))
    act.amplitude.data = normal((2, 8, 8), 3)

    def join(m, *maps):
        return m.layers["join"](torch.cat(maps, 1))

    _, folded, _ = fold_between(
        lambda m, o: m.end(
            m.layers["join"](torch.cat([o, m.layers["act"](m.layers["two"](o))], 1))
        ),
        layers={
            "two": nn.Conv2d(4, 2, 1),
            "act": act,
            "join": nn.Conv2d(6, 6, 3, padding=1, groups=groups),
        },
    )
    _, first, second = synapses_of(folded)
    assert (type(first), type(second)) == (rso.SpikeConv2d, rso.UnsharedSpikeConv)
    expected = [(4, 4, 2), (2, 2, 1)] if groups == 3 else [(4, 6, 1), (2, 6, 1)]
    got = [(s.in_channels, s.out_channels, s.groups) for s in (first, second)]
    assert got == expected


@pytest.mark.parametrize("granularity", ["channel", "element"])
def test_a_part_of_a_map_that_no_spike_reaches(granularity):
    """What lies behind the map is the bias alone, for every kernel that starts there."""
    _, folded, x = fold_between(
        lambda m, o: m.layers["c"](o)[..., -2:],
        layers={"c": nn.Conv2d(4, 2, 1, padding=3)},
        granularity=granularity,
    )
    assert (folded(x) == folded(x)[:1, :, :1, :1]).all()


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda m, o: F.conv2d(o, m.layers["c"].weight, None, 1, "same"), id="conv2d"),
        pytest.param(
            lambda m, o: F.linear(o.flatten(1), m.layers["fc"].weight, m.layers["fc"].bias),
            id="linear",
        ),
        pytest.param(lambda m, o: m.end(F.avg_pool2d(o, 3, 2, 1, False, False)), id="avg-pool"),
        pytest.param(lambda m, o: m.end(F.avg_pool2d(o, 2, divisor_override=3)), id="divisor"),
        pytest.param(lambda m, o: m.end(F.max_pool2d(o, 2)), id="max-pool"),
        pytest.param(lambda m, o: m.end(F.max_pool2d(o, 3, 1, 1)), id="padded-max-pool"),
        pytest.param(lambda m, o: m.end(F.adaptive_max_pool2d(o, 2)), id="adaptive-max-pool"),
        pytest.param(lambda m, o: F.adaptive_avg_pool2d(o, (3, 5)), id="adaptive"),
        pytest.param(lambda m, o: o.mean([-1, -2]), id="mean"),
        pytest.param(lambda m, o: torch.sum(o, (2, 3), keepdim=True), id="sum"),
        pytest.param(
            lambda m, o: m.layers["fc"](o.view(o.size(0), -1)).unflatten(0, (T, -1)).mean(0),
            id="mean-over-time",
        ),
        pytest.param(
            lambda m, o: m.layers["fc"](o.reshape(o.shape[0], 256)).view(T, -1, 3).sum(dim=0),
            id="sum-over-time",
        ),
        pytest.param(
            lambda m, o: F.batch_norm(
                o, m.layers["n"].running_mean, m.layers["n"].running_var, None, m.layers["n"].bias
            ),
            id="batch-norm",
        ),
        pytest.param(lambda m, o: m.end(-o * 2 + 1 - o / 4), id="arithmetic"),
        pytest.param(lambda m, o: m.end(torch.add(o, m.layers["c"](o), alpha=-0.5)), id="alpha"),
        pytest.param(lambda m, o: m.end(1 - o), id="one-minus"),
        pytest.param(
            lambda m, o: m.layers["pixel"](o.mean((2, 3)).view(-1, 4, 1, 1)), id="view-as-pixels"
        ),
        pytest.param(lambda m, o: o.flatten(1).unflatten(1, (4, 8, 8)).squeeze(), id="unflatten"),
        pytest.param(lambda m, o: m.layers["c"](F.pad(o + 0.5, (1, 2, 3, 0))), id="pad"),
        pytest.param(lambda m, o: m.end(F.pad(m.layers["c"](o), (-1, 1, 0, -2))), id="crop"),
        pytest.param(lambda m, o: m.layers["c"](nn.functional.pad(o, (1, 1))), id="pad-rows"),
        pytest.param(lambda m, o: m.end(m.layers["zeros"](o)), id="zero-pad"),
        pytest.param(lambda m, o: m.end(m.layers["drop"](o.clone().detach())), id="dropout"),
    ],
)  # fmt: skip
def test_functions(between):
    layers = {
        **{"c": nn.Conv2d(4, 4, 3, padding=1), "fc": nn.Linear(256, 3), "n": _shifting_norm(4)},
        **{
            "pixel": nn.Conv2d(4, 2, 1),
            "drop": nn.Dropout(0.5),
            "zeros": nn.ZeroPad2d((1, 0, 2, 0)),
        },
    }
    fold_between(between, layers=layers)


# --- max pooling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("emission", ["binary", "ternary"])
@pytest.mark.parametrize("padding", [0, 1])
def test_max_pooling_for_either_sign(padding, emission):
    """By hand: F.max_pool2d of a * o itself, a > 0, < 0 and = 0."""
    pool = nn.MaxPool2d(3, 2, padding)
    network, folded, x = fold_between(
        lambda m, o: m.layers["conv"](m.layers["pool"](o)),
        emission=emission,
        layers={"pool": pool, "conv": nn.Conv2d(4, 4, 1)},
    )
    network.lif.amplitude.data = torch.tensor([1.5, -0.5, 0.0, -2.0]).view(4, 1, 1)
    assert_equal_in_float64(network, x)
    folded = rso.reparameterize(network, x)
    with torch.no_grad():
        spikes = folded.lif(x)
        pooled = folded.layers_pool(spikes)
        assert set(pooled.unique().tolist()) <= {-1.0, 0.0, 1.0}
        a = network.lif.amplitude
        assert torch.equal(a * pooled, F.max_pool2d(a * spikes, 3, 2, padding))


def test_max_pooling_behind_a_batch_norm_of_spikes():
    norm = _shifting_norm(4)
    norm.weight.data = torch.tensor([1.0, -1.0, 0.5, -2.0])
    fold_between(
        lambda m, o: m.layers["conv"](m.layers["pool"](m.layers["norm"](o))),
        layers={"norm": norm, "pool": nn.MaxPool2d(2), "conv": nn.Conv2d(4, 4, 1)},
    )


# --- the encoding ---------------------------------------------------------------------------------


class ResidualEncoding(nn.Module):
    """The current of the encoding is also added behind the first neurons, then convolved."""

    def __init__(self):
        super().__init__()
        self.encode, self.repeat = conv_norm(3, 4), rso.DirectEncoding(T)
        self.lif = rso.RealSpikeLIF(T, "element", (4, 8, 8))
        self.lif.amplitude.data = normal((4, 8, 8), 1)
        self.conv, self.end = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
        self.fc, self.mean = nn.Linear(4, 5), rso.MeanOverTime(T)

    def forward(self, x):
        x = self.repeat(F.relu(self.encode(x)))
        shape = x.shape[-1]
        assert shape is not None
        y = self.end(self.conv(2 * (self.lif(x) - x) + 0.5) + x)
        return self.mean(self.fc(y.mean((2, 3))))


def test_a_real_part_passes_the_linear_layers_by_itself():
    torch.manual_seed(0)
    network, x = ResidualEncoding().eval(), normal((4, 3, 8, 8), 2)
    assert_equal_in_float64(network, x)
    assert_rounding_alone(network, x)
    folded = rso.reparameterize(network, x)
    kinds = [folded.kind_of(step.name) for step in folded.steps]
    assert kinds.index("neurons") == kinds.count("encoding")


class RealScores(nn.Module):
    """Class scores of the image itself, added to the average over time; and an unlucky name."""

    def __init__(self):
        super().__init__()
        self.encode, self.repeat = conv_norm(3, 4), rso.DirectEncoding(T)
        self.lif = rso.RealSpikeLIF(T, "channel", (4, 8, 8))
        self.output, self.steps = nn.Linear(256, 5), nn.Linear(192, 5)
        self.mean = rso.MeanOverTime(T)

    def forward(self, x):
        scores = self.mean(self.output(self.lif(self.repeat(self.encode(x))).flatten(1)))
        return scores + self.steps(x.flatten(1))


def test_real_scores_are_added_behind_the_average():
    torch.manual_seed(0)
    network, x = RealScores().eval(), normal((4, 3, 8, 8), 2)
    assert_equal_in_float64(network, x)
    assert_rounding_alone(network, x)
