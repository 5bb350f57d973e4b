"""The selection of `make check`, tests/check.txt, covers every promise, op and command."""

import re

import realspike.cli
from helpers import ROOT

from realspike_ops.ops import LIBRARY


def selection() -> dict[str, list[str]]:
    """Return the tests of every paragraph, by its first line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "tests" / "check.txt").read_text(), flags=re.MULTILINE)
    paragraphs = [block.split("\n") for block in text.strip().split("\n\n")]
    return {title: " ".join(lines).split() for title, *lines in paragraphs}


def names_of(kind: str) -> set[str]:
    return {title.removeprefix(f"{kind} ") for title in selection() if title.startswith(f"{kind} ")}


def test_every_promise_is_checked():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    promised = re.findall(r"^(\d)\. \*([^*]+)\*", text, re.MULTILINE)
    assert len(promised) == 9
    assert names_of("promise") == {f"{number}, {name.lower()}" for number, name in promised}


def test_every_op_is_checked():
    import realspike_ops.ops.unshared_conv_lif  # noqa: F401  all ops are defined

    assert names_of("op") == {name.removeprefix("realspike::") for name in LIBRARY._op_defs}


def test_every_command_is_checked():
    _, commands = realspike.cli._parsers()
    assert names_of("command") == set(commands)


def test_the_tests_are_there():
    for title, tests in selection().items():
        assert tests, title
        for test in tests:
            file, _, name = test.partition("::")
            source = (ROOT / "tests" / file).read_text()
            assert not name or f"\ndef {name}(" in source, test
