"""The blocks of docs/migration.md run, one library at a time, where it is installed."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
INTRODUCTION, *SECTIONS = PAGE.split("\n## ")
SECTIONS = {section.split("\n", 1)[0]: section for section in SECTIONS}


def run(text: str, names: dict) -> None:
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        # A page compiled as one, so that a failing line is shown by its own number.
        line = PAGE[: PAGE.index(block)].count("\n")
        exec(compile("\n" * line + block, "docs/migration.md", "exec"), names)


@pytest.mark.parametrize("library", ["SpikingJelly", "snnTorch", "norse"])
def test_blocks_run(library):
    pytest.importorskip(library.lower(), reason=f"{library} is not installed: pip install .[peers]")
    names = {}
    run(INTRODUCTION, names)
    run(SECTIONS[library], names)


def test_whole_networks_run():
    names = {}
    run(INTRODUCTION, names)
    run(SECTIONS["Whole networks"], names)


def test_every_library_is_tested():
    assert set(SECTIONS) == {"Whole networks", "SpikingJelly", "snnTorch", "norse"}
