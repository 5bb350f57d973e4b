"""Runs that are killed, stopped, damaged, started twice or diverge, and disks that are full."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "lightning", "tensorboard", "yaml"):
    pytest.importorskip(package)

import numpy as np
from PIL import Image
from realspike import checkpoint, cli, environment, files, train
from realspike.config.run_config import RunConfig
from realspike.train import module, saving, sealed
from realspike.train.history import read_csv

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 512},
    **{"epochs": 2, "learning_rate": 0.05, "device": "cpu"},
}
OVERRIDES = [f"{key}={value}" for key, value in SMALL.items()]
CONFIG = RunConfig().replaced(**SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train.start(CONFIG, out)
    return out


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def one_line(capsys):
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("realspike: ")
    return line


def temporaries(folder):
    return [path.name for path in folder.rglob("*tmp*")]


# Killed


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("before", ["checkpoint.write", "write_csv"])
def test_killed_between_the_checkpoint_and_what_follows_from_it(
    whole, tmp_path, monkeypatch, epoch, before
):
    owner = {"checkpoint.write": checkpoint, "write_csv": saving}[before]
    name = before.rpartition(".")[2]
    original, calls = getattr(owner, name), []

    def kill(*arguments):
        calls.append(arguments)
        if len(calls) == epoch:
            raise Killed
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            train.start(CONFIG, tmp_path)
    resumed = train.resume(tmp_path)
    assert [record["epoch"] for record in resumed.records] == [1, 2]
    for file in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file
    network = checkpoint.load(tmp_path / "model.safetensors").network.state_dict()
    state = sealed.read(tmp_path / "last.ckpt")
    for name, tensor in network.items():
        assert torch.equal(tensor, state["state_dict"][f"network.{name}"])


def test_a_checkpoint_inside_an_epoch_is_no_network(run, monkeypatch):
    shutil.copy(run / "model.safetensors", run / "kept")
    state = sealed.read(run / "last.ckpt")
    state["realspike"]["epoch_ended"] = False
    state["state_dict"]["network.conv1.weight"] += 1
    saving.write_results(run, state)
    assert (run / "model.safetensors").read_bytes() == (run / "kept").read_bytes()


def test_what_a_killed_process_left_does_not_stop_a_run(run, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "0" * (2 * n - 1) + "1")
    left = [".last.ckpt.tmp", f".model.safetensors.{os.getpid()}.tmp", ".0000000000000001.tmp"]
    for name in left:
        (run / name).write_bytes(b"half a file")
    (run / "model.safetensors").unlink()
    assert cli.main(["train", "--resume", str(run)]) == 0
    assert checkpoint.load(run / "model.safetensors").training["history"]
    assert not (run / left[2]).exists()


# Damaged


def test_no_bit_of_a_checkpoint_may_differ(run):
    path = run / "last.ckpt"
    content = path.read_bytes()
    assert torch.load(path, weights_only=True)["realspike"] == sealed.read(path)["realspike"]
    random = np.random.default_rng(0)
    positions = [*range(40), *range(len(content) - 80, len(content))]
    for position in [*positions, *random.integers(0, len(content), 200)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="checksum"):
            sealed.read(path)


@pytest.mark.parametrize("kept", ["model.safetensors", "metrics.csv"])
def test_results_without_their_checkpoint_are_never_replaced(run, kept, capsys):
    names = {"model.safetensors", "metrics.csv", "last.ckpt"}
    for name in names - {kept}:
        (run / name).unlink()
    content = (run / kept).read_bytes()
    for arguments in (["--resume", str(run)], [*OVERRIDES, "--out", str(run)]):
        assert cli.main(["train", *arguments]) == 2
        line = one_line(capsys)
        assert f"{run} holds the {kept} of a run whose last.ckpt is gone" in line
        assert (run / kept).read_bytes() == content
        assert not (run / "last.ckpt").exists()


@pytest.mark.parametrize("damage", ["flipped", "empty", "100 bytes", "shorter", "longer"])
def test_a_damaged_checkpoint_is_named(run, damage, capsys):
    last = run / "last.ckpt"
    content = last.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    last.write_bytes(
        {
            **{"flipped": flipped, "empty": b"", "100 bytes": content[:100]},
            **{"shorter": content[:-1], "longer": content + b"\0"},
        }[damage]
    )
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert f"{last} is truncated, corrupt or no checkpoint of a run" in one_line(capsys)


def without(*path):
    def remove(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return remove


def cut(state):
    state["state_dict"]["network.conv1.weight"] = state["state_dict"]["network.conv1.weight"][:1]


def miscounted(state):
    state["callbacks"]["History"]["records"][0]["epoch"] = 7


@pytest.mark.parametrize(
    "change",
    [
        *(without("callbacks"), without("loops"), without("optimizer_states"), cut, miscounted),
        *(without("realspike", "epoch_ended"), without("callbacks", "History", "records")),
        *(without("state_dict", "network.conv1.weight"), without("lr_schedulers")),
    ],
)
def test_a_checkpoint_of_other_contents_is_named(run, change, capsys):
    """As another version might have written it; its checksum fits."""
    state = sealed.read(run / "last.ckpt")
    change(state)
    sealed.write(run / "last.ckpt", state)
    model = (run / "model.safetensors").read_bytes()
    assert cli.main(["train", "--resume", str(run)]) == 2
    assert f"{run / 'last.ckpt'} is truncated, corrupt or no checkpoint" in one_line(capsys)
    assert (run / "model.safetensors").read_bytes() == model


def test_another_version_is_mentioned(run, capsys):
    state = sealed.read(run / "last.ckpt")
    state["realspike"] |= {"commit": "0123abc", "torch": "1.0"}
    sealed.write(run / "last.ckpt", state)
    assert cli.main(["train", "--resume", str(run)]) == 0
    said = capsys.readouterr().err.splitlines()
    now = environment.versions()
    assert said == [
        f"realspike: note: the run goes on with another commit: {now['commit'] or 'unknown'} "
        "instead of 0123abc",
        f"realspike: note: the run goes on with another torch: {now['torch']} instead of 1.0",
    ]


# Started twice

HOLD = """
import pathlib, sys
from realspike import files
with files.locked(pathlib.Path(sys.argv[1])):
    print(flush=True)
    input()
