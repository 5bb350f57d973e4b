"""Folded networks of int8 weights: whole currents in steps of a scale, and nothing multiplied."""

import copy

import pytest
import torch
from fold_networks import FAMILIES, Neurons, T, images_for, make, synapses_of
from helpers import normal
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

FORMS = {
    "paper": {},
    "ternary-soft": {"emission": "ternary", "v_reset": None, "decay": 0.5},
    "no-reset": {
        "reset": "none",
        "threshold_granularity": "element",
        "decay_granularity": "channel",
    },
}


def int8(network, x, **options):
    return rso.reparameterize(network, x[:T], weight_dtype=torch.int8, **options)


@pytest.mark.parametrize(
    ("granularity", "form"),
    [("none", "paper"), ("channel", "ternary-soft"), ("element", "no-reset")],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_rounding_to_steps_explains_every_difference(family, granularity, form):
    network, x = make(family, Neurons(granularity, **FORMS[form])), images_for(family)
    folded = int8(network, x)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    assert max(layer.error_over_bound for layer in report.layers) > 0.02, report
    assert max(layer.max_current_error for layer in report.layers) > 1e-4, report
    rso.assert_multiplication_free(folded, x)
    with torch.no_grad():
        packed = folded(x)
    assert torch.equal(folded(x).detach(), packed)


class OneLayer(nn.Module):
    def __init__(self, **form):
        super().__init__()
        self.lif1, self.conv = rso.RealSpikeLIF(T), nn.Conv2d(2, 3, 1)
        self.lif2, self.fc = rso.RealSpikeLIF(T, **form), nn.Conv2d(3, 2, 1, bias=False)
        self.conv.weight.data = torch.tensor([[127.0, -3], [2, 8], [0, 0]]).view(3, 2, 1, 1) / 8
        self.conv.weight.data[1] *= 127 / 8
        self.conv.bias.data = torch.tensor([0.25, -0.5, 0.75])

    def forward(self, x):
        return self.fc(self.lif2(self.conv(self.lif1(x))))


def test_steps_by_hand():
    """Weights that are steps of a scale: nothing is rounded, and every number is known."""
    network, x = OneLayer(v_threshold=0.375), normal((T * 5, 2, 4, 4), 1)
    folded = int8(network, x)
    assert folded.conv.weight.dtype == torch.uint8
    steps = folded.conv.weight.int().flatten() - 128  # [Cin * Cout]
    assert steps.view(2, 3).t().tolist() == [[127, -3], [32, 127], [0, 0]]
    assert folded.conv.bias.tolist() == [2.0, -4.0, 0.75]
    assert folded.lif2.v_threshold.flatten().tolist() == [3.0, 3.0, 0.375]
    assert folded.lif2.current_scale.flatten().tolist() == [0.125, 0.125, 1.0]
    assert folded.fc.weight.dtype == torch.float32  # no threshold behind it takes the scale
    report = rso.verify(network, folded, x)
    assert report.flipped_spikes == 0
    assert report.layers[1].max_current_error <= 0.125 / 4 * 1.01  # of 2 * 127 / 64, 31.75 steps
    with torch.no_grad():
        folded.conv.bias.add_(0.5)
    assert rso.verify(network, folded, x).layers[1].max_current_error >= 0.5 * 0.125


def test_a_delayed_reset_is_in_steps_too(tmp_path):
    network, x = (
        OneLayer(v_threshold=0.375, reset="soft_delayed", decay=0.75),
        normal((T * 5, 2, 4, 4), 1),
    )
    for folded in (int8(network, x), rso.reparameterize(network, x[:T])):
        report = rso.verify(network, folded, x)
        assert report.flipped_spikes == 0
        assert 0.05 < report.layers[1].firing_rate < 0.95
        assert folded.lif2.reset == "soft_delayed"
        rso.save_folded(folded, tmp_path / "folded.pt")
        loaded = rso.load_folded(tmp_path / "folded.pt")
        with torch.no_grad():
            assert torch.equal(loaded(x), folded(x))


def test_all_synapses_of_a_layer_have_one_scale():
    """A convolution, an average and an identity shortcut, and the current of the encoding."""

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.repeat = nn.Conv2d(3, 4, 3, padding=1), rso.DirectEncoding(T)
            self.lif1 = rso.RealSpikeLIF(T, "element", (4, 6, 6))
            self.conv1, self.lif2 = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
            self.conv2, self.lif3 = nn.Conv2d(4, 4, 3, padding=1), rso.RealSpikeLIF(T)
            self.fc, self.mean = nn.Linear(144, 5), rso.MeanOverTime(T)

        def forward(self, x):
            current = self.repeat(self.encode(x))
            first = self.lif1(current)
            second = self.lif2(self.conv1(first))
            third = self.lif3(self.conv2(second) + 0.5 * first + current - 0.125)
            return self.mean(self.fc(third.flatten(1)))

    torch.manual_seed(0)
    network, x = Meeting().eval(), normal((4, 3, 6, 6), 1)
    network.lif1.amplitude.data = 1 + 0.5 * normal((4, 6, 6), 2)
    folded = int8(network, x)
    report = rso.verify(network, folded, x, bounds=True)
    assert report.within_bounds, report
    rso.assert_multiplication_free(folded, x)
    current = folded.lif3_current
    conv, shortcut = current.synapses.values()
    scale = folded.lif3.current_scale
    assert type(conv) is rso.SpikeConv2d
    assert conv.weight.dtype == torch.uint8
    expected = 0.5 * network.lif1.amplitude / scale
    torch.testing.assert_close(shortcut.weight, expected)  # not rounded
    assert "in_steps" in folded.encoding[-1]  # the image's current is divided where it multiplies
    with torch.no_grad():
        torch.testing.assert_close(
            folded.get_submodule(folded.encoding[-1])(torch.ones(1, 4, 6, 6)),
            (1 / scale).expand(1, 4, 6, 6),
        )


def test_a_reset_to_another_potential_is_refused_by_name():
    network, x = OneLayer(v_reset=-0.25), normal((T * 2, 2, 4, 4), 1)
    with pytest.raises(
        rso.ReparameterizationError, match=r"'lif2' \(RealSpikeLIF\).*int8.*v_reset, -0.25.*float16"
    ):
        int8(network, x)
    with pytest.raises(ValueError, match=r"v_reset must be 0.*-0.25"):
        rso.FoldedLIF(T, v_reset=-0.25).in_steps_of(torch.ones(2, 1, 1))


@pytest.mark.parametrize("family", ["resnet20-odd", "sew-resnet18", "branches", "vgg"])
def test_files_and_copies(family, tmp_path):
    network = make(family, Neurons("element", emission="ternary", decay_granularity="channel"))
    x = images_for(family)
    folded = int8(network, x)
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x), folded(x))
        assert repr(loaded) == repr(folded)
        other = copy.deepcopy(folded)
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
        other.load_state_dict(folded.state_dict())
        assert torch.equal(other(x), folded(x))
        # Casting keeps the steps, the thresholds and the scales.
        half = rso.load_folded(tmp_path / "folded.safetensors").bfloat16()
    for name, buffer in folded.named_buffers():
        if "scale" in name or "v_threshold" in name or buffer.dtype == torch.uint8:
            assert torch.equal(half.get_buffer(name), buffer), name
    assert not any(p.dtype == torch.uint8 for p in folded.parameters())


