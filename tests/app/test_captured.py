"""Captured steps, recorded and replayed, make the same run; no step waits for the device."""

import csv
import io
import itertools
from contextlib import nullcontext

import pytest
import torch

for package in ("sklearn", "safetensors", "lightning", "tensorboard", "yaml", "rich"):
    pytest.importorskip(package)

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from no_sync import Synchronised, no_reads, no_sync
from realspike import train
from realspike.config.run_config import RunConfig
from realspike.data.preprocess import DRAWS
from realspike.errors import RunFailed
from realspike.networks import build
from realspike.train import captured, module, placement, reporting, statistics
from realspike.train.captured import WARM_UP, Captured
from realspike.train.readback import Readback
from rich.console import Console
from tape import Tape
from torch import Tensor

from realspike_ops.nn.neurons import batch_norm_call

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 32},
    **{"epochs": 2, "learning_rate": 0.05, "crop": 1, "flip": True, "cutout": 2, "threads": 1},
    **{"fraction": 0.25, "device": "cpu"},
}
STEPS = 11  # of an epoch: ten of 32 samples, one of 17


def run(out, console=None, **changes):
    result = train.start(RunConfig().replaced(**(SMALL | changes)), out, console=console)
    return torch.load(out / "last.ckpt", weights_only=True), result


@pytest.fixture
def taped(monkeypatch):
    """Runs are captured, by a tape."""
    tapes = []

    def capture(kept=placement.placement):
        def placed(config):
            found = kept(config)
            return placement.Placement(found.trainer, found.channels_last, captures=True)

        monkeypatch.setattr("realspike.train.fitting.placement", placed)
        monkeypatch.setattr(module, "CudaGraphs", lambda: tapes.append(Tape()) or tapes[-1])
        return tapes

    return capture


VARIANTS = {
    "plain": {},
    "accumulation": {"accumulate": 3},
    "average": {"ema": 0.9, "momentum": 0.0},
    "clipped": {"clip_gradient": 0.1, "granularity": "element"},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "accumulate": 2, "clip_gradient": 1.0},
    "warm-up and restarts": {"warmup_epochs": 0.5, "restarts": "1"},
    "mixed": {"precision": "bf16-mixed"},
    "channels_last": {"channels_last": True, "width": 8},
    "adam beside": {"amplitude_optimizer": "adam", "granularity": "channel"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_captured_run_is_the_run(tmp_path, monkeypatch, taped, variant):
    """Beside the same steps without a recording, to the bit; every rate, batch and average."""
    tapes = taped()
    # While something is recorded operator by operator, norms and neurons are layers of their own.
    settings = {"fuse": False} | VARIANTS[variant]
    state, result = run(tmp_path / "taped", **settings)
    [tape] = tapes
    assert tape.replayed > 2 * WARM_UP
    assert tape.ran + tape.replayed == 2 * STEPS
    assert tape.recorded == {"accumulation": 3, "adamw": 2}.get(variant, 1)
    monkeypatch.setattr(captured, "WARM_UP", 10**6)
    expected, other = run(tmp_path / "run", **settings)
    assert tapes[1].replayed == 0
    assert result.records == other.records
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(state["state_dict"][name], tensor), name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("is_captured_first", [True, False])
def test_runs_resume_into_each_other(tmp_path, monkeypatch, taped, is_captured_first, optimizer):
    """A run that was captured goes on step by step, and the other way round."""
    settings = {"optimizer": optimizer, "learning_rate": 0.01, "restarts": "1"}
    if is_captured_first:
        taped()
    expected, whole = run(tmp_path / "whole", **settings)
    run(tmp_path / "resumed", **(settings | {"epochs": 1, "restarts": ""}))
    monkeypatch.undo()
    if not is_captured_first:
        taped()
    result = train.resume(tmp_path / "resumed", epochs=2)
    for record, there in zip(result.records, whole.records, strict=True):
        assert record["train_loss"] == pytest.approx(there["train_loss"], rel=0.01)
    state = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)
    for name, tensor in expected["state_dict"].items():
        assert torch.allclose(state["state_dict"][name], tensor, atol=0.02), name
    [group, *_] = state["optimizer_states"][0]["param_groups"]
    assert group["fused"] == (None if is_captured_first else True)


