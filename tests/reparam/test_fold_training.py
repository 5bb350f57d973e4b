"""Untrained and trained networks, the bound on rounding, and training on of folded ones."""

import pytest
import torch
import torch.nn.functional as F
from fold_networks import (
    FAMILIES,
    SIZES,
    Neurons,
    T,
    assert_equal_in_float64,
    assert_rounding_alone,
    images_for,
    make,
)
from helpers import binary, normal
from torch import nn

import realspike_ops as rso
from realspike_ops.nn.synapses.synaptic_current import Synapses, SynapticCurrent

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("granularity", ["none", "element"])
@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_and_trained(family, granularity):
    torch.manual_seed(0)
    network = FAMILIES[family](Neurons(granularity))
    x, labels = normal((16, 3, *(2 * [SIZES.get(family, 8)])), 1), torch.arange(16) % 5
    assert_equal_in_float64(network.eval(), x[:4])
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[4:]) < losses[0]
    assert_equal_in_float64(network.eval(), x[:4])
    assert_rounding_alone(network, x)


def test_what_is_made_in_inference_mode_is_trained_on_outside(tmp_path):
    network, x = make("vgg", Neurons("channel")), images_for("vgg")
    ann = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    with torch.inference_mode():
        folded = rso.reparameterize(network, x.clone())
        rso.save_folded(folded, tmp_path / "folded.safetensors")
        loaded = rso.load_folded(tmp_path / "folded.safetensors")
        converted = rso.convert(ann, x.clone(), timesteps=T)
    for made in (folded, loaded, converted):
        made.train()(x).square().sum().backward()
        assert all(p.grad is not None and not p.is_inference() for p in made.parameters())


def test_the_bound_notices_a_wrong_weight():
    """By 1e-4: far below what flips a spike here, above what rounding can do."""
    network, x = make("resnet19", Neurons("element")), images_for("resnet19")
    folded = rso.reparameterize(network, x[:1])
    assert rso.verify(network, folded, x, bounds=True).within_bounds
    with torch.no_grad():
        folded.blocks_0_first_0.weight[..., 1] += 1e-4
    report = rso.verify(network, folded, x, bounds=True)
    assert not report.within_bounds
    assert report.layers[1].error_over_bound > 1
    with pytest.raises(TypeError, match="FoldedNetwork"):
        rso.verify(network, network, x, bounds=True)


def test_one_to_one_and_signed_gradients_are_those_of_the_products():
    spikes = (binary((3, 2, 4, 4), 1) - binary((3, 2, 4, 4), 2)).requires_grad_()
    weight = normal((2, 4, 4), 3).requires_grad_()
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    layer = rso.SpikeConv2d.from_conv2d(conv)
    one_to_one = rso.OneToOneSynapses(weight.detach().clone())
    out = SynapticCurrent({"a": one_to_one, "b": _Sum(Synapses(layer, signed=True))})(
        spikes, spikes
    )
    expected = weight * spikes + conv(spikes).sum(1, keepdim=True)
    torch.testing.assert_close(out, expected)
    grad = normal(out.shape, 4)
    got = torch.autograd.grad(out, (spikes, one_to_one.weight, layer.weight), grad)
    spikes_grad, weight_grad, conv_grad = torch.autograd.grad(
        expected, (spikes, weight, conv.weight), grad
    )
    torch.testing.assert_close(got[0], spikes_grad)
    torch.testing.assert_close(got[1], weight_grad)
    torch.testing.assert_close(got[2][0, 0, 0].permute(3, 2, 0, 1), conv_grad)


class _Sum(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).sum(1, keepdim=True)


@pytest.mark.parametrize("emission", ["binary", "ternary"])
def test_folded_networks_train_on(emission):
    network = make("resnet20-odd", Neurons("element", emission=emission))
    x, labels = images_for("resnet20-odd", 16), torch.arange(16) % 5
    folded = rso.reparameterize(network, x[:1]).train()
    for module in folded.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(folded.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(folded(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in folded.parameters())
    assert min(losses[10:]) < 0.95 * losses[0], losses
