"""How amplitudes are trained: an optimizer, a rate and a start of their own."""

import signal

import pytest
import torch

for package in ("sklearn", "safetensors", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

from realspike import train
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.inspect import trained_file
from realspike.networks import build
from realspike.networks.layers import draw_amplitudes
from realspike.train import module
from realspike.train.optimizer import adamw, sgd
from realspike.train.placement import Placement
from torch import nn

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 512},
    **{"epochs": 2, "learning_rate": 0.05, "device": "cpu", "granularity": "channel"},
}


def config_of(**changes):
    return RunConfig().replaced(**(SMALL | changes))


def amplitudes_of(network):
    lifs = [m for m in network.modules() if isinstance(m, rso.RealSpikeLIF)]
    return [lif.amplitude for lif in lifs if lif.amplitude is not None]


def flat(network):
    return torch.cat([amplitude.detach().flatten() for amplitude in amplitudes_of(network)])


# Adam beside SGD


def one_weight_one_amplitude(gradient):
    """A weight and an amplitude at 1, both with the same gradient."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), rso.RealSpikeLIF(1, "layer"))
    nn.init.ones_(network[0].weight)
    network[1].neurons_per_amplitude = 16
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    return network, network[0].weight, network[1].amplitude


@pytest.mark.parametrize("gradient", [0.02, -50.0])
def test_adam_steps_amplitudes_by_the_rate_whatever_the_gradient(gradient):
    network, weight, amplitude = one_weight_one_amplitude(gradient)
    options = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.75}
    optimizer = sgd(network, **options, adam_amplitudes=True, amplitude_lr=0.25)
    optimizer.step()
    # The first step of Adam is its rate against the sign; that of SGD the rate times the gradient.
    assert amplitude.item() == pytest.approx(1 - (0.25 if gradient > 0 else -0.25), rel=1e-3)
    assert weight.item() == pytest.approx(1 - 0.1 * gradient)
    # And the next with its momentum: the mean of equal gradients is the gradient.
    weight.grad.zero_()
    before = weight.item()
    optimizer.step()
    assert amplitude.item() == pytest.approx(1 - (0.5 if gradient > 0 else -0.5), rel=1e-3)
    assert weight.item() == pytest.approx(before - 0.1 * 0.75 * gradient)
    optimizer.zero_grad()
    assert weight.grad is None
    assert amplitude.grad is None


def test_what_rounding_leaves_of_a_gradient_makes_no_steps():
    """1e-7 beside the 1e-5 that is added to it: a hundredth and first of the rate."""
    network, _, amplitude = one_weight_one_amplitude(1e-7)
    options = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    sgd(network, **options, adam_amplitudes=True).step()
    assert 1 - amplitude.item() == pytest.approx(0.1 / 101, rel=1e-3)


@pytest.mark.parametrize("kind", [sgd, adamw])
@pytest.mark.parametrize("adam", [True, False])
@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 0.1),
        ({"amplitude_lr": 0.5}, 0.5),
        ({"amplitude_lr": 0.0}, 0.0),
        ({"scale_amplitudes": True}, 0.1 / 4),
        ({"amplitude_lr": 0.5, "scale_amplitudes": True}, 0.5 / 4),
    ],
)
def test_the_rate_of_amplitudes(kind, adam, settings, rate):
    network, weight, amplitude = one_weight_one_amplitude(1.0)
    optimizer = kind(network, lr=0.1, weight_decay=0.5, adam_amplitudes=adam, **settings)
    found = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {weight: (0.1, 0.5), amplitude: (rate, 0.0)}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    weight.grad.zero_()
    before = amplitude.item()
    optimizer.step()
    if adam:
        assert before - amplitude.item() == pytest.approx(rate / 2, rel=1e-3)


def test_a_binary_network_has_one_optimizer():
    network = build(NetworkConfig("none"), seed=0)
    optimizer = sgd(network, lr=0.1, weight_decay=0.0, adam_amplitudes=True)
    assert type(optimizer) is torch.optim.SGD


def test_the_configuration_reaches_the_optimizer():
    config = config_of(amplitude_optimizer="adam", amplitude_rate=0.5, scale_amplitudes="false")
    network = build(config.network_config(), seed=0)
    classifier = module.SpikingClassifier(config, network, [0.5], [0.25], 4, Placement({}))
    made = classifier.configure_optimizers()
    first, second = made["optimizer"].optimizers
    assert (type(first), type(second)) == (torch.optim.SGD, torch.optim.Adam)
    [group] = second.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.9, 0.999), 0.0)
    assert {id(p) for p in group["params"]} == {id(a) for a in amplitudes_of(network)}
    assert {group["lr"] for group in first.param_groups} == {0.05}
    for bad, said in (
        ({"amplitude_optimizer": "sgd"}, "amplitude_optimizer must be one of same, adam"),
        ({"amplitude_rate": -1}, "amplitude_rate must be at least 0"),
        ({"amplitude_spread": 2}, "amplitude_spread must be at least 0 and at most 1"),
        ({"amplitude_optimizer": "adam", "momentum": 1}, "momentum must be below 1 for adam"),
    ):
        with pytest.raises(ConfigError, match=said):
            config_of(**bad)


def test_both_optimizers_go_on_where_a_run_was_stopped(tmp_path, monkeypatch):
    changes = {"amplitude_optimizer": "adam", "amplitude_rate": 0.02, "epochs": 3}
    whole = train.start(config_of(**changes), tmp_path / "whole")
    original, seen = module.SpikingClassifier.training_step, []

    def training_step(self, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == 5:  # in the second of three epochs of three steps
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(module.SpikingClassifier, "training_step", training_step)
        assert train.start(config_of(**changes), tmp_path / "run").stopped_by == signal.SIGTERM
    assert train.resume(tmp_path / "run").records == whole.records
    for file in ("model.safetensors", "layers.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    moved = torch.cat(
        [a.flatten() for a in amplitudes_of(trained_file.load(tmp_path / "run").network)]
    )
    assert (moved != 1).all()


# Where amplitudes start


def test_amplitudes_are_drawn_around_1():
    networks = [build(NetworkConfig("element", width=32), seed=0) for _ in range(4)]
    for network, (spread, seed) in zip(
        networks[1:], ((0.25, 3), (0.25, 3), (0.25, 4)), strict=True
    ):
        draw_amplitudes(network, spread, seed)
    plain, drawn, again, other = (
        torch.cat([a.flatten() for a in amplitudes_of(n)]) for n in networks
    )
    assert (plain == 1).all()
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)
    # Of 3,000 and more, so that five deviations of mean and deviation are below 0.025.
    assert len(drawn) > 3000
    assert drawn.mean().item() == pytest.approx(1, abs=0.025)
    assert drawn.std().item() == pytest.approx(0.25, abs=0.025)
    assert drawn.unique().numel() > 3000
    weights = networks[0].state_dict()
    for name, tensor in networks[1].state_dict().items():
        assert torch.equal(tensor, weights[name]) or name.endswith("amplitude"), name
    before = networks[1].state_dict()["lif1.amplitude"].clone()
    draw_amplitudes(networks[1], 0.0, 5)
    assert torch.equal(networks[1].state_dict()["lif1.amplitude"], before)


def test_a_run_starts_with_drawn_amplitudes(tmp_path):
    still = {"learning_rate": 0, "epochs": 1, "seed": 7}
    train.start(config_of(amplitude_spread=0.5, **still), tmp_path / "run")
    expected = build(config_of().network_config(), seed=7)
    draw_amplitudes(expected, 0.5, 7)
    found = amplitudes_of(trained_file.load(tmp_path / "run").network)
    assert all(map(torch.equal, found, amplitudes_of(expected)))
    # Stopped before its first checkpoint, it starts so again.
    for file in ("last.ckpt", "model.safetensors", "metrics.csv"):
        (tmp_path / "run" / file).unlink()
    train.resume(tmp_path / "run")
    found = amplitudes_of(trained_file.load(tmp_path / "run").network)
    assert all(map(torch.equal, found, amplitudes_of(expected)))


# What an amplitude of a whole layer can do


def test_a_batch_norm_takes_back_what_scales_a_whole_layer():
    """Only neurons that an identity shortcut or the classifier reads keep such an amplitude: a
    convolution and a batch norm that takes the statistics of the batch give the same for any."""
    config = NetworkConfig("layer", architecture="resnet20", width=4, image_size=8, timesteps=2)
    network = build(config, seed=0)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    lifs = {n: m for n, m in network.named_modules() if isinstance(m, rso.RealSpikeLIF)}
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-30  # more than 0, and nothing beside a variance

    def logits():
        with torch.no_grad():
            return network(images)

    before, changed = logits(), set()
    for name, lif in lifs.items():
        lif.amplitude.data.fill_(2.0)  # a power of two, by which every sum scales exactly
        if not torch.allclose(logits(), before, atol=1e-4):
            changed.add(name)
        lif.amplitude.data.fill_(1.0)
    # Before a block without a change of size, and before the classifier.
    assert changed == {"stem.lif3", *(f"stages.{n}.0.lif2" for n in range(4)), "stages.3.1.lif2"}
