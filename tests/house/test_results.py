"""Files of measurements: a run adds its rows, and takes none away that it did not measure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import results
from results import Row, case_of, measured, write_results

sys.path.remove(str(BENCH))


def machine(commit, **others):
    return {"device": "Some CPU (R) 1", "threads": 2, "commit": commit, **others}


def row(name, ratio, group="bench_one", **others):
    return Row(name, group, 1e-3, {"peer": 1e-3 * ratio}, {"peer": ratio}, **others)


def read(folder):
    return json.loads((folder / "some-cpu-r-1.json").read_text())


def found(folder):
    return {row["name"]: (row["ratios"]["peer"], row["commit"]) for row in read(folder)["rows"]}


def test_rows_that_a_run_did_not_measure_stay_with_their_commit(tmp_path):
    write_results(tmp_path, machine("aaa", torch="2.12"), [row("x", 1.0), row("y", 2.0)])
    write_results(tmp_path, machine("bbb", torch="2.13"), [row("y", 3.0), row("z", 4.0)])
    assert found(tmp_path) == {"x": (1.0, "aaa"), "y": (3.0, "bbb"), "z": (4.0, "bbb")}
    assert [row["name"] for row in read(tmp_path)["rows"]] == ["x", "y", "z"]
    assert read(tmp_path)["machine"]["torch"] == "2.13"
    assert {c: m["torch"] for c, m in read(tmp_path)["machines"].items()} == {
        "aaa": "2.12",
        "bbb": "2.13",
    }
    table = (tmp_path / "some-cpu-r-1.md").read_text()
    assert "| x | 1.00x | aaa |" in table
    assert "| y | 3.00x | bbb |" in table
    write_results(tmp_path, machine("ccc"), [row("w", 5.0)])
    assert found(tmp_path)["x"] == (1.0, "aaa")
    assert set(read(tmp_path)["machines"]) == {"aaa", "bbb", "ccc"}
    # A commit of which no row is left is forgotten.
    write_results(tmp_path, machine("ccc"), [row("x", 6.0)])
    assert set(read(tmp_path)["machines"]) == {"bbb", "ccc"}


def test_a_file_without_commits_in_its_rows_is_of_the_machine_s(tmp_path):
    write_results(tmp_path, machine("aaa"), [row("x", 1.0), row("y", 2.0)])
    content = read(tmp_path)
    del content["machines"]
    for old in content["rows"]:
        del old["commit"]
    (tmp_path / "some-cpu-r-1.json").write_text(json.dumps(content))
    write_results(tmp_path, machine("bbb"), [row("x", 3.0)])
    assert found(tmp_path) == {"x": (3.0, "bbb"), "y": (2.0, "aaa")}
    assert set(read(tmp_path)["machines"]) == {"aaa", "bbb"}


def test_other_machines_are_other_files(tmp_path):
    write_results(tmp_path, machine("aaa"), [row("x", 1.0)])
    write_results(tmp_path, {**machine("bbb"), "device": "another"}, [row("x", 2.0)])
    assert found(tmp_path) == {"x": (1.0, "aaa")}
    assert (tmp_path / "another.md").exists()


def test_a_run_of_one_commit_shows_no_column_of_commits(tmp_path):
    table = write_results(tmp_path, machine("aaa"), [row("x", 1.0)]).read_text()
    assert "| case | peer |" in table
    assert "| x | 1.00x |\n" in table


@pytest.mark.parametrize(
    ("then", "now", "known"),
    [
        ("aaa", "aaa", {"x"}),
        ("aaa", "bbb", set()),
        # These name no one state of the files.
        ("aaa-dirty", "aaa-dirty", set()),
        (None, None, set()),
    ],
)
def test_a_resumed_run_leaves_out_what_its_commit_has(tmp_path, then, now, known):
    write_results(tmp_path, machine(then), [row("x", 1.0)])
    assert measured(tmp_path, machine(now)) == known


def test_what_is_found_of_a_case_names_no_other_case(tmp_path):
    """A benchmark puts the firing rate behind its name when it knows it."""
    write_results(tmp_path, machine("aaa"), [row("x[1]-rate5%", 1.0), row("x[12]-rate5%", 2.0)])
    assert case_of("x[1]") in measured(tmp_path, machine("aaa"))
    assert case_of("x[2]") not in measured(tmp_path, machine("aaa"))
    write_results(tmp_path, machine("bbb"), [row("x[1]-rate7%", 3.0)])
    assert found(tmp_path) == {"x[1]-rate7%": (3.0, "bbb"), "x[12]-rate5%": (2.0, "aaa")}


def test_results_alone_leave_a_commit_what_it_is(tmp_path, monkeypatch):
    """Or no run could be resumed that adds to a file of the repository."""

    def git(*arguments):
        identity = ("-c", "user.name=me", "-c", "user.email=me@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    monkeypatch.delenv("REALSPIKE_COMMIT", raising=False)
    kept = tmp_path / "bench" / "results" / "card.json"
    source = tmp_path / "bench" / "bench_one.py"
    kept.parent.mkdir(parents=True)
    for path in (kept, source):
        path.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    clean = results.commit(source.parent)
    assert clean
    kept.write_text("2")
    assert results.commit(source.parent) == clean
    source.write_text("2")
    assert results.commit(source.parent) == f"{clean}-dirty"
    monkeypatch.setenv("REALSPIKE_COMMIT", "given")
    assert results.commit(source.parent) == "given"


def test_nothing_was_measured_where_there_is_no_file(tmp_path):
    assert measured(tmp_path, machine("aaa")) == set()


def test_a_run_that_is_ended_while_it_writes_leaves_the_file_whole(tmp_path, monkeypatch):
    write_results(tmp_path, machine("aaa"), [row("x", 1.0)])

    def interrupted(path, text):
        path.with_name(path.name + ".part").write_text(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "_replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, machine("bbb"), [row("y", 1.0)])
    assert found(tmp_path) == {"x": (1.0, "aaa")}
