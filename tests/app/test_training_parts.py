"""The parts of a run alone, by hand: divergence, sums, the schedule, checkpoints, the folder."""

import csv
import errno
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

for package in ("safetensors", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from realspike import files
from realspike.config.run_config import RunConfig
from realspike.errors import RunError
from realspike.random_numbers import numbers_from
from realspike.records import RecordError
from realspike.train import divergence, folder, module, reporting, run, sealed
from realspike.train.average import Average
from realspike.train.divergence import Diverged, DivergenceCheck
from realspike.train.history import History, read_csv, write_csv
from realspike.train.placement import Placement
from realspike.train.statistics import Statistics
from torch import nn


def trainer_of(rate=0.5, epoch=3, processes=1):
    """A trainer whose other processes have the sums of this one."""
    return SimpleNamespace(
        strategy=SimpleNamespace(reduce=lambda x, reduce_op: x * processes),
        world_size=processes,
        current_epoch=epoch,
        is_global_zero=True,
        logger=None,
        optimizers=[SimpleNamespace(param_groups=[{"lr": rate}, {"lr": 9.0}])],
    )


def module_of(**weights):
    network = nn.Module()
    for name, weight in weights.items():
        network.register_buffer(name, torch.tensor(weight))
    return SimpleNamespace(network=network, device=torch.device("cpu"))


def sums(loss, correct=0, count=1):
    return {"sums": torch.tensor([loss, correct, count], dtype=torch.float64)}


# Divergence


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("validating", [False, True])
def test_a_loss_that_is_not_finite_ends_the_run(loss, validating):
    """Whatever the losses before and behind it."""
    trainer, of, check = trainer_of(), module_of(weight=1.0), DivergenceCheck()
    end = check.on_validation_batch_end if validating else check.on_train_batch_end
    for n, value in enumerate((2.0, 3.0, loss, 4.0)):
        end(trainer, of, sums(value), None, n)
    with pytest.raises(Diverged, match=f"in epoch 4: the loss is {loss}"):
        check.check(trainer, of)
    with pytest.raises(Diverged):
        check.on_train_epoch_end(trainer, of)


def test_losses_that_are_finite_end_nothing():
    trainer, of, check = trainer_of(), module_of(weight=1.0), DivergenceCheck()
    for n in range(120):
        check.on_train_batch_end(trainer, of, sums(0.0 if n % 2 else 1e30), None, n)
        check.on_validation_batch_end(trainer, of, sums(-1e30), None, n)
    check.on_train_epoch_end(trainer, of)


def test_the_loss_is_looked_at_every_fifty_batches():
    trainer, of, check = trainer_of(), module_of(weight=1.0), DivergenceCheck()
    seen = []
    for n in range(200):
        try:
            check.on_train_batch_end(trainer, of, sums(math.nan), None, n)
        except Diverged:
            seen.append(n)
    assert seen == [49, 99, 149, 199]
    assert divergence.INTERVAL == 50


class Late:
    """Values that are there when they are asked for the third time."""

    def __init__(self, tensor):
        self.values, self.asked = tensor.clone(), 0

    def has_arrived(self):
        self.asked += 1
        return self.asked > 2

    def read(self):
        return self.values


@pytest.mark.parametrize(("processes", "expected"), [(1, [51, 101, 151]), (2, [49, 99, 149, 199])])
def test_a_loss_is_looked_at_when_it_has_arrived(monkeypatch, processes, expected):
    """Processes that would leave at different batches wait for it instead."""
    monkeypatch.setattr(divergence, "Readback", Late)
    trainer, of, check = trainer_of(processes=processes), module_of(weight=1.0), DivergenceCheck()
    seen = []
    for n in range(200):
        try:
            check.on_train_batch_end(trainer, of, sums(math.nan), None, n)
        except Diverged:
            seen.append(n)
    assert seen == expected
    with pytest.raises(Diverged):  # before a checkpoint it is waited for
        check.check(trainer, of)


def test_a_weight_that_is_not_finite_is_named():
    check = DivergenceCheck()
    check.check(trainer_of(), module_of(a=1.0, b=[1, 2]))
    for number in (math.nan, math.inf):
        with pytest.raises(Diverged, match="in epoch 4: b has values that are not finite"):
            check.check(trainer_of(), module_of(a=1.0, b=[0.0, number, 1.0]))


# Records


def test_a_record_by_hand():
    """Loss 12 of 4 samples, 2 of them right, then 8 and 3; the same on another process."""
    said = []
    history = History(said.append)
    for epoch in (0, 1):
        trainer = trainer_of(rate=0.25 / (epoch + 1), epoch=epoch, processes=2)
        of = module_of()
        history.on_train_start(trainer, of)
        for n, batch in enumerate((sums(12.0, 2, 4), sums(8.0, 3, 4))):
            history.on_train_batch_start(trainer, of, None, n)
            history.on_train_batch_end(trainer, of, batch, None, n)
            assert history.running_loss().read().item() == (12 / 4, 20 / 8)[n]
        history.on_validation_epoch_start(trainer, of)
        history.on_validation_batch_end(trainer, of, sums(5.0 + 8 * epoch, 1, 2), None, 0)
        history.on_validation_batch_end(trainer, of, sums(1.0, 1 + epoch, 2), None, 1)
        history.on_train_epoch_end(trainer, of)
    record = {"train_loss": 2.5, "train_accuracy": 5 / 8}
    first, second = (
        {"test_loss": 1.5, "test_accuracy": 0.5},
        {"test_loss": 3.5, "test_accuracy": 0.75},
    )
    assert said == [
        {"epoch": 1, **record, **first, "learning_rate": 0.25},
        {"epoch": 2, **record, **second, "learning_rate": 0.125},
    ]
    assert history.records == said


def test_a_record_in_the_middle_of_an_epoch_travels_on():
    history = History()
    trainer, of = trainer_of(processes=2), module_of()
    history.on_train_batch_end(trainer, of, sums(6.0, 2, 4), None, 0)
    history.gather(trainer)
    state = history.state_dict()
    assert state["train"].tolist() == [12, 4, 8]
    later = History()
    later.load_state_dict(state)
    later.on_train_batch_end(trainer, of, sums(20.0, 2, 8), None, 1)
    assert later.running_loss().read().item() == 2.0


def notes_of(state=None, device="cpu"):
    """Notes of every third step, that see a second pass with every look at the clock."""
    trainer = trainer_of()
    trainer.is_last_batch = False
    seconds = iter(range(100))
    notes = Statistics(RunConfig().replaced(log_every=3), History(), lambda: next(seconds))
    if state is not None:
        notes.load_state_dict(state)
    notes.on_train_start(trainer, SimpleNamespace(device=torch.device(device)))
    return notes, trainer


def test_notes_of_a_run_that_was_stopped_are_those_of_one_that_was_not():
    notes, trainer = notes_of()
    for step, count in enumerate((4, 4, 2)):
        if step == 2:  # of the three of a note
            notes.gather(trainer)
            notes, trainer = notes_of(notes.state_dict())
        trainer.global_step = step
        notes.on_train_batch_start(trainer, None, None, step)
        trainer.global_step = step + 1
        notes.on_train_batch_end(trainer, None, sums(6.0, 0, count), None, step)
    [row] = notes.steps
    assert row["loss"] == (6 + 6 + 6) / (4 + 4 + 2)
    assert row["seconds"] == 2  # one until it was stopped, one after it went on
    assert row["images_per_second"] == 10 / 2


def test_sums_of_a_stopped_run_go_where_it_computes():
    """An epoch that goes on does not begin: nothing else moves them."""
    notes, _ = notes_of(notes_of()[0].state_dict(), device="meta")
    history = History()
    history.load_state_dict(History().state_dict())
    history.on_train_start(None, SimpleNamespace(device=torch.device("meta")))
    assert notes._sums.is_meta
    assert history._train.is_meta


def test_records_in_a_file(tmp_path):
    record = {
        **{"epoch": 1, "train_loss": 1.5, "train_accuracy": 0.25, "test_loss": 2.0},
        **{"test_accuracy": 0.5, "learning_rate": 0.1},
    }
    path = tmp_path / "metrics.csv"
    write_csv(path, [record, record | {"epoch": 2}])
    assert read_csv(path) == [record, record | {"epoch": 2}]
    assert b"\r" not in path.read_bytes()
    with open(path, newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]
    write_csv(path, [])
    with pytest.raises(RecordError, match="it has no epochs"):
        read_csv(path)


# What a run says


def reporting_of(**settings):
    lines = []
    console = SimpleNamespace(is_terminal=False, print=lambda text, soft_wrap: lines.append(text))
    config = RunConfig().replaced(name="digits", architecture="digits", **settings)
    return reporting.Reporting(console, config, History(), (1200, 34), clock=lambda: 0.0), lines


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"epochs": 3}, 30),
        ({"epochs": 3, "max_steps": 7}, 7),
        ({"epochs": 3, "max_steps": 7, "accumulate": 2}, 14),
        ({"epochs": 3, "max_steps": 16, "accumulate": 2}, 30),
        ({"epochs": 3, "accumulate": 2}, 30),
    ],
)
def test_the_batches_of_a_run(settings, total):
    """10 of an epoch; a step may be of several."""
    made, _ = reporting_of(**settings)
    assert made._total(SimpleNamespace(num_training_batches=10)) == total


