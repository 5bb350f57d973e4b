"""bench/gpu.sh with a fake Python: which stages run what, for how long, and what they do again; and
the tuner of the LIF kernels, in Triton's interpreter."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import tune_lif

sys.path.remove(str(BENCH))

STAGES = ["smoke", "tune", "step", "folded", "conv", "lif", "sanitize"]
FAKE = """#!/usr/bin/env bash
case "$*" in
  *is_available*) exit "${NO_CARD:-0}" ;;
  *"import "*) [[ $* != *xdist* ]]; exit ;;
  *--collect-only*) printf 'tests/ops/test_b.py::test[x]\\ntests/lif/test_a.py::test\\n'; exit ;;
  *"pip install"*) mkdir -p build/gpu-site/realspike_ops ;;
esac
echo "$*" >>"$CALLS"
[[ -z ${SLOW:-} ]] || sleep 30
[[ -z ${FAILS:-} || $* != *$FAILS* ]]
"""


@pytest.fixture
def run(tmp_path):
    """run(stages, **environment): the exit status, and what Python was asked to do."""
    (tmp_path / "bench").mkdir()
    shutil.copy(BENCH / "gpu.sh", tmp_path / "bench")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python3", "compute-sanitizer"):
        (tools / name).write_text(FAKE)
        (tools / name).chmod(0o755)
    calls = tmp_path / "calls"

    def script(*stages, **environment):
        calls.write_text("")
        done = subprocess.run(
            ["bash", str(tmp_path / "bench" / "gpu.sh"), *stages],
            env={
                **os.environ,
                **{"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls)},
                **{"REALSPIKE_COMMIT": "abc", "OUT": str(tmp_path / "out"), **environment},
            },
            capture_output=True,
            text=True,
        )
        return done.returncode, [line for line in calls.read_text().splitlines() if line], done

    return script


def test_all_stages_run_in_order_and_are_resumed(run, tmp_path):
    status, calls, done = run()
    assert status == 0, done.stdout + done.stderr
    ended = [line.split()[2] for line in done.stdout.splitlines() if "ended with 0" in line]
    assert ended == ["build", *STAGES]
    files = ["gpu_smoke.py", "tests/lif/test_a.py", "tests/ops/test_b.py", "bench/tune_lif.py"]
    files += ["tune_unshared_matmul.py", "bench_training_step.py", "bench_folded.py"]
    files += ["bench_unshared_conv.py", "bench_lif.py", "memcheck", "racecheck", "synccheck"]
    assert len(calls) == 1 + len(files)
    assert all(file in call for file, call in zip(files, calls[1:], strict=True))
    assert all("--resume" in call for call in calls if "--benchmark-only" in call)
    assert "bench_host.py" in calls[9]
    # Tests, tunings and tools that succeeded are not done again; pytest knows about its rows.
    status, again, _ = run(*STAGES)
    assert status == 0
    assert again == [call for call in calls if "--benchmark-only" in call]
    # Another commit is.
    status, other, _ = run(*STAGES, REALSPIKE_COMMIT="def")
    assert other == calls[1:]


def test_a_stage_goes_on_with_what_failed(run):
    run("build")
    status, first, done = run("smoke", "sanitize", FAILS="test_a")
    assert status == 1
    assert "failed: smoke (1)" in done.stderr
    assert len(first) == 6  # the next file and the next stage ran
    status, second, _ = run("smoke", "sanitize")
    assert status == 0
    assert [call for call in second if "test_a" in call] == second


@pytest.mark.parametrize("commit", ["abc-dirty", ""])
def test_what_has_no_commit_is_done_again(run, commit):
    run("build")
    first = run("smoke", REALSPIKE_COMMIT=commit)[1]
    assert run("smoke", REALSPIKE_COMMIT=commit)[1] == first
    assert len(first) == 3


def test_a_stage_ends_in_time(run):
    run("build")
    status, calls, done = run("tune", SLOW="1", STAGE_S="21")
    assert status == 1
    assert "failed: tune (124)" in done.stderr
    assert len(calls) == 1


def test_stages_need_a_card_a_name_and_a_build(run):
    assert run("test")[0] == 2
    assert "there are build smoke tune step folded conv lif sanitize" in run("test")[2].stderr
    assert run("lif", NO_CARD="1")[:2] == (1, [])
    status, calls, done = run("lif")
    assert (status, calls) == (1, [])
    assert "lif needs the stage build" in done.stderr


SMALL = (3, 2, 2, 3, 3)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(tune_lif, "NEURONS", (1, 4))
    monkeypatch.setattr(tune_lif, "WARPS", (1,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a card the kernels are compiled")
@pytest.mark.parametrize("form", ["plain", "attached-element", "attached-norm"])
def test_every_shape_of_a_launch_gives_the_same_outputs(form, few, capsys):
    clock = itertools.count(1.0).__next__
    with torch.no_grad():
        case = tune_lif.Case(form, SMALL, "cpu")
        assert tune_lif.tune(case, form, lambda function: clock(), 1.0)
    printed = capsys.readouterr().out
    assert "left out" not in printed
    assert [kind for kind in ("inference", "forward", "backward") if kind in printed] == [
        "inference",
        "forward",
        "backward",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a card the kernels are compiled")
def test_a_shape_with_other_outputs_is_told(few, monkeypatch, capsys):
    right = tune_lif.shaped

    def without_the_last_row(*numbers):
        choose = right(*numbers)

        def shape(*sizes):
            chosen = choose(*sizes)
            tiles = chosen.tiles._replace(row=chosen.tiles.row - 1)
            return chosen._replace(tiles=tiles)

        return shape

    monkeypatch.setattr(tune_lif, "shaped", without_the_last_row)
    with torch.no_grad():
        case = tune_lif.Case("plain", SMALL, "cpu")
        assert not tune_lif.tune(case, "plain", lambda function: 1.0, 1.0)
    assert "WRONG OUTPUTS plain" in capsys.readouterr().out
