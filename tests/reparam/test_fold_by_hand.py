"""Folded networks by values that can be computed by hand, or that do not fold at all."""

import pytest
import torch
import torch.nn.functional as F
from fold_networks import T
from helpers import normal
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("behind", ["conv", "linear", "spikes"])
def test_the_eps_of_a_batch_norm_is_its_own(behind):
    """(2 * 1 - 4) / sqrt(1 + eps), with eps = 3 (a half) and 0.5625 (four fifths)."""
    for eps, factor in ((3.0, 0.5), (0.5625, 0.8)):
        maps = behind != "linear"
        norm = (nn.BatchNorm2d if maps else nn.BatchNorm1d)(1, eps=eps)
        norm.running_mean.fill_(4.0 if behind != "spikes" else 3.0)
        layer = {"conv": nn.Conv2d(1, 1, 1), "linear": nn.Linear(1, 1), "spikes": nn.Identity()}
        layer = layer[behind]
        for parameter in layer.parameters():
            parameter.data.fill_(2.0 if parameter.dim() > 1 else 0.0)
        network = nn.Sequential(rso.RealSpikeLIF(1), layer, norm).eval()
        x = torch.ones((1, 1, 1, 1) if maps else (1, 1))
        folded = rso.reparameterize(network, x)
        assert folded(x).item() == pytest.approx(-2.0 * factor, rel=1e-6)


class Calls(nn.Module):
    """An encoding of functions whose arguments are of every kind that a file can hold."""

    def __init__(self):
        super().__init__()
        self.lif, self.mean = rso.RealSpikeLIF(T), rso.MeanOverTime(T)

    def forward(self, x):  # [B, 3, 4, 4]
        x = torch.cat([x[..., 0:4:2, :], x[:, :, 1::2].clamp(min=None, max=0.5)], dim=1)
        x = x.permute((0, 1, 3, 2)).sum(dim=[2], keepdim=True)
        x = torch.mul(x, 0.75) - x[:, [5, 4, 3, 2, 1, 0]] / 3
        return self.mean(self.lif(torch.cat([x] * T)))


def test_a_file_holds_arguments_of_every_kind(tmp_path):
    network, x = Calls().eval(), normal((3, 3, 4, 4), 1)
    folded = rso.reparameterize(network, x)
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    expected = network(x)
    assert 0 < expected.mean() < 1
    for net in (folded, loaded):
        assert torch.equal(net(x), expected)


def test_a_file_holds_an_encoding_of_lines(tmp_path):
    encoding = nn.Sequential(
        *(nn.Conv1d(3, 4, 3, padding=1, stride=2, padding_mode="circular"), nn.BatchNorm1d(4)),
        *(nn.AvgPool1d(3, 1, count_include_pad=False), nn.MaxPool1d(2, ceil_mode=True)),
        nn.AdaptiveAvgPool1d(4),
    )
    head = (nn.Flatten(), nn.Linear(16, 2), rso.MeanOverTime(T))
    lif = rso.RealSpikeLIF(T, "element", (4, 4), v_threshold=0.1)
    network = nn.Sequential(*encoding, rso.DirectEncoding(T), lif, *head).eval()
    x = normal((3, 3, 32), 1)
    folded = rso.reparameterize(network, x)
    rso.save_folded(folded, tmp_path / "folded.safetensors")
    loaded = rso.load_folded(tmp_path / "folded.safetensors")
    assert torch.equal(loaded(x), folded(x))
    torch.testing.assert_close(loaded(x), network(x))


class Between(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.lif, self.conv = rso.RealSpikeLIF(T, "element", (3, 4, 4)), nn.Conv2d(3, 3, 1)
        self.between = between

    def forward(self, x):  # frames [T*B, 3, 4, 4]
        return self.between(self, self.lif(x))


def split(x):
    return x.unflatten(0, (T, -1))


SAME_OR_REFUSED = {
    "split and joined": lambda net, x: net.conv(split(net.conv(x)).flatten(0, 1)),
    "viewed and joined": lambda net, x: net.conv(x.view(T, -1, 3, 4, 4).view(-1, 3, 4, 4)),
    "joined the other way": lambda net, x: split(x).transpose(0, 1).flatten(0, 1),
    "joined with the channels": lambda net, x: split(x).flatten(1, 2),
    "padded features": lambda net, x: F.pad(x.flatten(1), (2, 1)),
    "padded while split": lambda net, x: F.pad(split(x), (1, 2, 0, 1)).flatten(0, 1),
    "pooled features": lambda net, x: F.avg_pool2d(x.flatten(2), (1, 2)).flatten(1),
    "pooled while split": lambda net, x: F.avg_pool2d(split(x).flatten(2, 3), 2).flatten(0, 1),
}


@pytest.mark.parametrize("name", SAME_OR_REFUSED)
def test_shapes_are_followed_or_refused(name):
    torch.manual_seed(0)
    network, x = Between(SAME_OR_REFUSED[name]).eval(), normal((2 * T, 3, 4, 4), 1)
    network.lif.amplitude.data.copy_(normal((3, 4, 4), 2))
    try:
        folded = rso.reparameterize(network, x)
    except rso.ReparameterizationError:
        folded = None
    if folded is None:
        assert name not in ("split and joined", "viewed and joined")
        return
    for rows in (x, x[:T]):
        torch.testing.assert_close(folded(rows), network(rows), atol=1e-5, rtol=1e-5)
