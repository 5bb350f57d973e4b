"""What a release says in several places is the same in all of them, and the hosts of its files can
read them."""

import re
from datetime import date
from pathlib import Path

import pytest

import realspike_ops as rso

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
HOST_FILES = [*WORKFLOWS, *sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))]


def load(path: Path):
    return yaml.safe_load(path.read_text())


def test_version_and_date_are_one():
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    if newest == "Unreleased":
        newest = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    version, released = newest.split(" - ")
    citation = load(ROOT / "CITATION.cff")
    assert rso.__version__ == version == citation["version"]
    assert citation["date-released"] == released == date.fromisoformat(released).isoformat()


def test_the_citation_names_what_is_cited():
    citation = load(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    paper = citation["preferred-citation"]
    assert (paper["type"], paper["year"]) == ("conference-paper", 2022)
    assert [author["family-names"] for author in paper["authors"]][:1] == ["Guo"]
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in PYPROJECT


def test_commits_are_linted_by_the_same_tools():
    hooks = load(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    pinned = {tool for hook in hooks for tool in hook["additional_dependencies"]}
    # What `make lint` runs, in the versions of the extra `dev`.
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    run = set(re.findall(r"\$\(BIN\)/([\w-]+) ", lint))
    assert {re.match(r"[\w-]+", tool)[0] for tool in pinned} == run
    for tool in pinned:
        assert f'"{tool}"' in PYPROJECT, tool
    # The same files: make lint finds them by their endings.
    endings = set(re.findall(r"-name '\*\.(\w+)'", MAKEFILE))
    pattern = re.compile(next(h["files"] for h in hooks if h["id"] == "clang-format"))
    folders = re.search(r"find ([\w ]+) -name", lint)[1].split()
    assert all(pattern.match(f"{top}/a/b.{ending}") for top in folders for ending in endings)
    assert not pattern.match("csrc/a/b.py")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_say_nothing_that_the_makefile_says(path):
    """Their commands are targets; a list of commands would be a second definition."""
    steps = [step for job in load(path)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    makes = [command for command in commands if not command.startswith("apt-get ")]
    assert makes
    for command in makes:
        target = re.match(r"make ([a-z-]+)", command)[1]
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), command
        for variable in re.findall(r"([A-Z]+)=", command):
            assert re.search(rf"^{variable} \?=", MAKEFILE, re.MULTILINE), command


def test_the_matrix_has_the_ends_of_the_ranges():
    matrix = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    pythons = re.findall(r"Python :: (3\.\d+)", PYPROJECT)
    oldest_torch = re.search(r'"torch>=([\d.]+)"', PYPROJECT)[1]
    assert f'requires-python = ">={pythons[0]}"' in PYPROJECT
    found = [(row["python"], row["torch"]) for row in matrix["include"]]
    assert found == [(pythons[0], f"torch=={oldest_torch}.0"), (pythons[-1], "torch")]
    wheels = re.search(r"\nbuild = \[(.*?)\]", PYPROJECT)[1]
    assert wheels == ", ".join(f'"cp{python.replace(".", "")}-*"' for python in pythons)


def test_wheels_are_tried_by_the_same_program():
    program = re.search(r'^test-command = "python \{project\}/(.*)"$', PYPROJECT, re.MULTILINE)[1]
    assert (ROOT / program).exists()
    assert f"/python {program}\n" in MAKEFILE


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: path.stem)
def test_files_of_the_host_are_yaml_mappings(path):
    assert isinstance(load(path), dict)


def test_reports_of_bugs_ask_for_what_the_doctor_prints():
    fields = load(ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    (doctor,) = [field for field in fields if field.get("id") == "doctor"]
    assert "`realspike doctor`" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"] is True


def test_bad_releases_of_lightning_are_excluded():
    requirements = pytest.importorskip("packaging.requirements")
    (line,) = re.findall(r'"(lightning[^"]*)"', PYPROJECT)
    specifier = requirements.Requirement(line).specifier
    assert not {"2.6.1", "2.6.2", "2.6.3"} & set(specifier.filter(["2.6.1", "2.6.2", "2.6.3"]))
    assert specifier.contains("2.6.4")
    assert {"!=2.6.2", "!=2.6.3"} <= {str(part) for part in specifier}
