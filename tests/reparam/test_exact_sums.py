"""int8 weights in steps of powers of two: all sums of spikes are exact, in any order."""

import copy

import pytest
import torch
from fold_networks import Neurons, T, images_for, make, synapses_of
from helpers import generator, normal
from torch import nn

import realspike_ops as rso
from realspike_ops.functional.quantize_weight import next_power_of_two
from realspike_ops.reparam.check.quantization_bound import finest

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {
    "paper": {},
    "ternary-soft": {"emission": "ternary", "v_reset": None, "decay": 0.5},
    "no-reset": {"reset": "none", "threshold_granularity": "element"},
}


def exact(network, x, **options):
    options = {"weight_dtype": torch.int8, "scales": "power_of_two"} | options
    return rso.reparameterize(network, x[:T], **options)


def test_powers_of_two_by_hand():
    numbers = torch.tensor([1.0, 1.5, 2.0, 0.5, 0.375, 2.0**-130, 3 * 2.0**-140]).double()
    expected = [1.0, 2.0, 2.0, 0.5, 0.5, 2.0**-130, 2.0**-138]
    assert next_power_of_two(numbers).tolist() == expected
    assert finest(torch.tensor([0.75, -2.5, 0.0, 12.0])) == 0.25
    assert finest(torch.tensor([0.75, 2.0**-40])) == 2.0**-40
    assert finest(torch.tensor([-64.0])) == finest(torch.zeros(3)) == 1.0


def test_rounded_weights_by_hand():
    weight = torch.tensor([127.0, 50.5, 51.5, -63.5]).view(1, 1, 1, 1, 1, 4, 1)
    steps, scale = rso.quantize_weight(weight, scales="power_of_two")
    assert scale.tolist() == [1.0]
    assert (steps.int().flatten() - 128).tolist() == [127, 50, 52, -64]
    _, scale = rso.quantize_weight(weight * 1.01, scales="power_of_two")
    assert scale.tolist() == [2.0]  # 128.27 is more than 127 steps
    with pytest.raises(ValueError, match=r"scales must be one of largest, power_of_two; got 'two'"):
        rso.quantize_weight(weight, scales="two")


class OneLayer(nn.Module):
    """Three channels of two weights, a bias, and class scores."""

    def __init__(self):
        super().__init__()
        self.lif1, self.conv = rso.RealSpikeLIF(T), nn.Conv2d(2, 3, 1)
        self.lif2, self.fc = rso.RealSpikeLIF(T, v_threshold=0.375), nn.Conv2d(3, 2, 1)
        self.sum = rso.SumOverTime(T)
        with torch.no_grad():
            weights = torch.tensor([[100.0, -3.2], [2.6, 8], [0, 0]]).view(3, 2, 1, 1)
            self.conv.weight.copy_(weights / 8)
            self.conv.bias.copy_(torch.tensor([0.3, -0.5, 0.75]))
            self.fc.weight.copy_(
                torch.tensor([[1.0, 1 / 3, 0.5], [0.1, 0.2, 0.3]])[..., None, None]
            )
            self.fc.bias.copy_(torch.tensor([0.7, 0.0]))

    def forward(self, x):
        return self.sum(self.fc(self.lif2(self.conv(self.lif1(x)))))


def test_steps_by_hand():
    folded = exact(OneLayer(), normal((T, 2, 4, 4), 1))
    # 12.5 / 127 is below 1/8; 1 / 127 below 1/64; a channel of zeros has steps of 1.
    assert folded.lif2.current_scale.flatten().tolist() == [0.125, 2.0**-6, 1.0]
    assert folded.lif2.v_threshold.flatten().tolist() == [3.0, 24.0, 0.375]
    steps = folded.conv.weight.int().flatten() - 128  # [Cin * Cout]
    assert steps.view(2, 3).t().tolist() == [[100, -3], [21, 64], [0, 0]]
    # 21 + 64 steps and a bias of 32 in the second channel: 2^24 / 117.5 and more is 2^17.
    unit = 2.0**-17
    expected = torch.tensor([2.4 / unit, -32 / unit, 0.75 / unit]).double().round() * unit
    assert torch.equal(folded.conv.bias.double(), expected)
    assert "current_scale=3x1x1 of powers of two" in repr(folded).replace("[3, 1, 1]", "3x1x1")
    # (1 + 1/3 + 1/2 + 0.7) times T = 2 is 5.07: multiples of 2^-21 stay below 2^24 of them.
    assert finest(folded.fc.weight) == 2.0**-21
    assert folded.fc.weight.dtype == torch.float32
    assert (
        folded.fc.weight.flatten() - torch.tensor([1, 0.1, 1 / 3, 0.2, 0.5, 0.3])
    ).abs().max() < (2.0**-22)


