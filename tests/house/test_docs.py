"""The pages of the documentation: complete, connected, and the guide's code runs.

`make docs` builds them all with warnings as errors, and runs the tutorials too.
"""

import re
import runpy
from pathlib import Path

import matplotlib
import pytest

import realspike_ops as rso

ROOT = Path(__file__).parents[2]
CONF = runpy.run_path(str(ROOT / "docs" / "conf.py"))
PAGES = sorted(
    path
    for pattern in CONF["include_patterns"]
    for path in ROOT.glob(pattern + "/*.md" if pattern.endswith("**") else pattern)
)
CELL = re.compile(r"```\{code-cell\} python\n(?::[^\n]*\n)*(.*?)```", re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def without_code(path: Path) -> str:
    return re.sub(
        r"^```(?!\{toctree).*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
    )


def test_the_version_is_the_package_s():
    assert CONF["release"] == rso.__version__


def test_every_public_name_has_an_entry():
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    entries = re.findall(r"\.\. auto\w+:: realspike_ops\.([\w.]+)", pages)
    assert len(entries) == len(set(entries))
    names = set(rso.__all__) - {"nn", "reference"}
    names |= {f"nn.{name}" for name in set(rso.nn.__all__) - names}
    names |= {f"reference.{name}" for name in rso.reference.__all__}
    missing = names - set(entries)
    assert not missing, f"no entry in docs/reference for {sorted(missing)}"


def test_every_page_is_in_a_toctree():
    assert len(PAGES) > 30
    reached, new = set(), [ROOT / f"{CONF['root_doc']}.md"]
    while new:
        page = new.pop()
        reached.add(name_of(page))
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            for line in tree.splitlines():
                if line and not line.startswith(":"):
                    target = re.sub(r".*<(.*)>", r"\1", line)
                    folder = ROOT if target.startswith("/") else page.parent
                    path = (folder / f"{target.strip('/')}.md").resolve()
                    assert path.exists(), f"{name_of(page)}: {target}"
                    if name_of(path) not in reached:
                        new.append(path)
    assert {name_of(page) for page in PAGES} == reached


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_resolve(page):
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", without_code(page)):
        assert (page.parent / link).exists(), link


def test_the_application_s_commands_read_runs_that_a_line_before_them_writes():
    page = (ROOT / "docs" / "application.md").read_text()
    reads = re.compile(
        r"^realspike (?:eval|fold|verify|export|profile|plot) (runs/\w+)", re.MULTILINE
    )
    found = [
        (read[0], f"--out {read[1]}" in block[: read.start()])
        for block in re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for read in reads.finditer(block)
    ]
    assert len(found) > 4
    assert [command for command, is_written in found if not is_written] == []


def test_pages_with_cells_are_notebooks():
    """Else they are shown, and not run."""
    notebooks = [page for page in PAGES if "\n```{code-cell}" in page.read_text()]
    assert len(notebooks) > 10
    for page in notebooks:
        header = page.read_text().partition("\n---\n")[0]
        assert re.fullmatch(r"---\n.*format_name: myst\n.*", header, re.DOTALL), name_of(page)
        assert page.read_text().count("{code-cell}") == len(CELL.findall(page.read_text()))


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "guide"], ids=name_of)
def test_cells_of_the_guide_run(page, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    text = page.read_text()
    for cell in CELL.finditer(text):
        line = text[: cell.start(1)].count("\n")  # so that a failing line has its own number
        exec(compile("\n" * line + cell[1], str(page), "exec"), names)
