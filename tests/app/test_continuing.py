"""Runs that go on to more epochs, end after some steps, begin with weights, or see a share."""

import itertools
import json
import re
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
from realspike.config import run_config
from realspike.config.run_config import ConfigError, RunConfig
from realspike.data.sets import DataError, Files, InMemory, Splits
from realspike.networks import NetworkConfig, build
from realspike.train import module, sealed
from realspike.train.history import read_csv
from stopping import stopping_in
from torch.utils.data import Dataset

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    **{"name": "digits", "architecture": "digits", "width": 4, "timesteps": 2, "batch_size": 512},
    **{"epochs": 2, "learning_rate": 0.05, "device": "cpu"},
}
STEPS = 3  # of an epoch


def config_of(**changes):
    return RunConfig().replaced(**(SMALL | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    train.start(config_of(), out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def error_of(capsys, *arguments):
    assert cli.main(["train", *map(str, arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def digest_of(run):
    return checkpoint.digest(checkpoint.load(run / "model.safetensors").network)


# More epochs


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A run that was configured from its start to what the others become."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("longer") / "run"
    return out, train.start(config_of(epochs=4, restarts="2"), out)


def test_a_finished_run_goes_on_to_more_epochs(run, longer, capsys):
    assert cli.main(["train", "--resume", str(run), "epochs=4"]) == 0
    assert "epoch   4" in capsys.readouterr().out
    out, result = longer
    for file in ("metrics.csv", "config.yaml", "model.safetensors"):
        assert (run / file).read_bytes() == (out / file).read_bytes(), file
    # The cosine of two epochs is as it was, and another one begins at the highest rate.
    rates = [0.05 * module.learning_rate_factor(step, 6, 0) for step in (2, 5)] * 2
    assert [record["learning_rate"] for record in result.records] == pytest.approx(rates)


def test_a_stopped_run_goes_on_to_more_epochs(tmp_path, longer, monkeypatch):
    with stopping_in(monkeypatch, step=1):
        assert train.start(config_of(), tmp_path / "run").stopped_by == signal.SIGTERM
    for _ in range(2):  # the same command again goes on too
        train.resume(tmp_path / "run", epochs=4)
    for file in ("metrics.csv", "config.yaml", "model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (longer[0] / file).read_bytes(), file


def test_a_run_goes_on_where_its_data_were_moved_to(tmp_path, monkeypatch, capsys):
    """By the command line as by its file, with other processes that read them: the same weights."""
    image = pytest.importorskip("PIL.Image")
    here, moved = tmp_path / "here", tmp_path / "moved"
    for part, name, size in itertools.product(("train", "val"), "ab", (9, 10, 12, 16)):
        (here / part / name).mkdir(parents=True, exist_ok=True)
        side = size if name == "a" else 2 * size
        image.linear_gradient("L").resize((size, side)).save(here / part / name / f"{size}.png")
    images = {"name": "images", "image_size": 8, "batch_size": 4, "root": str(here), "workers": 1}
    train.start(config_of(**images), tmp_path / "whole")
    with stopping_in(monkeypatch, step=1):
        train.start(config_of(**images), tmp_path / "run")
    here.rename(moved)
    by_file = shutil.copytree(tmp_path / "run", tmp_path / "by_file")
    assert str(here) in error_of(capsys, "--resume", tmp_path / "run")
    places = f"data.root={moved}", "workers=0"
    assert cli.main(["train", "--resume", str(tmp_path / "run"), *places]) == 0
    config = run_config.read(by_file / "config.yaml")
    (by_file / "config.yaml").write_text(config.replaced(root=str(moved)).to_yaml())
    assert cli.main(["train", "--resume", str(by_file)]) == 0
    assert "note:" not in capsys.readouterr().err
    for run in (tmp_path / "run", by_file):
        assert run_config.read(run / "config.yaml").data.folder == moved
        assert digest_of(run) == digest_of(tmp_path / "whole")
        assert read_csv(run / "metrics.csv") == read_csv(tmp_path / "whole" / "metrics.csv")
    # Also a finished run, to more epochs.
    assert cli.main(["train", "--resume", str(tmp_path / "run"), *places, "epochs=3"]) == 0
    assert run_config.read(tmp_path / "run" / "config.yaml").training.restarts == "2"


def test_a_run_is_extended_more_than_once():
    config = config_of().extended(5).extended(9)
    assert config.training.epochs == 9
    assert config.training.restart_epochs() == (2, 5)
    assert config.extended(9) == config
    steps = [module.learning_rate_factor(step, 9, 0, (2, 5)) for step in range(9)]
    assert steps == pytest.approx([1, 0.5, 1, 0.75, 0.25, *(1, 0.85355339, 0.5, 0.14644661)])


@pytest.mark.parametrize(
    "config", [{"epochs": 5, "restarts": "2"}, {"epochs": 5, "warmup_epochs": 2}]
)
def test_fewer_epochs_are_named_whatever_else_the_run_has(tmp_path, capsys, config):
    """Not its restarts or its warm-up, which nobody gave on this line."""
    (tmp_path / "config.yaml").write_text(config_of(**config).to_yaml())
    assert "not to 1 (it was begun with 5" in error_of(capsys, "--resume", tmp_path, "epochs=1")
    assert "must be an integer" in error_of(capsys, "--resume", tmp_path, "epochs=x")


def test_what_a_run_cannot_go_on_to(run, capsys):
    before = (run / "config.yaml").read_bytes()
    assert "not to 1 (it was begun with 2" in error_of(capsys, "--resume", run, "epochs=1")
    assert "no other arguments" in error_of(capsys, "--resume", run, "learning_rate=1")
    assert "no other arguments" in error_of(capsys, "--resume", run, "epochs=3", "--from", run)
    assert (run / "config.yaml").read_bytes() == before
    with pytest.raises(ConfigError, match="max_steps=4 ends it"):
        config_of(max_steps=4).extended(3)
    for restarts in ("2", "0", "1,1", "a", "-1", "1,,1"):
        with pytest.raises(ConfigError, match="restarts must be rising epochs"):
            config_of(restarts=restarts)
    with pytest.raises(ConfigError, match="cannot be given together"):
        config_of(restarts="1", max_steps=3)


# Steps


def test_a_run_ends_after_its_steps_and_is_tested(tmp_path, capsys):
    result = train.start(config_of(epochs=5, max_steps=16, batch_size=128), tmp_path / "run")
    assert [record["epoch"] for record in result.records] == [1, 2]
    # The cosine ends with the steps.
    last = 0.05 * module.learning_rate_factor(15, 16, 0)
    assert result.records[-1]["learning_rate"] == pytest.approx(last)
    assert sealed.read(tmp_path / "run" / "last.ckpt")["global_step"] == 16
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    # Of the weights at the end, and not of the epoch before.
    loss = json.loads(capsys.readouterr().out)["loss"]
    assert loss == pytest.approx(result.records[-1]["test_loss"], rel=1e-5)
    assert loss != pytest.approx(result.records[0]["test_loss"], rel=1e-3)
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("m*")}
    assert len(train.resume(tmp_path / "run").records) == 2
    assert files == {path: path.read_bytes() for path in files}


@pytest.mark.parametrize("step", [1, STEPS - 1])
def test_a_run_of_steps_that_was_stopped_is_the_run(tmp_path, monkeypatch, step):
    """In the middle of an epoch, and at its end, which a checkpoint after every epoch is too."""
    config = config_of(epochs=9, max_steps=STEPS + 2)
    whole = train.start(config, tmp_path / "whole")
    with stopping_in(monkeypatch, step):
        assert train.start(config, tmp_path / "run").stopped_by == signal.SIGTERM
    assert train.resume(tmp_path / "run").records == whole.records
    for file in ("metrics.csv", "model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_steps_beyond_the_epochs_change_nothing(tmp_path, finished):
    train.start(config_of(max_steps=2 * STEPS), tmp_path / "run")
    train.start(config_of(max_steps=100), tmp_path / "other")
    for name in ("run", "other"):
        assert read_csv(tmp_path / name / "metrics.csv") == read_csv(finished / "metrics.csv")


# A share of the data


def test_a_share_has_as_much_of_every_class():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 2)
    samples = torch.arange(62.0)[:, None]
    whole = Splits(InMemory(samples, labels), InMemory(samples, labels), (0,), (1,))
    share = whole.share(0.25, seed=3)
    assert share.train.labels.bincount().tolist() == [10, 5, 1]
    assert torch.equal(labels[share.train.samples[:, 0].long()], share.train.labels)
    assert share.test is whole.test
    larger = set(whole.share(0.5, seed=3).train.samples[:, 0].tolist())
    assert set(share.train.samples[:, 0].tolist()) < larger
    again, other = whole.share(0.25, seed=3), whole.share(0.25, seed=4)
    assert torch.equal(again.train.samples, share.train.samples)
    assert not torch.equal(other.train.samples, share.train.samples)
    assert whole.share(1.0, seed=3) is whole
    assert share.digest() != whole.digest()


def test_a_share_of_files_and_of_what_nobody_knows(tmp_path):
    class Images(Files):
        classes = ("a", "b")
        files = tuple((Path(f"x/{number}"), number % 2) for number in range(8))

    class Unknown(Dataset):
        classes, epoch = ("a",), 0

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return index, self.epoch

    part = Splits(Images(), Images(), (0,), (1,)).share(0.5, seed=0).train
    assert sorted(label for _, label in part.files) == [0, 0, 1, 1]
    assert len(Images.files) == 8
    part = Splits(Unknown(), Unknown(), (0,), (1,)).share(0.3, seed=0).train
    part.epoch = 5
    assert len(part) == 3
    assert part.classes == ("a",)
    found = [part[index] for index in range(3)]
    assert found == sorted(set(found))
    assert {epoch for _, epoch in found} == {5}


def test_a_run_of_a_share_is_trained_on_it(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    overrides = [f"{key}={value}" for key, value in (SMALL | {"epochs": 1}).items()]
    assert cli.main(["train", *overrides, "fraction=0.1", "--out", str(out)]) == 0
    assert "136 training and 450 test samples" in capsys.readouterr().out
    train.resume(out, on_note=lambda note: pytest.fail(note), epochs=2)
    for value in (0, 1.5, -1):
        with pytest.raises(ConfigError, match=r"data\.fraction must be above 0 and at most 1"):
            config_of(fraction=value)


# A part that is held out


def test_what_is_held_out_has_as_much_of_every_class():
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 4)
    samples = torch.arange(64.0)[:, None]
    whole = Splits(InMemory(samples, labels), InMemory(samples[:3], labels[:3]), (0,), (1,))
    parted = whole.hold_out(16)
    assert parted.test.labels.bincount().tolist() == [10, 5, 1]
    assert parted.train.labels.bincount().tolist() == [30, 15, 3]
    seen = torch.cat([parted.train.samples, parted.test.samples]).flatten()
    assert seen.sort().values.tolist() == list(range(64))
    for part in (parted.train, parted.test):
        assert torch.equal(labels[part.samples[:, 0].long()], part.labels)
    assert parted.test.samples.flatten().tolist() != list(range(16))
    # Shares of any seed leave it alone, and one that is larger holds it.
    assert parted.share(0.5, seed=1).test is parted.test
    larger = set(whole.hold_out(17).test.samples.flatten().tolist())
    assert set(parted.test.samples.flatten().tolist()) < larger
    assert whole.hold_out(0) is whole
    assert len(whole.hold_out(63).train) == 1
    with pytest.raises(DataError, match=r"data\.held_out must be below 64, all there is; got 64"):
        whole.hold_out(64)


def test_files_that_are_held_out_are_read_as_the_tests():
    class Images(Files):
        def __init__(self, training, count):
            self.training = training
            self.files = [(Path(f"x/{number}"), number % 2) for number in range(count)]

    whole = Splits(Images(True, 8), Images(False, 4), (0,), (1,))
    parted = whole.hold_out(4)
    assert (parted.train.training, parted.test.training) == (True, False)
    assert sorted(label for _, label in parted.test.files) == [0, 0, 1, 1]
    assert sorted(parted.train.files + parted.test.files) == sorted(whole.train.files)
    assert len(whole.test.files) == 4

    class Unknown(Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            return index

    parted = Splits(Unknown(), Unknown(), (0,), (1,)).hold_out(3)
    found = [[part[i] for i in range(len(part))] for part in (parted.train, parted.test)]
    assert [len(each) for each in found] == [7, 3]
    assert sorted([*found[0], *found[1]]) == list(range(10))


def test_a_run_is_measured_on_what_is_held_out(tmp_path, capsys):
    out = tmp_path / "run"
    overrides = [f"{key}={value}" for key, value in (SMALL | {"epochs": 1}).items()]
    held = ["held_out=300", "fraction=0.5"]
    assert cli.main(["train", *overrides, *held, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "523 training and 300 held-out samples" in printed
    assert "accuracy on 300 training samples that are held out" in printed
    report = (out / "report.html").read_text()
    assert "accuracy on 300 training samples that are held out <b>" in report
    assert "on 256 held-out samples [bits]" in report
    assert "On the held-out data after every epoch" in report
    assert not re.search(r"\btest (data|sample)", report)
    assert cli.main(["eval", str(out)]) == 0
    assert "of 300 held-out samples of digits right" in capsys.readouterr().out
    [record] = train.resume(out, on_note=lambda note: pytest.fail(note)).records
    found = {}
    for changes in ([], ["held_out=0"]):
        assert cli.main(["eval", str(out), "--json", *changes]) == 0
        found[len(changes)] = json.loads(capsys.readouterr().out)
    assert found[0]["loss"] == pytest.approx(record["test_loss"], rel=1e-5)
    assert [found[n]["samples"] for n in (0, 1)] == [300, 450]


def test_more_than_there_is_is_held_out_of_nothing(tmp_path, capsys):
    said = error_of(capsys, "name=digits", "held_out=1347", "--out", tmp_path / "run")
    assert "data.held_out must be below 1347" in said
    network = build(config_of().network_config(), seed=0)
    pair = (torch.zeros(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(DataError, match="must be below 4"):
        train.fit(network, (pair, pair), tmp_path / "run", held_out=4, device="cpu")
    assert not (tmp_path / "run").exists()


def test_processes_without_a_sample_to_test_on_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = error_of(capsys, "name=digits", "held_out=2", "device=cpu", "--out", tmp_path / "run")
    assert "3 processes cannot test on 2 held-out samples" in said
    assert not (tmp_path / "run").exists()


# Weights to begin with


def test_a_run_begins_with_the_weights_of_another(finished, tmp_path, capsys):
    out = tmp_path / "run"
    changes = SMALL | {"learning_rate": 0, "weight_decay": 0}
    overrides = [f"{key}={value}" for key, value in changes.items()]
    assert cli.main(["train", "--from", str(finished), *overrides, "--out", str(out)]) == 0
    kept = checkpoint.load(finished / "model.safetensors").network.state_dict()
    found = checkpoint.load(out / "model.safetensors").network.state_dict()
    for name, tensor in found.items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(tensor, kept[name]), name
    assert run_config.read(out / "config.yaml").training.start_from == str(finished.absolute())
    assert "no " in error_of(capsys, "--from", tmp_path / "none")


def test_a_binary_network_is_one_whose_amplitudes_are_1(tmp_path):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    binary = build(NetworkConfig("none", width=4), seed=1).eval()
    checkpoint.save(tmp_path / "binary", binary, {})
    real = build(NetworkConfig("element", width=4), seed=2).eval()
    checkpoint.begin_with(tmp_path / "binary", real)
    assert torch.equal(real(images), binary(images))
    checkpoint.save(tmp_path / "real", real, {})
    with pytest.raises(checkpoint.CheckpointError, match=r"unknown tensor 'lif1\.amplitude'"):
        checkpoint.begin_with(tmp_path / "real", binary)
    other = build(NetworkConfig("element", width=6), seed=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(
        checkpoint.CheckpointError, match=r"'conv1\.weight' must have shape \[6, 1, 3, 3\]"
    ):
        checkpoint.begin_with(tmp_path / "real", other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_weights_that_do_not_fit_leave_no_folder(finished, tmp_path, capsys):
    overrides = [f"{key}={value}" for key, value in (SMALL | {"width": 5}).items()]
    said = error_of(capsys, "--from", finished, *overrides, "--out", tmp_path / "run")
    assert "cannot begin with the weights in" in said
    assert "must have shape" in said
    assert not (tmp_path / "run").exists()


# Shipped configurations


def test_a_shipped_configuration_is_found_by_its_name(capsys):
    names = run_config.shipped()
    assert len(names) == 30
    command = ["train", "--config", "cifar10_resnet20_t2_none", "--print-config", "epochs=3"]
    assert cli.main(command) == 0
    assert "granularity: none" in capsys.readouterr().out
    said = error_of(capsys, "--config", "cifar10_resnet20_t2_nome")
    assert "did you mean 'cifar10_resnet20_t2_none'" in said
    assert cli.main(["train", "--configs"]) == 0
    assert capsys.readouterr().out.split() == list(names)


def test_a_file_of_the_name_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("cifar10_resnet20_t2_none")
    name.write_text("training: {epochs: 7}")
    assert run_config.find(name) == name
    assert run_config.find(Path("other.yaml")) == Path("other.yaml")


def test_what_is_installed_has_the_configurations(tmp_path):
    root = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    code = "import realspike; from realspike.config import run_config as r; "
    code += "print(realspike.__file__, len(r.shipped()), r.shipped()['cifar10_resnet20_t2_none'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    package = tmp_path / "realspike"
    configs = package / "configs" / "cifar10_resnet20_t2_none.yaml"
    assert done.stdout.split() == [str(package / "__init__.py"), "30", str(configs)]