"""


def test_one_process_at_a_time(run, tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    for folder, arguments in (
        (run, ["--resume", str(run)]),
        (new, [*OVERRIDES, "--out", str(new)]),
    ):
        before = sorted(folder.iterdir())
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            other.stdout.readline()
            assert cli.main(["train", *arguments]) == 2
            assert f"another process trains in {folder}" in one_line(capsys)
            assert sorted({*before, folder / ".lock"}) == sorted(folder.iterdir())
        finally:
            other.kill()  # death lets go of the folder
            other.communicate()
        with files.locked(folder):
            pass


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def replaced(old, new):
        done.append(("replace", str(old)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    sealed.write(tmp_path / "last.ckpt", {"a": 1})
    (_, temporary), *_ = done
    assert done == [("fsync", temporary), ("replace", temporary), ("fsync", str(tmp_path))]
    assert sealed.read(tmp_path / "last.ckpt") == {"a": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


# Signals


@pytest.fixture
def images(tmp_path):
    for part, name in ((p, n) for p in ("train", "val") for n in ("a", "b")):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((20, 20, 3), 12 * number, np.uint8)).save(
                folder / f"{number}.png"
            )
    return [
        *("name=images", f"root={tmp_path / 'images'}", "image_size=16", "classes=2"),
        *("architecture=vgg5", "pooling=average", "width=4", "timesteps=1", "batch_size=2"),
        *("workers=2", "epochs=1", "device=cpu"),
    ]


def in_step(monkeypatch, step, action):
    original = module.SpikingClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == step:
            action()
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.SpikingClassifier, "training_step", training_step)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_loses_no_step(images, tmp_path, monkeypatch, capsys, signum):
    pids = []

    def to_all():
        pids.extend(child.pid for child in multiprocessing.active_children())
        # From outside: a worker treats what its parent sends in another way.
        subprocess.run(["kill", f"-{int(signum)}", *map(str, (*pids, os.getpid()))], check=True)

    with monkeypatch.context() as patch:
        in_step(patch, 2, to_all)
        out = tmp_path / "a run"
        assert cli.main(["train", *images, "--out", str(out)]) == 128 + signum
    assert len(pids) == 2
    assert f"stopped by {signum.name}; `realspike train --resume '{out}'`" in one_line(capsys)
    assert sealed.read(out / "last.ckpt")["global_step"] == 3
    assert cli.main(["train", "--resume", str(out)]) == 0
    assert sealed.read(out / "last.ckpt")["global_step"] == 20
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_dies(images, tmp_path, monkeypatch, capsys):
    def kill_one():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    in_step(monkeypatch, 1, kill_one)
    assert cli.main(["train", *images, "--out", str(tmp_path / "run")]) == 1
    assert "a process that reads data died" in one_line(capsys)
    assert not multiprocessing.active_children()


def test_workers_end_with_a_program_that_forgets_them(images):
    """Its exit would wait for them, and they do not hear SIGTERM."""
    code = (
        "import sys; from realspike import data; from realspike.config import run_config\n"
        "from realspike.data import loader\n"
        "splits = data.load(run_config.read(None, sys.argv[1:]))\n"
        "kept = loader.ResumableLoader(splits.train, 2, 0, workers=2)\n"
        "batches = iter(kept); next(batches); sys.kept = [batches, batches.gi_frame]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *images],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_other_data_are_mentioned_and_other_classes_refused(images, tmp_path, monkeypatch, capsys):
    root, out = tmp_path / "images", str(tmp_path / "run")
    options = [option for option in images if not option.startswith("workers")]
    with monkeypatch.context() as patch:
        in_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert cli.main(["train", *options, "workers=0", "--out", out]) == 143
    (root / "train" / "a" / "3.png").rename(root / "train" / "a" / "x.png")
    capsys.readouterr()
    assert cli.main(["train", "--resume", out]) == 0
    assert "note: the run goes on with other data" in one_line(capsys)
    assert cli.main(["eval", out]) == 0
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / "z")  # what was class 0 is class 1
    capsys.readouterr()
    assert cli.main(["eval", out]) == 2
    assert "has the classes ['b', 'z'], and" in one_line(capsys)


def test_names_that_are_no_text_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--out", "a\udcff"], ["--out", "b", "data.root=a\udcff"]):
        assert cli.main(["train", *OVERRIDES, *arguments]) == 2
        assert "text; got 'a" in one_line(capsys)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(tmp_path, monkeypatch, capsys, signum):
    handler = signal.getsignal(signum)

    def twice():
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)

    in_step(monkeypatch, 1, twice)
    assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path)]) == 128 + signum
    assert one_line(capsys) == "realspike: interrupted"
    assert not (tmp_path / "last.ckpt").exists()
    assert signal.getsignal(signum) == handler


def test_a_finished_run_gives_signals_back(tmp_path):
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path)]) == 0
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_thread_of_a_program_may_train(tmp_path):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(cli.main, ["train", *OVERRIDES, "--out", str(tmp_path)]).result() == 0


# Divergence


@pytest.mark.parametrize("signalled", [False, True])
def test_a_weight_that_is_nan_is_never_saved(run, tmp_path, monkeypatch, capsys, signalled):
    """Silent neurons hide it from the loss."""
    original = module.SpikingClassifier.training_step

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.network.conv1.weight[0, 0, 0, 0] = float("nan")
        if signalled:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(module.SpikingClassifier, "training_step", training_step)
    assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path / "new")]) == 1
    line = one_line(capsys)
    assert "training diverged in epoch 1" in line
    assert "not finite" in line or "the loss is nan" in line
    assert {"last.ckpt", "model.safetensors"}.isdisjoint(os.listdir(tmp_path / "new"))


def test_the_last_good_network_is_kept(whole, tmp_path, monkeypatch, capsys):
    original = module.SpikingClassifier.validation_step

    def validation_step(self, batch, batch_idx):
        out = original(self, batch, batch_idx)
        return {"sums": out["sums"] * (float("inf") if self.current_epoch == 1 else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(module.SpikingClassifier, "validation_step", validation_step)
        assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path)]) == 1
    assert "training diverged in epoch 2: the loss is inf" in one_line(capsys)
    assert len(checkpoint.load(tmp_path / "model.safetensors").training["history"]) == 1
    assert len(read_csv(tmp_path / "metrics.csv")) == 1
    assert train.resume(tmp_path).records[-1]["epoch"] == 2
    assert (tmp_path / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


def test_a_long_epoch_that_diverges_ends_early(tmp_path, monkeypatch):
    steps = []
    original = module.SpikingClassifier.training_step

    def training_step(self, batch, batch_idx):
        steps.append(batch_idx)
        out = original(self, batch, batch_idx)
        if batch_idx == 60:
            out["sums"] = out["sums"] * float("nan")
        return out

    monkeypatch.setattr(module.SpikingClassifier, "training_step", training_step)
    with pytest.raises(train.Diverged, match="epoch 1: the loss is nan"):
        train.start(RunConfig().replaced(**SMALL | {"batch_size": 8}), tmp_path)
    assert steps == list(range(100))


# Want of memory


def python_allocates():
    bytearray(2**60)


def torch_allocates():
    torch.empty(2**50)


@pytest.mark.parametrize("allocate", [python_allocates, torch_allocates])
def test_want_of_memory_is_one_line(tmp_path, monkeypatch, capsys, allocate):
    in_step(monkeypatch, 1, allocate)
    assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path)]) == 1
    line = one_line(capsys)
    assert "there is not enough memory" in line
    assert "data.batch_size" in line
    assert temporaries(tmp_path) == []


def test_other_errors_are_not_taken_for_want_of_memory(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("sizes do not fit")

    in_step(monkeypatch, 1, fail)
    with pytest.raises(RuntimeError, match="sizes do not fit"):
        cli.main(["train", *OVERRIDES, "--out", str(tmp_path)])


# A full disk


def test_a_full_disk_is_named(tmp_path):
    out = tmp_path / "run"
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    done = subprocess.run(
        [
            *(sys.executable, "-c", f"{limit}from realspike import cli; sys.exit(cli.main())"),
            *("train", *OVERRIDES, "--out", str(out)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr == f"realspike: error: {out / 'last.ckpt'}: File too large\n"
    assert temporaries(out) == []
    assert not (out / "last.ckpt").exists()


def test_logs_that_find_the_disk_full(tmp_path, monkeypatch, capsys):
    from tensorboard.summary.writer.record_writer import RecordWriter

    original, written = RecordWriter.write, []

    def write(self, content):
        written.append(content)
        if len(written) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, content)

    monkeypatch.setattr(RecordWriter, "write", write)
    assert cli.main(["train", *OVERRIDES, "--out", str(tmp_path)]) == 1
    assert f"{tmp_path / 'tensorboard'}: No space left on device" in one_line(capsys)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_file_takes_the_place_of_files_alone(tmp_path, kind):
    path = tmp_path / "a"
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = path.stat()
    with pytest.raises(OSError, match="it is no regular file") as raised:
        files.write_atomically(path, b"x")
    assert raised.value.filename == str(path)
    assert path.stat() == before
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_of_a_file_that_cannot_be_written_is_left(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as raised:
            files.write_atomically(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(path)
    assert os.listdir(tmp_path) == ["a"]
    assert path.read_bytes() == b"before"
