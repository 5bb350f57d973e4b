"""Training: the same seed gives the same run, also when it was stopped or killed on the way."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

from realspike import checkpoint, cli, train
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import RunConfig
from realspike.inspect import classify, trained_file
from realspike.networks import build
from realspike.train import module
from realspike.train.history import read_csv
from realspike.train.optimizer import sgd
from torch import nn

import realspike_ops as rso

TESTS = Path(__file__).parents[1]
SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 128},
    **{"epochs": 2, "learning_rate": 0.05, "crop": 1, "device": "cpu"},
}
STEPS = 11  # batches of an epoch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(**changes):
    return RunConfig().replaced(**(SMALL | changes))


def weights(out):
    return torch.load(out / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(out, other):
    assert (out / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    expected = weights(other)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, expected[name]), name
    expected = checkpoint.load(other / "model.safetensors").network.state_dict()
    for name, tensor in checkpoint.load(out / "model.safetensors").network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    return out, train.start(config_of(), out)


def signal_in_step(monkeypatch, step, signum):
    """Send a signal to this process in the middle of a step."""
    original = module.SpikingClassifier.training_step
    sent = []

    def training_step(self, batch, batch_idx):
        if batch_idx + STEPS * self.current_epoch == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), signum)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.SpikingClassifier, "training_step", training_step)
    return sent


# What a run leaves behind


def test_a_run_writes_its_files(whole):
    out, result = whole
    assert result.stopped_by == 0
    names = {path.name for path in out.iterdir()}
    written = {"config.yaml", "metrics.csv", "last.ckpt", "model.safetensors", "tensorboard"}
    assert names == written | {".lock", "steps.csv", "layers.csv"}
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert read_csv(out / "metrics.csv") == result.records
    assert [record["epoch"] for record in result.records] == [1, 2]
    assert result.records[-1]["train_loss"] < result.records[0]["train_loss"]
    with open(out / "metrics.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 3


def test_the_checkpoint_holds_configuration_and_commit(whole):
    out, _ = whole
    stored = torch.load(out / "last.ckpt", weights_only=True)["realspike"]
    assert RunConfig.from_dict(stored["config"]) == config_of()
    record = checkpoint.load(out / "model.safetensors").training
    assert RunConfig.from_dict(record["config"]) == config_of()
    assert record["commit"] == stored["commit"]
    head = subprocess.run(
        ["git", "-C", str(TESTS), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if head.returncode == 0:
        assert record["commit"].rstrip("+") == head.stdout.strip()


def test_the_saved_network_classifies_as_the_last_epoch_says(whole):
    out, result = whole
    loaded = trained_file.load(out)
    evaluated = classify.evaluate(loaded.network, loaded.test_batches())
    assert evaluated["samples"] == 450
    assert evaluated["accuracy"] == result.records[-1]["test_accuracy"]
    # Lightning's loss is a sum of float32 means.
    assert evaluated["loss"] == pytest.approx(result.records[-1]["test_loss"], rel=1e-5)


def test_history_counts_every_sample_once(whole):
    for record in whole[1].records:
        assert record["train_accuracy"] * 1347 == pytest.approx(
            round(record["train_accuracy"] * 1347), abs=1e-6
        )
        assert (record["test_accuracy"] * 450) % 1 == pytest.approx(0, abs=1e-6)


# The same run


def test_same_seed_same_run_and_another_seed_another(whole, tmp_path):
    torch.manual_seed(123)  # the global state must not matter
    train.start(config_of(), tmp_path / "again")
    assert_same_run(tmp_path / "again", whole[0])
    other = train.start(config_of(seed=1), tmp_path / "other")
    assert other.records != whole[1].records


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [3, STEPS - 1, STEPS + 2])
def test_a_stopped_run_continues_exactly(whole, tmp_path, monkeypatch, step, signum):
    sent = signal_in_step(monkeypatch, step, signum)
    handler = signal.getsignal(signum)
    stopped = train.start(config_of(), tmp_path)
    assert sent == [step]
    assert stopped.stopped_by == signum
    assert signal.getsignal(signum) == handler
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == step + 1
    resumed = train.resume(tmp_path)
    assert resumed.stopped_by == 0
    assert resumed.records == whole[1].records
    assert_same_run(tmp_path, whole[0])


def test_compressed_spikes_give_the_same_run(whole, tmp_path, monkeypatch):
    entered = []
    original = module.compress_spikes
    monkeypatch.setattr(module, "compress_spikes", lambda: entered.append(1) or original())
    result = train.start(config_of(compress_spikes=True), tmp_path)
    assert len(entered) == 2 * STEPS
    assert result.records == whole[1].records


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 2, "clip_gradient": 1.0},
        {"ema": 0.9},
        {"precision": "bf16-mixed", "warmup_epochs": 0.5},
        {"name": "digits-events", "cutout": 3, "flip": True},
    ],
)
def test_variants_continue_exactly(tmp_path, monkeypatch, changes):
    config = config_of(**changes)
    expected = train.start(config, tmp_path / "whole")
    signal_in_step(monkeypatch, 4, signal.SIGTERM)
    stopped = train.start(config, tmp_path / "stopped")
    assert stopped.stopped_by == signal.SIGTERM
    assert train.resume(tmp_path / "stopped").records == expected.records
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    plain = train.start(config_of(), tmp_path / "plain").records
    assert expected.records != plain
    assert all(math.isfinite(value) for record in expected.records for value in record.values())


def test_the_average_of_the_weights_is_what_is_saved_and_evaluated(tmp_path):
    result = train.start(config_of(ema=0.95), tmp_path)
    loaded = trained_file.load(tmp_path)
    evaluated = classify.evaluate(loaded.network, loaded.test_batches())
    assert evaluated["accuracy"] == result.records[-1]["test_accuracy"]
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    current = state["current_model_state"]["network.conv1.weight"]
    assert not torch.equal(current, loaded.network.conv1.weight)


def python(*arguments, **options):
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=False,
        **options,
    )


KILLED = """
import os, signal, sys
from realspike import cli
from realspike.train import module
original = module.SpikingClassifier.training_step
def training_step(self, batch, batch_idx):
    if self.global_step == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, batch_idx)
