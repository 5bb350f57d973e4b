"""Where bench/fine_tuning.py begins, and what it changes of a run's configuration."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

for package in ("sklearn", "safetensors", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import fine_tuning

sys.path.remove(str(BENCH))
from realspike import checkpoint, train
from realspike.config.run_config import RunConfig

SMALL = {"name": "digits", "architecture": "digits", "width": 2, "timesteps": 1}
SMALL |= {"granularity": "element", "fraction": 0.1, "device": "cpu", "threads": 1}


def test_a_run_is_trained_further_from_its_own_weights(tmp_path, one_thread):
    first, run = tmp_path / "first", tmp_path / "run"
    train.start(RunConfig().replaced(epochs=1, **SMALL), first)
    train.start(
        RunConfig().replaced(
            **{"epochs": 4, "restarts": "2", "start_from": str(first)},
            **{"learning_rate": 0.1, "amplitude_optimizer": "adam", "amplitude_rate": 0.01},
            **SMALL,
        ),
        run,
    )
    arguments = argparse.Namespace(root=None, runs=[run], more=2, learning_rate=1e-9)
    start = fine_tuning.of_run(run, arguments)
    config = start.settings["config"].training
    assert (config.start_from, config.max_steps, config.restarts) == (None, None, "")
    assert config.amplitude_rate == pytest.approx(1e-10)
    before = {k: v.clone() for k, v in start.network.state_dict().items()}
    result = fine_tuning.train_further(start, arguments)
    assert result["run"] == "run"
    assert result["folded"] == pytest.approx(result["trained"], abs=0.01)
    # At a rate of nearly nothing the weights stay those of the run.
    trained = checkpoint.load(run / "model.safetensors").network.state_dict()
    for name, value in start.network.state_dict().items():
        assert torch.equal(before[name], trained[name])
        if name.endswith("weight"):
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    text = fine_tuning.table([result], start.what, arguments)
    assert "--runs run --more 2 --learning-rate 1e-09" in text
    assert f"| run | {100 * result['trained']:.2f} |" in text
