"""Trained networks that come with the package: by name, with a card."""

import json
import shutil

import pytest
import torch

for package in ("sklearn", "safetensors", "lightning", "tensorboard", "yaml", "rich"):
    pytest.importorskip(package)

import realspike
from realspike import checkpoint, cli, files, shipped, train
from realspike.checkpoint import CheckpointError
from realspike.config.run_config import RunConfig
from realspike.inspect import trained_file
from realspike.quickstart import report
from realspike.quickstart.folding import fold_shipped

import realspike_ops as rso

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"name": "digits", "architecture": "digits", "width": 2, "timesteps": 1, "epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("shipped") / "run"
    config = RunConfig().replaced(device="cpu", root=str(out.parent / "secret"), **SMALL)
    train.start(config, out)
    return out


@pytest.fixture
def tiny(run, tmp_path, monkeypatch):
    """A network called tiny, as if it came with the package."""
    path = shipped.write(run, "tiny", tmp_path)
    monkeypatch.setattr(trained_file, "networks_by_name", lambda: {"tiny": path})
    monkeypatch.chdir(tmp_path)
    return path


def test_a_shipped_network_is_used_by_its_name(run, tiny, capsys):
    found = {}
    for name in ("tiny", str(run)):
        assert cli.main(["eval", name, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["tiny"].pop("checkpoint") == str(tiny)
    assert found["tiny"].items() <= found[str(run)].items()
    assert cli.main(["fold", "tiny", "-o", "folded.safetensors"]) == 0
    assert cli.main(["profile", "tiny", "--samples", "8"]) == 0
    capsys.readouterr()
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    by_name, by_folder = realspike.load("tiny"), realspike.load(run)
    assert not by_name.training
    assert torch.equal(by_name(images), by_folder(images))
    assert torch.equal(by_name(images), realspike.load(str(tiny))(images))


def test_quickstart_folds_it(tiny, tmp_path):
    [found] = fold_shipped(tmp_path)
    network = realspike.load("tiny")
    folded = rso.reparameterize(network, torch.zeros(1, 1, 8, 8))
    for key, each in (("parameters", network), ("parameters_folded", folded)):
        assert found[key] == sum(parameter.numel() for parameter in each.parameters())
    assert found["parameters_folded"] > found["parameters"]
    assert found["agreement"] == 1.0
    assert (tmp_path / found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert report.of_shipped(found).startswith("tiny, trained before: 0.00 M parameters fold into")


def test_its_card_says_what_it_is(run, tiny):
    text = tiny.with_suffix(".md").read_text()
    network = realspike.load("tiny")
    record = checkpoint.load(tiny).training
    last = record["history"][-1]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    for said in (
        "# tiny",
        f"digits of width 2, element amplitudes, T = 1, {parameters:,} parameters",
        "1 x 8 x 8",
        "10 logits",
        "1,797 handwritten digits",
        f"test accuracy of the last: {100 * last['test_accuracy']:.2f} %",
        f"Commit: {record['commit'] or 'unknown'}",
        checkpoint.digest(checkpoint.load(run / "model.safetensors").network),
        "`training.epochs=1`",
        "`realspike eval tiny`",
    ):
        assert said in text, said
    # Where somebody's data lay is in neither file.
    assert "secret" in (run / "config.yaml").read_text()
    assert "secret" not in text
    assert b"secret" not in tiny.read_bytes()


def test_a_file_or_folder_of_the_name_is_taken_first(run, tiny):
    shutil.copytree(run, "tiny")
    assert trained_file.file_of(files.path_of("tiny")).parts[0] == "tiny"


def test_names_that_nothing_has(tiny, tmp_path, capsys):
    assert cli.main(["eval", "tine"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "neither a file tine nor a trained network" in line
    assert "did you mean 'tiny'" in line
    with pytest.raises(CheckpointError, match=r"shipped: tiny"):
        realspike.load("other")
    # What can only be a path is told as one.
    for path in ("tine.safetensors", tmp_path / "other"):
        with pytest.raises(CheckpointError, match="no such file"):
            realspike.load(path)


def test_large_networks_are_not_shipped(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "LARGEST", (run / "model.safetensors").stat().st_size - 1)
    with pytest.raises(CheckpointError, match="is not shipped"):
        shipped.write(run, "large", tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_every_network_that_is_shipped_has_a_card_and_can_be_loaded():
    known = trained_file.networks_by_name()
    folder = next(path for path in files.shipped("weights", ".md").values()).parent
    assert {path.stem for path in folder.glob("*.md")} - {"README"} == set(known)
    for name, path in known.items():
        assert path.stat().st_size <= shipped.LARGEST
        assert checkpoint.digest(realspike.load(name)) in path.with_suffix(".md").read_text()


def test_a_report_of_one_is_written_into_runs(tiny, run, tmp_path, capsys):
    """The package may belong to somebody else, and holds several of them."""
    before = sorted(tmp_path.iterdir())
    for network in ("tiny", str(run)):
        assert cli.main(["plot", network, "data.name=absent:data"]) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert not (run / "plots").exists()  # nor is a folder left where the data are missing
    assert cli.main(["plot", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("Files: runs/tiny/report.html")
    assert (tmp_path / "runs" / "tiny" / "plots" / "accuracy.png").exists()
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "runs"])


def test_a_run_begins_with_one(tiny, capsys):
    assert cli.main(["train", "--from", "tiny", "--print-config"]) == 0
    assert f"start_from: {tiny}\n" in capsys.readouterr().out
    assert cli.main(["train", "--from", "tyni"]) == 2
    assert "no file, run or network tyni (did you mean 'tiny'?)" in capsys.readouterr().err


def test_the_configuration_of_a_run_is_printed(run, capsys):
    assert cli.main(["train", "--resume", str(run), "epochs=3", "--print-config"]) == 0
    said = capsys.readouterr().out
    assert "epochs: 3" in said
    assert "restarts: '1'" in said
    assert trained_file.load(run).record["history"][-1]["epoch"] == 1