@pytest.mark.parametrize(
    ("threads", "processes", "where"),
    [
        (1, 1, "1 thread: "),
        (2, 1, "2 threads: "),
        (2, 2, "2 threads in 2 processes: "),
    ],
)
def test_where_a_run_is(monkeypatch, threads, processes, where):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    made, lines = reporting_of()
    of = SimpleNamespace(network=nn.Linear(3, 2), device=torch.device("cpu"))
    made.on_train_start(SimpleNamespace(world_size=processes), of)
    [line] = lines
    assert f", 8 parameters, on cpu, {where}1,200 training and 34 test samples of digits" in line


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_steps": 7}, "training.max_steps=7 of 8 steps"),
        ({"max_steps": 8}, "training.max_steps=8 of 8 steps"),
        ({"max_steps": 9}, None),
        ({}, None),
        ({"max_steps": 1, "warmup_epochs": 0.0}, None),
    ],
)
def test_a_run_that_ends_in_its_warm_up_says_so(settings, said):
    """Of 2 epochs of 4 steps."""
    made, lines = reporting_of(**{"warmup_epochs": 2.0} | settings)
    of = module.SpikingClassifier(made.config, nn.Linear(3, 2), [0.5], [0.25], 4, Placement({}))
    made.on_train_start(SimpleNamespace(world_size=1), of)
    assert len(lines) == (2 if said else 1)
    assert said is None or (said in lines[1] and lines[1].startswith("note: "))