def test_the_limit_counts_one_byte_per_rounded_weight():
    network, x = make("resnet19", Neurons("element")), images_for("resnet19")
    layers = synapses_of(int8(network, x))
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    assert {layer.weight.element_size() for layer in layers} == {1, 4}
    int8(network, x, max_bytes=size)
    with pytest.raises(rso.ReparameterizationError, match=rf"\({size:,} bytes\)"):
        int8(network, x, max_bytes=size - 1)
    with pytest.raises(rso.ReparameterizationError) as refused:
        rso.reparameterize(network, x, max_bytes=size)
    text = rso.reparam.units.bytes_text(size)
    assert f"torch.int8, which rounds the weights: {text}" in str(refused.value)
    resets = make("resnet19", Neurons("element", v_reset=-0.1))
    with pytest.raises(rso.ReparameterizationError) as refused:
        rso.reparameterize(resets, x, max_bytes=size)
    assert "int8" not in str(refused.value)


def test_the_bound_notices_more_than_rounding():
    network, x = make("resnet19", Neurons("element")), images_for("resnet19")
    folded = int8(network, x)
    assert rso.verify(network, folded, x, bounds=True).within_bounds
    weight = folded.blocks_0_first_0.weight
    folded.blocks_0_first_0.weight = torch.where(weight < 250, weight + 2, weight)
    assert not rso.verify(network, folded, x, bounds=True).within_bounds