@pytest.mark.parametrize(
    ("family", "granularity", "form"),
    [
        ("vgg", "none", "paper"),
        ("resnet20-odd", "element", "no-reset"),
        ("sew-resnet34", "none", "ternary-soft"),
        ("branches", "element", "ternary-soft"),
        ("depthwise", "channel", "paper"),
    ],
)
def test_every_difference_is_rounding_and_every_sum_exact(family, granularity, form):
    network, x = make(family, Neurons(granularity, **FORMS[form])), images_for(family)
    folded = exact(network, x)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    rso.assert_multiplication_free(folded, x)
    reached = rso.assert_exact_sums(folded, x)
    # As fine as it can be: another bit would be one too many somewhere, almost.
    assert 0.25 < max(reached.values()) < 1
    with pytest.raises(ValueError, match=r"can add up .* times 2\^24 multiples"):
        rso.assert_exact_sums(rso.reparameterize(network, x, weight_dtype=torch.int8), x)


def test_sums_in_any_order_and_in_any_type_are_the_same_bits():
    """By gathers, backwards, and in float64."""
    network, x = make("resnet20", Neurons("element")), images_for("resnet20")
    folded = exact(network, x)
    layers = [m for m in synapses_of(folded) if isinstance(m, rso.nn.synapses.spike_conv.SpikeConv)]
    assert len(layers) > 5
    for n, layer in enumerate(layers):
        H, W = getattr(layer, "input_size", (4, 4))
        H, W = layer.kernel_size if isinstance(layer, rso.SpikeLinear) else (H, W)
        shape = (5, layer.in_channels, H, W)
        spikes = (torch.rand(shape, generator=generator(n)) < 0.5).float()
        with torch.no_grad():
            current = layer(spikes)
            weight = layer.weight.double() - (128 if layer.weight.dtype == torch.uint8 else 0)
            bias = None if layer.bias is None else layer.bias.double()
            for dtype in (torch.float32, torch.float64):
                backwards = layer.groups == 1
                exactly = rso.reference.unshared_spike_conv(
                    (spikes.flip(1) if backwards else spikes).to(dtype),
                    (weight.flip(5) if backwards else weight).to(dtype),
                    None if bias is None else bias.to(dtype),
                    **{k: getattr(layer, k) for k in ("stride", "padding", "dilation")},
                )
                assert torch.equal(exactly.float().flatten(1), current.flatten(1))


def test_files_and_casts(tmp_path):
    network, x = make("sew-resnet18", Neurons("element")), images_for("sew-resnet18")
    folded = exact(network, x)
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    assert repr(loaded) == repr(folded)
    with torch.no_grad():
        assert torch.equal(loaded(x), folded(x))
    rso.assert_exact_sums(loaded, x)
    assert rso.profile(loaded, x).to_json() == rso.profile(folded, x).to_json()