module.SpikingClassifier.training_step = training_step
cli.main(sys.argv[1:])
"""


def test_a_killed_run_continues_from_its_last_epoch(whole, tmp_path):
    out = tmp_path / "run"
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    killed = python("-c", KILLED, "train", "--out", out, *overrides)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [record["epoch"] for record in read_csv(out / "metrics.csv")] == [1]
    assert "epoch   1" in killed.stdout
    assert "epoch   2" not in killed.stdout
    resumed = python("-m", "realspike", "train", "--resume", out)
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch   2" in resumed.stdout
    assert "epoch   1" not in resumed.stdout
    assert resumed.stderr == ""
    assert_same_run(out, whole[0])


def test_two_processes_train_stop_and_continue_together(tmp_path):
    config = json.dumps(SMALL | {"batch_size": 64})
    done = python(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
        *(TESTS / "support" / "train_in_two_processes.py", tmp_path, config, 4),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"result{rank}.json").read_text()) for rank in (0, 1)]
    for result in results:
        assert result["stopped_by"] == signal.SIGTERM
        assert result["stopped_at"] == 5
        assert result["whole"] == results[0]["whole"]
        assert result["resumed"] == result["whole"]
        assert result["same_weights"]
    loaded = trained_file.load(tmp_path / "whole")
    evaluated = classify.evaluate(loaded.network, loaded.test_batches())
    assert evaluated["accuracy"] == results[0]["whole"][-1]["test_accuracy"]


def test_training_learns(tmp_path):
    config = config_of(width=8, epochs=5, batch_size=32)
    result = train.start(config, tmp_path)
    assert result.records[-1]["test_accuracy"] > 0.8
    network = trained_file.load(tmp_path).network
    assert network.lif1.amplitude.std() > 1e-4


# Its parts


def test_learning_rate():
    def factors(steps, warmup):
        return [module.learning_rate_factor(step, steps, warmup) for step in range(steps)]

    assert factors(4, 0) == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2])
    assert factors(6, 2)[:3] == pytest.approx([0.5, 1, 1])
    assert factors(6, 2)[4] == pytest.approx(0.5)
    assert module.learning_rate_factor(6, 6, 2) == pytest.approx(0)


def test_weight_decay_is_for_weights_alone():
    network = build(NetworkConfig("element", architecture="resnet8", width=4), seed=0)
    optimizer = sgd(network, lr=0.1, weight_decay=0.5)
    decayed, others = (group["params"] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]
    kinds = (nn.Conv2d, nn.Linear)
    weights = [m.weight for m in network.modules() if isinstance(m, kinds)]
    assert {id(p) for p in decayed} == {id(w) for w in weights}
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in others} == {"weight", "bias", "amplitude"}
    assert len(decayed) + len(others) == len(names)


@pytest.mark.parametrize("name", ["resnet8", "vgg5", "sew_resnet10", "digits"])
@pytest.mark.parametrize("granularity", ["none", "layer", "channel", "element"])
def test_the_rate_of_an_amplitude_falls_with_its_neurons(name, granularity):
    network = build(NetworkConfig(granularity, architecture=name, width=4, image_size=8), seed=0)
    neurons = {}
    for lif in (m for m in network.modules() if isinstance(m, rso.RealSpikeLIF)):
        lif.register_forward_hook(lambda lif, _, out: neurons.update({lif: out[0].numel()}))
    network(torch.zeros(2, 1, 8, 8))
    optimizer = sgd(network, lr=0.1, weight_decay=0.5, scale_amplitudes=True)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    amplitudes = {
        lif.amplitude: count for lif, count in neurons.items() if lif.granularity != "none"
    }
    for parameter, rate in rates.items():
        shared_by = amplitudes.get(parameter, parameter.numel()) / parameter.numel()
        assert rate == pytest.approx(0.1 / shared_by**0.5)


def test_the_whole_run_reaches_the_last_learning_rate(whole):
    rates = [record["learning_rate"] for record in whole[1].records]
    assert rates[0] == pytest.approx(0.05 * module.learning_rate_factor(10, 22, 0))
    assert rates[1] == pytest.approx(0.05 * module.learning_rate_factor(21, 22, 0))


def test_augmentation_differs_from_step_to_step(tmp_path, monkeypatch):
    seeds = []
    original = module.SpikingClassifier._augmentation_seed

    def record(self, batch_idx):
        seeds.append(original(self, batch_idx))
        return seeds[-1]

    monkeypatch.setattr(module.SpikingClassifier, "_augmentation_seed", record)
    train.start(config_of(), tmp_path)
    assert len(set(seeds)) == len(seeds) == 2 * STEPS


@pytest.fixture
def copy_of_whole(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "copy")


def test_a_run_goes_on_as_it_was_configured(copy_of_whole, capsys):
    path = copy_of_whole / "config.yaml"
    path.write_text(path.read_text().replace("width: 4", "width: 8"))
    assert cli.main(["train", "--resume", str(copy_of_whole)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path} was changed since last.ckpt was written" in line


# The command


def test_train_prints_and_refuses_to_overwrite(tmp_path, capsys):
    overrides = [f"{key}={value}" for key, value in (SMALL | {"epochs": 1}).items()]
    assert cli.main(["train", "--out", str(tmp_path / "run"), *overrides]) == 0
    printed = capsys.readouterr().out
    assert "epoch   1: training loss" in printed
    assert str(tmp_path / "run") in printed
    assert "<img" in (tmp_path / "run" / "report.html").read_text()
    assert cli.main(["train", "--out", str(tmp_path / "run"), *overrides]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "holds a run: --resume continues it" in line


def test_a_stopped_command_says_how_to_continue(tmp_path, monkeypatch, capsys):
    overrides = [f"{key}={value}" for key, value in SMALL.items()]
    signal_in_step(monkeypatch, 3, signal.SIGINT)
    assert cli.main(["train", "--out", str(tmp_path), *overrides]) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert "stopped by SIGINT" in line
    assert f"realspike train --resume {tmp_path}" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--resume", "absent"], "there is no run in absent"),
        (["--resume", "absent", "seed=3"], "no other arguments"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["epoch=3"], "did you mean 'epochs'"),
        (["network.time=3"], "unknown key 'network.time'"),
        (["granularity=elment"], "did you mean 'element'"),
        (["timesteps=0"], "at least 1"),
        (["timesteps=two"], "must be an integer"),
        (["learning_rate=-1"], "at least 0"),
        (["learning_rate=.nan"], "training.learning_rate must be finite"),
        (["learning_rate=1e400"], "training.learning_rate must be finite"),
        (["lr=0.1"], "unknown key 'lr' (did you mean 'learning_rate'?)"),
        (["qqqqqq=1"], "`realspike train --help` lists them"),
        (["network=3"], "network is a section: give a key of it, such as network.architecture"),
        (["width=513"], "network.width must be at least 1 and at most 512"),
        (["ema=1"], "ema must be below 1"),
        (["architecture=vgg16", "zero_init_residual=true"], "needs a residual network; vgg16"),
        (["--out", "file/run"], "cannot write to file/run: Not a directory"),
        (["warmup_epochs=400"], "below training.epochs"),
        (["name=digits", "autoaugment=true"], "needs colour images"),
        (["name=cifar10", "image_size=16"], "cannot be chosen for cifar10"),
        (["architecture=resnet20", "pooling=max"], "pooling of resnet20"),
        (["epochs"], "key=value"),
        (["name=cifar10", "root=absent"], "cs.toronto.edu"),
        (["name=digits", "device=cuda"], "no CUDA device"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert cli.main(["train", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("network: {timestep: 4}", "'timestep' (did you mean 'timesteps'?)"),
        ("netwrk: {}", "did you mean 'network'"),
        ("network: 3", "must be a section"),
        ("- 1", "must hold sections"),
        ("network: {", "no YAML"),
    ],
)
def test_bad_configuration_files(text, reason, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(text)
    assert cli.main(["train", "--config", str(tmp_path / "a.yaml")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


def test_bad_configurations_load_neither_torch_nor_data():
    code = (
        "import sys; from realspike import cli; code = cli.main(['train', 'epoch=1']); "
        "print(code, 'torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    assert python("-c", code).stdout.split() == ["2", "False", "False"]


def test_print_config_is_a_configuration(tmp_path, capsys):
    assert cli.main(["train", "--print-config", "epochs=3", "learning_rate=1e-2"]) == 0
    (tmp_path / "a.yaml").write_text(capsys.readouterr().out)
    assert cli.main(["train", "--print-config", "--config", str(tmp_path / "a.yaml")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "a.yaml").read_text()
    assert "epochs: 3\n" in printed
    assert "learning_rate: 0.01\n" in printed


def test_help_names_every_key(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["train", "--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    for section, values in RunConfig().to_dict().items():
        for name in values:
            assert f"{section}.{name}=" in printed