# The schedule


def test_the_learning_rate_by_hand():
    """Two steps up, then half a cosine over four steps; anew at step 4 of 8."""

    def factors(steps, *rest):
        return [round(module.learning_rate_factor(step, steps, *rest), 6) for step in range(steps)]

    near, far = (2 + math.sqrt(2)) / 4, (2 - math.sqrt(2)) / 4
    assert factors(6, 2) == [0.5, 1, 1, round(near, 6), 0.5, round(far, 6)]
    assert factors(4, 0) == [1, round(near, 6), 0.5, round(far, 6)]
    one = [1, round(near, 6), 0.5, round(far, 6)]
    assert factors(8, 0, [4]) == one * 2
    assert factors(10, 2, [6]) == [0.5, 1, *one, *one]
    assert factors(1, 1) == [1]
    assert module.learning_rate_factor(4, 4, 4) == 1  # behind the last step of a rise alone
    assert module.learning_rate_factor(4, 4, 0) == 0
    assert module.learning_rate_factor(1, 1, 0) == 0  # behind a cosine of one step


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        # Steps of 4 per epoch; cosines over 8, 4, and 8 behind a rise of 4; anew after an epoch.
        ({"epochs": 2}, {0: 1, 4: 0.5, 8: 0}),
        ({"epochs": 2, "max_steps": 4}, {0: 1, 2: 0.5, 4: 0}),
        ({"epochs": 2, "max_steps": 9}, {0: 1, 4: 0.5, 8: 0}),
        ({"epochs": 4, "restarts": "2,3"}, {0: 1, 4: 0.5, 8: 1, 10: 0.5, 12: 1, 14: 0.5, 16: 0}),
        ({"epochs": 3, "warmup_epochs": 1}, {0: 0.25, 3: 1, 4: 1, 8: 0.5, 12: 0}),
        ({"epochs": 3, "warmup_epochs": 0.5}, {0: 0.5, 1: 1, 2: 1, 7: 0.5, 12: 0}),
    ],
)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_optimizer_of_a_run(settings, factors, kind):
    config = RunConfig().replaced(
        **{"name": "digits", "architecture": "digits", "learning_rate": 0.5, "momentum": 0.75},
        **{"weight_decay": 0.25, "optimizer": kind.__name__.lower()},
        **settings,
    )
    classifier = module.SpikingClassifier(config, nn.Linear(2, 2), [0.5], [0.25], 4, Placement({}))
    made = classifier.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    assert type(optimizer) is kind
    assert schedule["interval"] == "step"
    assert optimizer.defaults.get("momentum", optimizer.defaults.get("betas")) in (
        *(0.75, (0.75, 0.999)),
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0]
    factor = schedule["scheduler"].lr_lambdas[0]
    assert {step: factor(step) for step in factors} == pytest.approx(factors)
    assert schedule["scheduler"].base_lrs == [0.5, 0.5]


def test_the_sums_of_a_batch_by_hand():
    """The mean loss 2.5 of three samples, the second of them wrong."""
    logits = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 5.0]])
    got = module._sums(torch.tensor(2.5), logits, torch.tensor([1, 1, 1]))
    assert got.tolist() == [7.5, 2, 3]
    assert got.dtype == torch.float64