def test_a_shortcut_and_a_bias_are_multiples_of_a_part_of_a_step():
    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif1 = rso.RealSpikeLIF(T, "element", (4, 6, 6))
            self.conv1, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
            self.conv2, self.lif3 = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
            self.lif4, self.fc = rso.RealSpikeLIF(T), nn.Conv2d(4, 2, 1)
            self.mean = rso.MeanOverTime(T)

        def forward(self, x):
            first = self.lif1(x)
            second = self.lif2(self.conv1(first))
            third = self.lif3(self.conv2(second) + 0.3 * first - 0.11)
            return self.mean(self.fc(self.lif4(0.3 * third)))

    torch.manual_seed(0)
    network, x = Meeting().eval(), normal((T * 2, 4, 6, 6), 1)
    network.lif1.amplitude.data = 1 + 0.5 * normal((4, 6, 6), 2)
    folded = exact(network, x)
    scale = folded.lif3.current_scale
    shortcut = next(m for m in synapses_of(folded.lif3_current) if type(m) is rso.OneToOneSynapses)
    shortcut = shortcut.weight
    wanted = 0.3 * network.lif1.amplitude.double() / scale
    unit = finest(shortcut)
    assert unit < 2.0**-6
    assert 0 < (shortcut - wanted).abs().max() <= unit / 2 * 1.001
    # What neurons read through one-to-one synapses alone is in the units of the trained network.
    assert folded.lif4.current_scale is None
    assert (folded.lif4_current.weight.double() - 0.3).abs().item() < 2.0**-24
    assert rso.verify(network, folded, x, bounds=True).within_bounds
    assert max(rso.assert_exact_sums(folded, x).values()) < 1


@pytest.mark.parametrize("shuffles", [False, True])
def test_class_scores_that_are_rounded_alone_are_within_bounds(shuffles):
    """No int8 weights, and no scale: the only synapses are those of the output. One class has
    weights so large that those of the others are rounded visibly."""
    torch.manual_seed(0)
    scores = nn.Conv2d(2, 4, 3)
    scores.weight.data[0] *= 100
    moves = [nn.PixelShuffle(2)] if shuffles else []
    network = nn.Sequential(rso.RealSpikeLIF(T, "channel", (2, 4, 4)), scores, *moves).eval()
    x = normal((T * 8, 2, 4, 4), 1)
    folded = exact(network, x)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    assert rso.assert_exact_sums(folded, x)
    with torch.no_grad():
        next(folded.parameters()).add_(2.0**-10)
    assert not rso.verify(network, folded, x, bounds=True).within_bounds


def test_the_bound_notices_more_than_rounding():
    network, x = make("resnet19", Neurons("element")), images_for("resnet19")
    folded = exact(network, x)
    assert rso.verify(network, folded, x, bounds=True).within_bounds
    other = copy.deepcopy(folded)
    with torch.no_grad():
        other.blocks_0_first_0.bias.add_(8)
    assert not rso.verify(network, other, x, bounds=True).within_bounds
    network, x = OneLayer(), normal((T * 4, 2, 4, 4), 1)
    folded = exact(network, x)
    assert rso.verify(network, folded, x, bounds=True).error_over_bound < 1
    with torch.no_grad():
        folded.fc.weight.add_(2.0**-18)
    assert rso.verify(network, folded, x, bounds=True).error_over_bound > 1


def test_too_many_synapses_are_refused_by_name():
    network = nn.Sequential(rso.RealSpikeLIF(1), nn.Linear(132_105, 1), rso.RealSpikeLIF(1)).eval()
    x = torch.zeros(1, 132_105)
    with torch.no_grad():
        network[1].weight.fill_(1.0)
        network[1].bias.zero_()
    # 1 is 64 steps of 2^-6: 132,105 of them are 8,454,720, and twice that are above 2^24.
    folded = exact(network, x)
    assert max(rso.assert_exact_sums(folded, x).values()) == 132_105 * 64 / 2**24
    with torch.no_grad():
        network[1].weight.fill_(127 / 128)  # 127 steps of 2^-7
    with pytest.raises(rso.ReparameterizationError, match=r"'1' .*1\.678e\+07 steps.*'largest'"):
        exact(network, x)
    exact(network, x, scales="largest")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_scales_are_of_int8_alone(dtype):
    network, x = OneLayer(), normal((T, 2, 4, 4), 1)
    with pytest.raises(ValueError, match=r"scales='power_of_two' is of weight_dtype=torch.int8"):
        exact(network, x, weight_dtype=dtype)
    with pytest.raises(
        ValueError, match=r"scales must be one of largest, power_of_two; got 'auto'"
    ):
        exact(network, x, scales="auto")
    rso.reparameterize(network, x, weight_dtype=dtype, scales="largest")


def test_exactness_is_asked_of_folded_networks():
    with pytest.raises(TypeError, match=r"folded must be a FoldedNetwork; got OneLayer"):
        rso.assert_exact_sums(OneLayer(), normal((T, 2, 4, 4), 1))