def test_numbers_of_python_are_as_they_were_recorded():
    """What the tape is for: a graph has the rate of the step that was recorded."""
    rate = {"now": 1.0}
    weight = torch.zeros(())

    def step(x):
        weight.add_(x * rate["now"])
        return weight.clone()

    repeated = Captured(step, Tape(), "cpu")
    seen = [repeated(torch.tensor(1.0)).item() for _ in range(WARM_UP + 1)]
    rate["now"] = 100.0
    seen += [repeated(torch.tensor(2.0)).item()]
    assert seen == [1.0, 2.0, 3.0, 4.0, 6.0]


def test_calls_of_each_kind_are_recorded_by_themselves():
    tape = Tape()
    double = Captured(lambda x, sign: sign * 2 * x, tape, "cpu")
    shapes, signs = [(2,), (3,)], [1, -1]
    for n, (shape, sign) in itertools.product(range(5), itertools.product(shapes, signs)):
        x = torch.full(shape, float(n))
        assert torch.equal(double(x, sign=sign), sign * 2 * x)
    assert (tape.ran, tape.recorded, tape.replayed) == (4 * WARM_UP, 4, 4 * 2)


def test_the_result_of_a_replay_is_kept_when_the_next_one_runs():
    double = Captured(lambda x: 2 * x, Tape(), "cpu")
    results = [double(torch.tensor(float(n))) for n in range(6)]
    assert [result.item() for result in results] == [0, 2, 4, 6, 8, 10]


def test_a_step_that_reads_values_cannot_be_captured():
    step = Captured(lambda x: x * torch.tensor(2.0), Tape(), "cpu")
    for _ in range(WARM_UP):
        step(torch.ones(2))
    with pytest.raises(RunFailed, match=r"cannot be captured.*training\.cuda_graph=false"):
        step(torch.ones(2))


# No step waits


STEPPED = {
    "digits": {},
    "resnet20": {"architecture": "resnet20"},
    "resnet19": {"architecture": "resnet19", "timesteps": 1},
    "vgg": {"architecture": "vgg5"},
    "sew-resnet": {"architecture": "sew_resnet10", "granularity": "channel"},
    "frames": {"name": "digits-events"},
    "adamw": {"optimizer": "adamw"},
    "accumulated, clipped, averaged": {"accumulate": 2, "clip_gradient": 0.5, "ema": 0.9},
    "mixed, channels last": {"precision": "bf16-mixed", "channels_last": True},
    "adam beside": {"amplitude_optimizer": "adam"},
}


# Adam by itself counts its steps on the host, where it reads them.
@pytest.mark.parametrize("case", [case for case in STEPPED if not case.startswith("adam")])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, case):
    """From the next batch to what callbacks note: augmentation, optimizer, schedule, average."""
    advance, steps = _TrainingEpochLoop.advance, []

    def watched(self, data_fetcher):
        with no_sync() if steps else nullcontext():  # the first begins to read the epoch's data
            advance(self, data_fetcher)
        steps.append(self.global_step)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", watched)
    changes = {"granularity": "element", "width": 4, "batch_size": 40, "fraction": 0.2}
    changes |= {"epochs": 1, "log_every": 2}
    console = Console(file=io.StringIO(), force_terminal=True)
    monkeypatch.setitem(reporting._EVERY, True, 0.0)  # a bar that shows every loss
    shown, status = [], reporting.status
    monkeypatch.setattr(reporting, "status", lambda *what: shown.append(what) or status(*what))
    _, result = run(tmp_path / "run", console=console, **(changes | STEPPED[case]))
    assert len(steps) == 7
    assert shown
    assert steps[-1] == (4 if "accumulate" in STEPPED[case] else 7)
    assert result.records[0]["train_loss"] > 0


@pytest.mark.parametrize("case", STEPPED)
def test_no_step_reads_a_tensor_where_no_mode_watches(tmp_path, monkeypatch, taped, case):
    """The kernels' own ways, which modes lead past: fused norms, launches without a dispatcher."""
    taped()
    monkeypatch.setattr(captured, "WARM_UP", 10**6)
    advance, steps, fused = _TrainingEpochLoop.advance, [], []

    def watched(self, data_fetcher):
        with no_reads() if steps else nullcontext():
            advance(self, data_fetcher)
        steps.append(self.global_step)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", watched)
    normed = batch_norm_call.normed_lif
    monkeypatch.setattr(
        batch_norm_call,
        "normed_lif",
        lambda *args, **form: fused.append(1) or normed(*args, **form),
    )
    changes = {"granularity": "element", "width": 4, "batch_size": 40, "fraction": 0.2}
    run(tmp_path / "run", **(changes | {"epochs": 1, "log_every": 2} | STEPPED[case]))
    assert len(steps) == 7
    assert fused