def test_every_batch_of_every_process_is_augmented_anew():
    def seed_of(seed=1, epoch=2, batch=3, rank=4):
        config = SimpleNamespace(training=SimpleNamespace(seed=seed))
        of = SimpleNamespace(config=config, current_epoch=epoch, global_rank=rank)
        return module.SpikingClassifier._augmentation_seed(of, batch)

    drawn = [seed_of(), seed_of(seed=2), seed_of(epoch=3), seed_of(batch=4), seed_of(rank=0)]
    assert drawn[0] == seed_of()
    assert len({*drawn, seed_of(1, 3, 2, 4), seed_of(rank=5)}) == 7


def test_random_numbers_of_a_place_leave_those_behind_it_alone():
    def drawn():
        return torch.rand(()).item(), random.random(), np.random.rand()

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = drawn()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    with numbers_from(0, 2):
        first = drawn()
    assert drawn() == expected
    with numbers_from(0, 2):
        assert drawn() == first
    with numbers_from(2, 0):
        assert not set(drawn()) & {*first, *expected}


# Checkpoints


def test_a_sealed_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    sealed.write(path, {"x": torch.arange(3), "n": 4})
    content = path.read_bytes()
    state = sealed.read(path)
    assert state["n"] == 4
    assert state["x"].tolist() == [0, 1, 2]
    assert torch.load(path, weights_only=True)["n"] == 4  # torch passes over the seal
    for place in (0, len(content) // 2, -41, -33, -32, -1):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            sealed.read(path)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="checksum"):
        sealed.read(path)


# The folder of a run


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (OSError("no number"), "no number"),
        (BlockingIOError(errno.EAGAIN, "held"), "another process trains in .*: wait for it or end"),
    ],
)
def test_a_folder_that_cannot_be_locked(tmp_path, monkeypatch, error, reason):
    def locked(folder):
        raise error

    monkeypatch.setattr(files, "locked", locked)
    with pytest.raises(RunError, match=reason) as raised, folder.alone_in(tmp_path):
        raise AssertionError("the folder was entered")
    assert str(tmp_path) in str(raised.value)
    monkeypatch.setenv("RANK", "1")  # which leaves the folder to the first process
    with folder.alone_in(tmp_path):
        pass


@pytest.mark.parametrize(("reason", "code"), [("No space left", errno.ENOSPC), ("odd", None)])
def test_a_folder_that_cannot_be_made(tmp_path, monkeypatch, reason, code):
    def make(path):
        raise OSError(code, reason) if code else OSError(reason)

    monkeypatch.setattr(files, "make_writable_folder", make)
    with pytest.raises(RunError, match=f"cannot write to .*out: {reason}"):
        run.start(RunConfig().replaced(name="digits", architecture="digits"), tmp_path / "out")


@pytest.mark.parametrize("name", ["last.ckpt", "model.safetensors", "metrics.csv"])
def test_a_folder_with_a_run_is_not_free(tmp_path, name):
    folder.check_free(tmp_path)
    (tmp_path / name).touch()
    with pytest.raises(RunError, match="--out chooses another folder") as raised:
        folder.check_free(tmp_path)
    assert ("--resume continues it" in str(raised.value)) == (name == "last.ckpt")
    assert name in str(raised.value) or name == "last.ckpt"
    with pytest.raises(RunError, match="a name that is text"):
        folder.check_free(tmp_path / "\udcff")


# The average of the weights


def test_the_average_is_lightnings_to_the_bit():
    networks = [LightningModule(), LightningModule()]
    for network in networks:
        network.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    kinds = Average(decay=0.9), EMAWeightAveraging(decay=0.9)
    for network, callback in zip(networks, kinds, strict=True):
        callback.setup(None, network, "fit")
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 6):
        for tensors in zip(*(n.state_dict().values() for n in networks), strict=True):
            drawn = torch.rand(tensors[0].shape, generator=generator) * 10
            for tensor in tensors:
                tensor.copy_(drawn)
        for network, callback in zip(networks, kinds, strict=True):
            for _ in range(2):  # the second batch of a step changes nothing
                callback.on_train_batch_end(SimpleNamespace(global_step=step), network, *3 * [0])
        ours, theirs = (callback._average_model.state_dict() for callback in kinds)
        for name, tensor in theirs.items():
            if "num_batches" in name:  # which Lightning averages
                tensor = networks[0].layers[1].num_batches_tracked
            assert torch.equal(ours[name], tensor), (name, step)


def test_whole_numbers_are_not_averaged():
    network = LightningModule()
    network.weight = nn.Parameter(torch.ones(1))
    network.phase = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    network.register_buffer("index", torch.arange(100))
    callback = Average(decay=0.75)
    callback.setup(None, network, "fit")
    for step in range(1, 4):
        callback.on_train_batch_end(SimpleNamespace(global_step=step), network, *3 * [0])
        network.phase.data.fill_(1j)
    average = callback._average_model.module
    assert torch.equal(average.index, torch.arange(100))
    assert average.phase.item() == 0.5625 + 0.4375j
