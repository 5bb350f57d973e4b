"""Training with batch norms in the neurons is the same training."""

import pytest
import torch
import torch.nn.functional as F

for package in ("sklearn", "safetensors", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

from realspike import checkpoint, train
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import RunConfig
from realspike.data import load
from realspike.networks import build
from realspike.train import module
from torch import nn

import realspike_ops as rso

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 128},
    **{"epochs": 1, "learning_rate": 0.05, "device": "cpu", "threads": 1, "max_steps": 4},
}


def config_of(**changes):
    return RunConfig().replaced(**(SMALL | changes))


def state_of(out):
    return torch.load(out / "last.ckpt", weights_only=True)["state_dict"]


def assert_close_runs(out, other):
    a, b = state_of(out), state_of(other)
    assert list(a) == list(b)
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=1e-5, msg=name)
    a, b = (checkpoint.load(o / "model.safetensors").network for o in (out, other))
    assert [type(m) for m in a.modules()] == [type(m) for m in b.modules()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a fused and of an unfused run of four steps."""
    folder = tmp_path_factory.mktemp("runs")
    for fuse in (True, False):
        train.start(config_of(fuse=fuse), folder / str(fuse))
    return folder / "True", folder / "False"


def test_a_fused_run_is_the_run(runs):
    fused, plain = runs
    assert RunConfig().training.fuse
    assert_close_runs(fused, plain)
    layers = [(out / "layers.csv").read_text().splitlines() for out in runs]
    assert [line.split(",")[1] for line in layers[0]] == ["layer", "lif1", "lif2", "lif3"]
    assert [line.split(",")[1] for line in layers[1]] == ["layer", "lif1", "lif2", "lif3"]


@pytest.mark.parametrize("fuse", [True, False])
def test_norms_run_by_themselves_only_where_hooks_count_spikes(fuse, tmp_path, monkeypatch):
    by_training = []
    batch_norm = F.batch_norm

    def noted(x, mean, var, weight, bias, training, *rest):
        by_training.append(training)
        return batch_norm(x, mean, var, weight, bias, training, *rest)

    monkeypatch.setattr(F, "batch_norm", noted)
    config = config_of(fuse=fuse)
    network = build(config.network_config(), seed=0)
    train.fit(network, load(config), tmp_path / "run", config=config)
    assert by_training.count(True) == (0 if fuse else 3 * 4)  # norms, steps
    assert by_training.count(False) > 0
    assert type(network.bn2) is nn.BatchNorm2d
    with pytest.raises(ValueError, match="was not fused"):
        rso.fusion_report(network)


@pytest.mark.parametrize("fuse", [True, False])
def test_a_run_goes_on_fused_or_not(fuse, runs, tmp_path, monkeypatch):
    original = module.SpikingClassifier.training_step

    def stop(self, batch, batch_idx):
        if self.global_step == 1:
            callback = self.trainer.callbacks[-1]
            callback._on_signal(15, None)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(module.SpikingClassifier, "training_step", stop)
        assert train.start(config_of(fuse=fuse), tmp_path).stopped_by == 15
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    path = tmp_path / run_config.FILE
    text = path.read_text()
    other = text.replace(f"fuse: {str(fuse).lower()}", f"fuse: {str(not fuse).lower()}")
    assert other != text
    path.write_text(other)
    train.resume(tmp_path)
    assert_close_runs(tmp_path, runs[0])
    assert_close_runs(tmp_path, runs[1])


def test_a_network_that_cannot_be_fused_is_trained(tmp_path, monkeypatch):
    def refuse(network, example):
        raise ValueError("no")

    monkeypatch.setattr(module, "fuse", refuse)
    train.start(config_of(max_steps=1), tmp_path)
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("architecture", ["resnet8", "vgg5", "sew_resnet10", "digits"])
def test_all_neurons_of_the_networks_are_fused(architecture):
    config = NetworkConfig(
        "channel", architecture=architecture, width=4, timesteps=2, in_channels=3, image_size=16
    )
    network = build(config, seed=0)
    report = rso.fusion_report(rso.fuse(network, torch.zeros(2, 3, 16, 16)))
    neurons = {n for n, m in network.named_modules() if isinstance(m, rso.RealSpikeLIF)}
    assert {name for names in report.fused.values() for name in names} == neurons
    assert all("shortcut" in name for name in report.left)