@pytest.mark.parametrize("case", STEPPED)
def test_a_captured_run_waits_for_nothing(device, tmp_path, monkeypatch, taped, case):
    """And is the run step by step, as far as fused optimizers round alike."""
    settings = {"granularity": "element", "width": 4, "batch_size": 40, "fraction": 0.3}
    settings |= {"device": device.type, "epochs": 1, "log_every": 2, "precision": "32-true"}
    settings |= STEPPED[case]
    state, expected = run(tmp_path / "steps", **settings, cuda_graph=False)
    if device.type == "cpu":
        taped()
    advance, steps = _TrainingEpochLoop.advance, []

    def watched(self, data_fetcher):
        # On a card capturing waits by itself: until every kind of step is known, but the last.
        is_watched = steps and (device.type == "cpu" or len(steps) > 2 * WARM_UP + 1)
        with no_sync(device.type) if is_watched else nullcontext():
            advance(self, data_fetcher)
        steps.append(self.global_step)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", watched)
    captured_state, found = run(tmp_path / "captured", **settings)
    assert len(steps) == 11
    assert captured_state["global_step"] == state["global_step"]
    assert captured_state["loops"] == state["loops"]
    [record], [there] = found.records, expected.records
    assert record["train_loss"] == pytest.approx(there["train_loss"], rel=0.05)
    assert record["learning_rate"] == there["learning_rate"]


@pytest.mark.parametrize("architecture", ["resnet20", "resnet19", "vgg5", "sew_resnet10"])
def test_a_step_is_on_the_device_of_its_batch_alone(architecture):
    """On one whose tensors have no values: nothing is made elsewhere, sent there, or read."""
    settings = {"name": "cifar10", "width": 4, "timesteps": 2, "granularity": "channel"}
    settings |= {"architecture": architecture, "autoaugment": True, "crop": 4, "cutout": 16}
    config = RunConfig().replaced(**settings, flip=True)
    network, statistics = build(config.network_config(), seed=0), ([0.5] * 3, [0.25] * 3)
    placed = placement.Placement({}, channels_last=True)
    classifier = module.SpikingClassifier(config, network, *statistics, 4, placed).to("meta")
    samples = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.empty(8, dtype=torch.int64, device="meta")
    draws = torch.empty(8, DRAWS, device="meta")
    loss, sums = classifier._loss(samples, labels, draws)
    loss.backward()
    assert (loss.device.type, sums.device.type) == ("meta", "meta")
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_losses_that_arrive_late_are_noted_all_the_same(tmp_path, monkeypatch):
    class Late(Readback):
        """Arrives when it is asked for the third time, or waited for."""

        asked = 0

        def has_arrived(self):
            self.asked += 1
            return self.asked > 2

    noted = []
    for name, kind in (("now", Readback), ("late", Late)):
        monkeypatch.setattr(statistics, "Readback", kind)
        run(tmp_path / name, log_every=2)
        with open(tmp_path / name / "steps.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        noted.append([(r["step"], r["epoch"], r["loss"], r["learning_rate"]) for r in rows])
    assert noted[0] == noted[1]
    assert [int(step) for step, *_ in noted[0]] == [2, 4, 6, 8, 10, 11, 12, 14, 16, 18, 20, 22]


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.numpy(),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.where(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x.long().bincount(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.index_put((x > 0,), torch.tensor(1.0)),
    ],
)
def test_what_would_wait_is_refused(read):
    x = torch.tensor([1.0, 0.0, 2.0])
    with no_sync():
        y = torch.where(x > 0, x, 0).index_select(0, torch.tensor([1]))
        assert y.shape == (1,)
        arrived = Readback(x)
        assert arrived.read().tolist() == [1.0, 0.0, 2.0]
        with pytest.raises(Synchronised):
            read(x)
    read(x)


def test_reads_are_refused_without_a_mode():
    x = torch.tensor([1.0, 0.0, 2.0])
    with no_reads():
        assert Readback(x).read().tolist() == [1.0, 0.0, 2.0]
        for read in (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.nonzero, torch.nonzero):
            with pytest.raises(Synchronised):
                read(x)
        for read in (bool, float, int, Tensor.item):
            with pytest.raises(Synchronised):
                read(x[0])
    assert float(x[0]) == 1
