"""The bugs of `make plant-bugs`: sources move, and a bug that no longer applies is none."""

import sys
from pathlib import Path

import pytest

PROOFS = Path(__file__).resolve().parents[1] / "proofs"


@pytest.fixture
def plant_bugs(monkeypatch):
    monkeypatch.syspath_prepend(PROOFS)
    known = set(sys.modules)
    import plant_bugs

    yield plant_bugs
    for name in sys.modules.keys() - known:
        if name.split(".")[0] in ("plant_bugs", "planted"):
            del sys.modules[name]


def test_every_bug_applies_and_names_its_tests(plant_bugs):
    names = [bug.name for bug in plant_bugs.BUGS]
    assert len(names) > 400
    assert len(set(names)) == len(names)
    stale = [
        bug.name
        for bug in plant_bugs.BUGS
        if not plant_bugs.applies(bug, plant_bugs.read(plant_bugs.ROOT / bug.file))
    ]
    assert stale == []
    tests = {test.partition("::")[0] for bug in plant_bugs.BUGS for test in bug.tests.split()}
    assert [test for test in tests if not (plant_bugs.ROOT / test).exists()] == []


def test_a_bug_applies_by_hand(plant_bugs):
    bug = plant_bugs.Bug("name", "file", "a + b", "a - b", "tests")
    assert plant_bugs.applies(bug, "x = a + b\n")
    assert not plant_bugs.applies(bug, "x = a + b\ny = a + b\n")  # which of them?
    assert not plant_bugs.applies(bug, "x = a+b\n")
    twice = plant_bugs.Bug("name", "file", "a + b", "a - b", "tests", count=2)
    assert plant_bugs.applies(twice, "x = a + b\ny = a + b\n")
    nothing = plant_bugs.Bug("name", "file", "a + b", "a + b", "tests")
    assert not plant_bugs.applies(nothing, "x = a + b\n")
