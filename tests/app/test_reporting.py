"""What a run says while it trains."""

import csv
import io
import re

import pytest

for package in ("sklearn", "safetensors", "rich", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

from realspike import checkpoint, train
from realspike.config.run_config import RunConfig
from realspike.inspect import trained_file
from realspike.inspect.activity import record_activity
from realspike.train import reporting
from realspike.train.module import learning_rate_factor
from rich.console import Console
from tensorboard.backend.event_processing import event_accumulator

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 2, "timesteps": 1, "epochs": 2},
    **{"batch_size": 300, "device": "cpu", "threads": 1, "granularity": "layer"},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train with a clock that gains 10 s with every look at it; return what was printed."""

    def start(**options):
        console = Console(file=io.StringIO(), width=300, **options)
        seconds = iter(range(0, 10**6, 10))
        original = reporting.Reporting.__init__

        def init(self, *args, **kwargs):
            original(self, *args, clock=lambda: next(seconds), **kwargs)

        monkeypatch.setattr(reporting.Reporting, "__init__", init)
        result = train.start(RunConfig().replaced(**SMALL), tmp_path / "run", console=console)
        return result, console.file.getvalue()

    return start


def test_status_by_hand():
    assert reporting.status(1, 400, 2, 391, 5123.4, 1.23456, 3 * 3600 + 12 * 60 + 5.4) == (
        "epoch 1/400, batch 2/391: 5,123 images/s, loss 1.2346, 3:12:05 left"
    )
    assert reporting.status(2, 2, 1, 1, 0.4, 0.0, 0.0).endswith(
        "0 images/s, loss 0.0000, 0:00:00 left"
    )


def test_the_first_line_says_what_is_trained_on_what(run):
    _, printed = run()
    convolutions, norms, linear, amplitudes = 9 * (2 + 4 + 8), 2 * (2 + 2 + 4), 64 * 10 + 10, 3
    parameters = convolutions + norms + linear + amplitudes
    assert printed.splitlines()[0] == (
        f"digits, real, layer, T = 1, {parameters} parameters, on cpu, 1 thread: 1,347 training "
        "and 450 test samples of digits"
    )


def test_a_line_every_30_seconds_without_a_terminal(run):
    result, printed = run()
    lines = printed.splitlines()[1:]
    # Looks: 0 begins the run, 10 the epoch, 20 ends the first batch, 30 the second, and so on.
    found = [re.match(r"epoch (\d)/2, batch (\d)/5: (\d+) images/s", line) for line in lines]
    assert [match.groups() for match in found if match][:2] == [
        ("1", "2", str(600 // 20)),
        ("1", "5", str(round(1347 / 50))),
    ]
    # After 2 of 10 batches 30 s have passed: 8 are left.
    assert lines[0].endswith("0:02:00 left")
    assert any(re.match(r"epoch \d/2, test batch \d/2", line) for line in lines)
    batches = [match.groups()[:2] for match in found if match]
    assert len(set(batches)) == len(batches)
    assert all(1 <= int(batch) <= 5 for _, batch in batches)
    [loss] = [
        float(re.search(r"loss ([\d.]+)", line)[1]) for line in lines if ", batch 5/5" in line
    ][:1]
    assert loss == pytest.approx(result.records[0]["train_loss"], abs=1e-4)


def test_a_terminal_has_a_bar_that_leaves_nothing(run, monkeypatch):
    from rich import progress

    updates = []
    original = progress.Progress.update

    def update(self, *args, **kwargs):
        updates.append(kwargs)
        return original(self, *args, **kwargs)

    stopped = []
    monkeypatch.setattr(progress.Progress, "update", update)
    stop = progress.Progress.stop
    monkeypatch.setattr(progress.Progress, "stop", lambda self: (stopped.append(1), stop(self)))
    run(force_terminal=True)
    done = [each["completed"] for each in updates if "completed" in each]
    assert done == list(range(1, 11)), "from 1 to the batches of the whole run"
    assert updates[0]["description"].startswith("epoch 1/2, batch 1/5: ")
    assert stopped


def test_the_bar_stops_when_the_run_fails(tmp_path, monkeypatch):
    from realspike.train import module

    console = Console(file=io.StringIO(), force_terminal=True)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(module.SpikingClassifier, "training_step", fail)
    with pytest.raises(ZeroDivisionError):
        train.start(RunConfig().replaced(**SMALL), tmp_path / "run", console=console)
    assert console._live_stack == []


def test_nothing_is_printed_without_a_console(tmp_path, capsys):
    train.start(RunConfig().replaced(**SMALL), tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_steps_and_layers_are_noted(tmp_path):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "epochs": 2},
        **{"batch_size": 256, "log_every": 4, "learning_rate": 0.05, "device": "cpu"},
    )
    out = tmp_path / "run"
    train.start(config, out)
    steps = rows_of(out / "steps.csv")
    # Six steps an epoch: every fourth, and the last of an epoch.
    assert [int(row["step"]) for row in steps] == [4, 6, 8, 12]
    assert [int(row["epoch"]) for row in steps] == [1, 1, 2, 2]
    rates = [0.05 * learning_rate_factor(step, 12, 0) for step in (3, 5, 7, 11)]
    assert [float(row["learning_rate"]) for row in steps] == pytest.approx(rates)
    records = checkpoint.load(out / "model.safetensors").training["history"]
    counts = [4 * 256, 1347 - 4 * 256]
    losses = [float(row["loss"]) for row in steps]
    epoch = sum(loss * count for loss, count in zip(losses[:2], counts, strict=True)) / 1347
    assert epoch == pytest.approx(records[0]["train_loss"])
    seconds = [float(row["seconds"]) for row in steps]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3]
    assert all(float(row["images_per_second"]) > 0 for row in steps)

    layers = rows_of(out / "layers.csv")
    assert [(row["epoch"], row["layer"]) for row in layers] == [
        (str(epoch), f"lif{number}") for epoch in (1, 2) for number in (1, 2, 3)
    ]
    network = trained_file.load(out)
    activity = record_activity(network.network, (inputs for inputs, _ in network.test_batches()))
    for row, layer in zip(layers[3:], activity, strict=True):
        assert float(row["firing_rate"]) == pytest.approx(layer.firing_rate)
        amplitude = network.network.get_submodule(layer.name).amplitude
        for name in ("mean", "min", "max"):
            expected = getattr(amplitude, name)().item()
            assert float(row[f"amplitude_{name}"]) == pytest.approx(expected)

    scalars = event_accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in scalars.Scalars("steps/loss")] == [4, 6, 8, 12]
    assert [event.step for event in scalars.Scalars("firing_rate/lif2")] == [1, 2]
    accuracy = scalars.Scalars("hp/test_accuracy")[-1].value
    assert accuracy == pytest.approx(records[-1]["test_accuracy"])
    session = scalars.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"training.learning_rate" in session


def test_notes_go_on_with_a_run(tmp_path):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "digits", "width": 2, "timesteps": 1, "epochs": 1},
        **{"batch_size": 512, "device": "cpu", "granularity": "none"},
    )
    out = tmp_path / "run"
    train.start(config, out)
    before = rows_of(out / "steps.csv")
    train.resume(out, epochs=2)
    steps, layers = rows_of(out / "steps.csv"), rows_of(out / "layers.csv")
    assert [int(row["step"]) for row in steps] == [3, 6]
    assert steps[0] == before[0]
    assert float(steps[1]["seconds"]) > float(steps[0]["seconds"])
    assert {row["amplitude_mean"] for row in layers} == {""}
    assert len(layers) == 6
