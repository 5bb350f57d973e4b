"""The paper's tables: which networks, resumed cell by cell, and set as the paper does."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for package in ("sklearn", "safetensors", "rich", "lightning", "yaml"):
    pytest.importorskip(package)

from helpers import ROOT
from realspike import checkpoint, cli, environment, train
from realspike.config import recipes, run_config
from realspike.config.recipes import TABLES, Cell, cells_of
from realspike.inspect import trained_file
from realspike.inspect.spikes import record_spikes
from realspike.train import jobs as grid
from realspike.train import module, outcomes, paired, statistics, tables
from realspike.train.history import read_csv
from realspike.train.tables import Entry
from stopping import stopping_in

QUICK = {"architecture": "digits", "width": 2, "timesteps": 1, "epochs": 2, "batch_size": 256}
QUICK |= {"threads": 1, "device": "cpu"}
OVERRIDES = [f"{key}={value}" for key, value in QUICK.items()]


@pytest.fixture(autouse=True)
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Which networks


def test_there_is_one_config_per_row_of_the_tables():
    cells = recipes.all_cells()
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert [path.stem for path in paths] == sorted(cells)
    for path in paths:
        cell, _ = cells[path.stem]
        config = run_config.read(path)
        assert config == cell.config(), (
            f"{path}: `python -m realspike.config.recipes configs` writes it"
        )
        assert f"{cell.paper:.2f} %" in path.read_text().splitlines()[0]


def test_numbers_of_the_paper_agree_where_tables_share_a_cell():
    by_name = {}
    for cells in TABLES.values():
        for cell in cells:
            assert by_name.setdefault(cell.name, cell) == cell
    assert {len(TABLES[1]), len(TABLES[2]), len(TABLES[3])} == {12, 8, 14}
    assert by_name["cifar10_resnet20_t4_none"].paper == 91.73
    assert by_name["cifar100_resnet20_t6_element"].paper == 68.60


def test_cells_follow_the_data():
    assert len(cells_of(1, "cifar10")) == 6
    assert [c.architecture for c in cells_of(3, "imagenet")] == ["sew_resnet18", "sew_resnet34"]
    assert cells_of(2, "imagenet") == []
    digits = cells_of(1, "digits")
    assert [(c.timesteps, c.granularity) for c in digits] == [
        (c.timesteps, c.granularity) for c in cells_of(1, "cifar10")
    ]
    assert {c.paper for c in digits} == {None}
    config = digits[1].config(seed=2)
    assert config.data.name == "digits"
    assert config.training.seed == 2
    assert config.network.architecture == "resnet20"
    assert cells_of(3, "digits-events")[0].config().network_config().encoding == "frames"


def test_imagenet_has_integrate_and_fire_neurons():
    config = cells_of(3, "imagenet")[0].config()
    assert (config.network.decay, config.network.v_threshold) == (1.0, 1.0)
    assert config.network.detach_reset
    assert config.training.precision == "bf16-mixed"


# What is trained


def digits_jobs(tmp_path, seeds=1):
    return grid.jobs_of(cells_of(1, "digits")[:2], seeds, tmp_path, QUICK)


def test_cells_are_trained_once_and_resumed(tmp_path, monkeypatch):
    jobs = digits_jobs(tmp_path, seeds=2)
    assert [job.folder.name for job in jobs] == [
        f"digits_resnet20_t2_{g}_seed{s}" for s in (0, 1) for g in ("none", "element")
    ]
    assert [job.accuracy() for job in jobs] == [None] * 4
    trained = []

    def note(job, left):
        trained.append((job.folder.name, left))

    assert grid.run(jobs, 1, note) == 0
    assert [job.accuracy() is None for job in jobs] == [False, True, True, True]
    first = jobs[0].accuracy()

    original = module.SpikingClassifier.training_step

    def training_step(self, batch, batch_idx):
        if self.global_step == 8:  # in the second epoch of the second job
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(module.SpikingClassifier, "training_step", training_step)
        assert grid.run(jobs, None, note) == (signal.SIGTERM)
    assert jobs[1].accuracy() is None, "an epoch is missing"
    assert grid.run(jobs, None, note) == 0
    assert jobs[0].accuracy() == first
    assert None not in [job.accuracy() for job in jobs]
    assert [left for _, left in trained] == [4, 3, 3, 2, 1]
    assert trained[1] == trained[2]


def test_what_another_process_trains_is_left_to_it(tmp_path):
    """A grid of two runs, the first of them held by another process until it is told to end."""
    jobs = digits_jobs(tmp_path)
    jobs[0].folder.mkdir()
    code = "import sys; from pathlib import Path; from realspike import files\n"
    code += "with files.locked(Path(sys.argv[1])): print(flush=True); input()"
    command = [sys.executable, "-c", code, str(jobs[0].folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    with subprocess.Popen(command, env=environment, **pipes) as other:
        other.stdout.readline()
        assert grid.run(jobs) == 0
        other.communicate(b"\n")
    assert [job.accuracy() is None for job in jobs] == [True, False]
    assert grid.run(jobs, 1) == 0
    assert None not in [job.accuracy() for job in jobs]


def test_a_folder_of_another_configuration_is_not_taken_for_the_cell(tmp_path):
    jobs = digits_jobs(tmp_path)
    grid.run(jobs, 1)
    other = grid.jobs_of(cells_of(1, "digits")[:1], 1, tmp_path, QUICK | {"width": 3})
    with pytest.raises(train.RunError, match="another configuration"):
        other[0].accuracy()


# Networks that are not the table's


def changed(table, data, *overrides):
    return recipes.changed(cells_of(table, data), run_config.parse_overrides(overrides))


def test_a_grid_goes_on_where_its_data_were_moved_to(tmp_path, monkeypatch):
    begun = digits_jobs(tmp_path)
    with stopping_in(monkeypatch, step=1):
        assert grid.run(begun) == signal.SIGTERM
    places = {"data.root": "moved", "data.workers": 0}
    jobs = grid.jobs_of(cells_of(1, "digits")[:2], 1, tmp_path, QUICK | places)
    assert grid.run(jobs) == 0
    assert [job.accuracy() for job in begun] == [job.accuracy() for job in jobs] != [None, None]
    for job in jobs:
        assert run_config.read(job.folder / "config.yaml") == job.config


def test_a_changed_network_is_another_cell_without_the_number_of_the_paper():
    own = cells_of(2, "cifar10")
    assert changed(2, "cifar10", "epochs=3", "data.root=elsewhere") == own
    cells = changed(2, "cifar10", "architecture=vgg16", "width=8", "timesteps=2")
    assert [cell.granularity for cell in cells] == ["none", "layer", "channel", "element"]
    assert {(c.architecture, c.width, c.timesteps, c.paper) for c in cells} == {
        ("vgg16", 8, 2, None)
    }
    assert cells[0].name == "cifar10_vgg16_w8_t2_none"
    network = cells[0].config(3).network
    assert (network.architecture, network.width, network.timesteps) == ("vgg16", 8, 2)
    for override in ("decay=0.5", "v_threshold=1", "pooling=average"):
        cells = changed(3, "cifar10", override)
        kept = [cell.paper for cell in cells]
        # The average is what the ResNets have, and not the VGGs.
        is_vgg = [cell.architecture == "vgg16" for cell in cells]
        expected = is_vgg if override.startswith("pooling") else [True] * len(cells)
        assert [paper is None for paper in kept] == expected
    assert {c.paper for c in changed(3, "imagenet", "data.classes=2")} == {None}


def test_timesteps_that_are_chosen_leave_one_row_of_many():
    cells = changed(1, "digits", "timesteps=3")
    assert [(cell.timesteps, cell.granularity) for cell in cells] == [(3, "none"), (3, "element")]
    _, rows = tables.layout(1, {cell: Entry((float(i),)) for i, cell in enumerate(cells)})
    assert rows == [["digits", "3", "0.00", "1.00"]]


@pytest.mark.parametrize(
    ("table", "override", "papers"),
    [
        (3, "architecture=resnet20", {2: None, 4: None, 6: None, 5: 93.01, 10: 93.65}),
        (1, "timesteps=4", {4: 92.53}),
    ],
)
def test_networks_that_become_one_of_the_papers_are_one_cell(table, override, papers):
    cells = changed(table, "cifar10", override)
    assert {c.timesteps: c.paper for c in cells if c.granularity == "element"} == papers
    assert len({cell.name for cell in cells}) == len(cells)


def test_every_table_names_its_networks():
    for table in TABLES:
        cells = changed(table, "digits", "architecture=vgg5", "width=3")
        found = {cell: Entry((1.0,)) for cell in cells}
        header, rows = tables.layout(table, found)
        text = " ".join([*header, *(cell for row in rows for cell in row)])
        assert "vgg5 of width 3" in text
        assert "ResNet20" not in text
        title = tables.title(table, "digits", found, ["architecture=vgg5", "width=3"])
        assert title.endswith("%; with architecture=vgg5, width=3)")
        assert "ResNet20" not in title
        own = cells_of(table, "cifar10")
        assert "vgg5" not in tables.title(table, "cifar10", own)
    assert "ResNet20, T = 4, what shares" in tables.title(2, "cifar10", cells_of(2, "cifar10"))


def test_a_table_is_saved_before_it_is_printed(tmp_path, monkeypatch, capsys):
    from realspike import output

    class Broken:
        is_terminal = False

        def print(self, *_, **__):
            raise UnicodeEncodeError("ascii", "x", 0, 1, "no such character")

    monkeypatch.setattr(output, "console", Broken)
    page = tmp_path / "page.md"
    arguments = ["table", "2", "--data", "digits", "--cells", "0", "--save", str(page)]
    with pytest.raises(UnicodeEncodeError):
        cli.main([*arguments, "--out", str(tmp_path / "runs")])
    assert "| binary (vanilla) | - |" in page.read_text()


def test_the_command_of_a_page_can_be_pasted(tmp_path):
    page = tmp_path / "page.md"
    arguments = ["table", "2", "--data", "digits", "epochs = 3"]
    saved = ["--cells", "0", "--out", str(tmp_path / "runs"), "--save", str(page)]
    assert cli.main([*arguments, *saved]) == 0
    command = page.read_text().partition("Measured with `")[2].partition("`")[0]
    assert [given for given in shlex.split(command) if "epochs" in given] == ["epochs = 3"]


# How it is set


def cell(granularity, timesteps=4, data="cifar10", paper=None):
    return Cell(data, "resnet20", timesteps, granularity, paper)


def test_entries_by_hand():
    assert str(Entry(())) == "-"
    assert str(Entry((90.0,))) == "90.00"
    assert str(Entry((90.0, 92.0, 94.0))) == "92.00 ± 2.00"
    assert str(Entry((90.0,), 91.5)) == "90.00 (paper 91.50)"
    assert str(Entry((), 91.5)) == "- (paper 91.50)"


def test_layouts_by_hand():
    found = {
        cell("none", 2): Entry((1.0,)),
        cell("element", 2): Entry((2.0,)),
        cell("none", 4): Entry((3.0,)),
        cell("element", 4): Entry((4.0,)),
    }
    header, rows = tables.layout(1, found)
    assert header == ["data", "T", "binary (vanilla)", "Real Spike, element"]
    assert rows == [["cifar10", "2", "1.00", "2.00"], ["cifar10", "4", "3.00", "4.00"]]
    found = {cell(g): Entry((float(i),)) for i, g in enumerate(tables.METHODS)}
    header, rows = tables.layout(2, found)
    assert header == ["method", "cifar10"]
    assert rows[2] == ["Real Spike, channel", "2.00"]
    header, rows = tables.layout(3, {cell("element"): Entry((5.0, 7.0), 6.5)})
    assert rows == [["cifar10", "ResNet20", "4", "Real Spike, element", "6.00 ± 1.41 (paper 6.50)"]]


@pytest.mark.parametrize("table", [1, 2, 3])
@pytest.mark.parametrize("data", ["cifar10", "cifar100", "digits"])
def test_every_cell_is_in_its_table(table, data):
    cells = cells_of(table, data)
    found = {cell: Entry((10.0 + i,)) for i, cell in enumerate(cells)}
    _, rows = tables.layout(table, found)
    text = " ".join(" ".join(row) for row in rows)
    assert all(f"{10.0 + i:.2f}" in text for i in range(len(cells)))


# Paired by seed


class Finished:
    """A run that ended with an accuracy in %; None: not yet."""

    def __init__(self, granularity, seed, accuracy, timesteps=4):
        self.cell, self.percent = cell(granularity, timesteps), accuracy
        self.config = self.cell.config(seed)

    def accuracy(self):
        return None if self.percent is None else self.percent / 100


def test_differences_are_paired_by_seed():
    """Seeds 1 of the layer-wise and 3 of the binary network are missing; T = 2 is another row."""
    runs = [Finished("none", seed, 60.0 + 10 * seed) for seed in (0, 1, 2)]
    runs += [Finished("layer", 2, 81.0), Finished("layer", 1, None), Finished("layer", 0, 58.0)]
    runs += [Finished("layer", 3, 70.0)]
    runs += [Finished("none", 0, 10.0, timesteps=2), Finished("element", 0, 15.0, timesteps=2)]
    runs += [Finished("element", seed, None) for seed in (0, 1, 2)]
    found = paired.differences(runs)
    named = [(d.first.granularity, d.second.granularity, d.first.timesteps) for d in found]
    assert named == [("layer", "none", 4), ("element", "none", 2)]
    assert found[0].points == pytest.approx((-2.0, 1.0))
    assert found[1].points == pytest.approx((5.0,))
    header, rows = tables.paired_rows(found)
    assert header == ["networks", "difference", "points", "95% interval", "seeds"]
    # A mean of -0.5 and a deviation of 3 / sqrt(2), so +-12.706 * 1.5 with one degree of freedom.
    assert rows == [
        [
            "cifar10, T = 4",
            "Real Spike, layer - binary (vanilla)",
            "-0.50",
            "-19.56 to +18.56",
            "2",
        ],
        ["cifar10, T = 2", "Real Spike, element - binary (vanilla)", "+5.00", "-", "1"],
    ]


def test_a_mean_of_fewer_seeds_is_named():
    found = {
        cell("none"): Entry((1.0, 2.0)),
        cell("layer"): Entry((1.0,)),
        cell("element"): Entry(()),
    }
    assert tables.unfinished({cell("none"): Entry((1.0, 2.0))}, 2) == ""
    text = " 3 of the 6 networks are not trained yet; of 2 seeds Real Spike, layer has 1."
    assert tables.unfinished(found, 2) == text
    assert tables.unfinished({cell("element"): Entry(())}, 2).endswith(
        "2 networks are not trained yet."
    )
    found[cell("none", 2)] = Entry((3.0,))
    assert tables.unfinished(found, 2).endswith(
        "Real Spike, layer (cifar10, T = 4) has 1, binary (vanilla) (cifar10, T = 2) has 1."
    )


def test_the_interval_of_a_mean_by_hand():
    """Deviation 1 of three seeds, and 4.303, the 97.5 % quantile of two degrees of freedom."""
    found = paired.Difference(cell("element"), cell("none"), (1.0, 2.0, 3.0))
    assert found.interval() == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert not found.decides
    # 1.886, the 90 % quantile, at 80 % confidence.
    half = 1.8856 / 3**0.5
    assert found.interval(0.8) == pytest.approx((2 - half, 2 + half), abs=1e-4)
    for shift, decides in ((-4.6, True), (-4.4, False), (0.4, False), (0.6, True)):
        moved = paired.Difference(found.first, found.second, (1 + shift, 2 + shift, 3 + shift))
        assert moved.decides == decides, shift
    same = paired.Difference(found.first, found.second, (0.5, 0.5, 0.5))
    assert same.interval() == (0.5, 0.5)
    assert same.decides
    assert not paired.Difference(found.first, found.second, (9.0,)).decides


# The command


def test_a_grid_of_two_seeds_says_what_its_runs_were(tmp_path, capsys):
    page, out = tmp_path / "page.md", tmp_path / "runs"
    overrides = [*OVERRIDES, "held_out=500", "fraction=0.3", "max_steps=2", "root=/secret"]
    overrides.append("workers=1")
    command = ["table", "2", "--data", "digits", "--seeds", "2", "--out", str(out)]
    command += ["--save", str(page), *overrides]
    found = []
    for cells in ("3", "3", "3"):  # of 8, stopped twice in between
        assert cli.main([*command, "--cells", cells]) == 0
        found.append(page.read_text())
    printed = capsys.readouterr().out
    assert [text.count("` |\n") for text in found] == [3, 6, 8]
    assert "accuracy on 500 training samples that are held out, last epoch" in found[2]
    assert "Differences, paired by seed" in printed
    assert "/secret" not in found[2] + printed
    assert "max_steps=2, root" not in found[2]
    assert "data.root" not in found[2]
    assert "fraction=0.3 max_steps=2`, torch" in found[2]
    assert "| Real Spike, element - Real Spike, channel |" in found[2]
    assert "paired by seed; one has no interval." in found[0]
    assert "of 6 leave out 0" in found[2]
    run = out / "digits_digits_w2_t1_layer_seed1"
    network = checkpoint.load(run / "model.safetensors").network
    record = read_csv(run / "metrics.csv")[-1]
    _, seconds = statistics.last_note(run)
    begin = f"| {run.name} | {100 * record['test_accuracy']:.2f} | {seconds:.0f} | "
    [line] = [line for line in found[2].splitlines() if line.startswith(begin)]
    assert line.endswith(f"| `{checkpoint.digest(network)}` |")
    assert f" | {environment.cpu_name()} | " in line
    # What was trained before is as it was.
    rows = [[line for line in text.splitlines() if "_seed0 |" in line] for text in found]
    assert rows[2] == rows[1]
    assert rows[2][:3] == rows[0]


def test_a_grid_goes_on_where_its_runs_are_not(tmp_path, capsys):
    """Two machines and one page: each trains what the other has not, and the page has both."""
    page, runs = tmp_path / "page.md", tmp_path / "page.runs.json"
    command = ["table", "2", "--data", "digits", "--seeds", "1", "--save", str(page)]
    command += [*OVERRIDES, "max_steps=2"]
    assert cli.main([*command, "--out", str(tmp_path / "here"), "--cells", "1"]) == 0
    first, kept = page.read_text(), json.loads(runs.read_text())["runs"]
    [row] = [line for line in first.splitlines() if line.endswith("` |")]
    assert list(kept) == ["digits_digits_w2_t1_none_seed0"]
    there = tmp_path / "there"
    moved = ["--out", str(there), "data.root=moved", "workers=1"]
    assert cli.main([*command, *moved, "--cells", "1"]) == 0
    second = page.read_text()
    assert f"1 of 4 networks are known from {runs}" in capsys.readouterr().out
    assert [folder.name for folder in there.iterdir()] == ["digits_digits_w2_t1_layer_seed0"]
    assert row in second
    assert "2 of the 4 networks are not trained yet" in second
    assert json.loads(runs.read_text())["runs"].items() > kept.items()
    # A run that is trained again counts as it came out, and the others stay.
    here = outcomes.read(runs)["digits_digits_w2_t1_layer_seed0"]
    again = dataclasses.replace(here, accuracy=0.5, device="another")
    outcomes.write(runs, {"digits_digits_w2_t1_layer_seed0": again})
    assert cli.main([*command, "--out", str(tmp_path / "here"), "--cells", "0"]) == 0
    assert "| digits_digits_w2_t1_layer_seed0 | 50.00 | " in page.read_text()
    assert cli.main([*command, *moved, "--cells", "0"]) == 0
    assert page.read_text() == second
    # Another configuration is another run.
    capsys.readouterr()
    assert cli.main([*command[:-1], "max_steps=3", *moved]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "digits_digits_w2_t1_none_seed0 is known with another configuration" in line
    assert "(training.max_steps=2):" in line
    assert page.read_text() == second


@pytest.mark.parametrize(
    ("arguments", "lost", "settings"),
    [
        # The paper's networks, whose runs have other names than those of the page.
        (["2", "--seeds", "2"], 8, "network.architecture=digits, network.timesteps=1, network.wid"),
        (["2", "--seeds", "1", *OVERRIDES], 4, "training.seed=1"),
        (["1", "--seeds", "2", *OVERRIDES], 4, "network.granularity=channel"),
        (["2", "--seeds", "2", "width=3", *OVERRIDES[:1], *OVERRIDES[2:]], 8, "network.width=2"),
    ],
)
def test_a_page_loses_none_of_its_runs(arguments, lost, settings, tmp_path, capsys):
    page, runs = tmp_path / "page.md", tmp_path / "page.runs.json"
    cells = recipes.changed(cells_of(2, "digits"), run_config.parse_overrides(OVERRIDES))
    found = {
        job.folder.name: outcomes.Outcome(0.5, 3.0, "c", "d", "w", job.config)
        for job in grid.jobs_of(cells, 2, tmp_path, QUICK)
    }
    outcomes.write(runs, found)
    page.write_text("rows")
    before = runs.read_bytes()
    nothing = ["--data", "digits", "--cells", "0", "--save", str(page), "--out", str(tmp_path)]
    assert cli.main(["table", *arguments, *nothing]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"one of {lost} runs that the table would lose ({settings}" in line
    assert (page.read_text(), runs.read_bytes()) == ("rows", before)
    assert cli.main(["table", "2", "--seeds", "2", *OVERRIDES, *nothing]) == 0
    assert "8 of 8 networks are known" in capsys.readouterr().out
    assert page.read_text().count("` |\n") == 8


def outcome(**changes):
    values = {"accuracy": 0.5, "seconds": 3.0, "commit": "c", "device": "d", "weights": "w"}
    return {**values, "config": {"network": {"timesteps": 2}}, **changes}


def test_outcomes_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "a.runs.json"
    assert outcomes.read(path) == {}
    path.write_text(json.dumps({"runs": {"one": outcome(accuracy=1, seconds=0)}}))
    found = outcomes.read(path)
    assert found["one"].config.network.timesteps == 2
    outcomes.write(path, {"two": found["one"]})
    assert outcomes.read(path) == {"one": found["one"], "two": found["one"]}
    assert outcomes.file_beside(tmp_path / "a.md") == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"runs": []}',
        '{"runs": {"one": 3}}',
        *(
            json.dumps({"runs": {"one": values}})
            for values in (
                {},
                outcome(accuracy=1.5),
                outcome(accuracy=-0.5),
                outcome(accuracy="0.5"),
                outcome(accuracy=True),
                outcome(accuracy=float("nan")),
                outcome(seconds=float("inf")),
                outcome(commit=None),
                outcome(weights=7),
                outcome(more=1),
                outcome(config=None),
                outcome(config={"network": {"depth": 3}}),
            )
        ),
    ],
)
def test_a_file_that_holds_no_outcomes(text, tmp_path, capsys):
    path = tmp_path / "page.runs.json"
    path.write_text(text)
    command = ["table", "2", "--data", "digits", "--cells", "0", "--out", str(tmp_path / "runs")]
    assert cli.main([*command, "--save", str(tmp_path / "page.md")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path} holds no outcomes of runs" in line
    assert path.read_text() == text
    assert not (tmp_path / "page.md").exists()


def test_ternary_spikes_are_a_row_behind_the_papers(tmp_path, capsys):
    cells = recipes.with_ternary(cells_of(2, "cifar10"))
    assert [cell.method for cell in cells] == ["none", "layer", "channel", "element", "ternary"]
    assert cells[:4] == cells_of(2, "cifar10")
    assert cells[4].name == "cifar10_resnet20_t4_ternary"
    assert (cells[4].granularity, cells[4].paper) == ("none", None)
    assert len(recipes.with_ternary(cells_of(1, "digits"))) == 9
    page = tmp_path / "page.md"
    command = ["table", "2", "--data", "digits", "--seeds", "1", "--ternary", "--save", str(page)]
    command += ["--out", str(tmp_path), *OVERRIDES, "max_steps=2"]
    assert cli.main(command) == 0
    text = page.read_text()
    assert "| Real Spike, element | " in text
    assert "| ternary, no amplitudes | " in text
    assert "ternary, no amplitudes - Real Spike, element |" in text
    assert "--seeds 1 --ternary architecture=digits" in text
    trained = trained_file.load(tmp_path / "digits_digits_w2_t1_ternary_seed0")
    trained.network.lif1.v_threshold = 0.1  # so that both signs are there
    images, _ = next(trained.test_batches())
    spikes = record_spikes(trained.network, images)["lif1"]
    assert spikes.unique().tolist() == [-1.0, 0.0, 1.0]


def test_table_command(tmp_path, capsys):
    page = tmp_path / "page.md"
    overrides = [override for override in OVERRIDES if override != "timesteps=1"]
    arguments = ["table", "1", "--data", "digits", "--out", str(tmp_path / "runs"), "--seeds", "1"]
    assert cli.main([*arguments, "--cells", "2", "--save", str(page), *overrides]) == 0
    printed = capsys.readouterr().out
    assert "Table 1 on digits: digits of width 2, binary spikes" in " ".join(printed.split())
    assert "4 of 6 networks are not trained yet" in printed
    assert "6 to train" in printed
    assert cli.main([*arguments, "--cells", "0", "--save", str(page), *overrides]) == 0
    assert "to train" not in capsys.readouterr().out
    text = page.read_text()
    cells = recipes.changed(cells_of(1, "digits"), run_config.parse_overrides(overrides))
    assert [cell.architecture for cell in cells] == ["digits"] * 6
    jobs = grid.jobs_of(cells, 1, tmp_path / "runs", run_config.parse_overrides(overrides))
    accuracies = [f"{100 * job.accuracy():.2f}" for job in jobs[:2]]
    assert f"| digits, digits of width 2 | 2 | {accuracies[0]} | {accuracies[1]} |" in text
    assert "| digits, digits of width 2 | 4 | - | - |" in text
    assert text.startswith("# Table 1 on digits: digits of width 2, binary spikes against")
    assert "; with architecture=digits, width=2, epochs=2, batch_size=256" in text.splitlines()[0]
    assert "4 of the 6 networks are not trained yet" in text
    assert "`network.threshold_norm=True`" in text
    assert "`training.scale_amplitudes=True`" in text
    assert "`training.epochs=2`" in text
    settings = text.partition("All runs have")[2]
    for varied in ("network.granularity", "network.timesteps"):
        assert varied not in settings
    assert "The paper has no such table" in text
    assert "`realspike table 1 --data digits --seeds 1 architecture=digits width=2" in text
    assert "torch" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["1", "--data", "digit"], "did you mean 'digits'"),
        (["2", "--data", "imagenet"], "table 2 of the paper has no imagenet"),
        (["1", "--data", "digits", "timestep=1"], "did you mean 'timesteps'"),
        (["1", "--data", "digits", "width=0"], "at least 1"),
        (["1", "--data", "digits", "granularity=layer"], "it is what the table compares"),
        (["3", "--data", "digits", "--ternary"], "beside binary networks; table 3 has none"),
        (["1", "--data", "digits", "emission=ternary"], "--ternary adds a row"),
        (["1", "--data", "digits", "name=cifar10"], "--data chooses the data"),
        (["1", "--data", "digits", "training.seed=3"], "--seeds says how many"),
        (["1", "--data", "digits", "--save", "file/a.md"], "cannot write --save file/a.md"),
        (["1", "--data", "digits", "--save", "."], "cannot write --save .: it is no regular"),
        (["1", "--data", "digits", "--out", "file"], "cannot write to file"),
    ],
)
def test_bad_arguments(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert cli.main(["table", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


def test_there_are_three_tables(capsys):
    with pytest.raises(SystemExit):
        cli.main(["table", "4"])
    assert "must be one of 1, 2, 3" in capsys.readouterr().err
