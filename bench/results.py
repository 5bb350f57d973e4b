"""Rows of a comparison and the files that keep them."""

import json
import os
import re
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass
class Row:
    """One configuration: our fastest round, and each peer's.

    Or, with a unit, quantities by name in place of the ratios.
    """

    name: str
    group: str
    seconds: float
    peer_seconds: dict[str, float]
    ratios: dict[str, float]  # fastest round of the peer over our fastest
    unit: str | None = None
    commit: str | None = None  # that was measured

    def cell(self, name: str) -> str:
        if name not in self.ratios:
            return ""
        return f"{self.ratios[name]:.2f}" + ("x" if self.unit is None else "")


def printed_by(*command: str, folder: Path = Path(__file__).parent) -> str | None:
    """Return what a command prints, or None where there is no such command."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    except OSError:
        return None
    return done.stdout.strip() or None


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit that is measured, and -dirty where files differ from it.

    Results do not count: a run changes them, and is resumed at the same commit.
    """
    given = os.environ.get("REALSPIKE_COMMIT")  # a copy of the checkout has no history
    name = given or printed_by("git", "describe", "--always", folder=folder)
    others = ("--", ":/", ":(top,exclude)bench/results")
    if given or name is None or not printed_by("git", "diff", "HEAD", *others, folder=folder):
        return name
    return f"{name}-dirty"


def case_of(name: str) -> str:
    """Return what a row is of: what was found there, a firing rate, stands behind the bracket."""
    return name.partition("]")[0]


def _table(rows: list[Row], with_times: bool, with_commits: bool) -> list[str]:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    header = ["case", *(["ours, us"] if with_times else []), *peers]
    header += ["commit"] if with_commits else []
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = [row.name]
        if with_times:
            cells.append(f"{row.seconds * 1e6:.1f}")
        cells += [row.cell(peer) for peer in peers]
        cells += [row.commit or ""] if with_commits else []
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _file_of(folder: Path, machine: dict) -> Path:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", machine["device"]).strip("-").lower()
    return folder / f"{stem}.json"


def read_rows(folder: Path, machine: dict) -> list[Row]:
    """Return the rows that a folder has of a machine; what says no commit is of the file's."""
    path = _file_of(folder, machine)
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    rows = [Row(**row) for row in content["rows"]]
    return [replace(row, commit=row.commit or content["machine"].get("commit")) for row in rows]


def measured(folder: Path, machine: dict) -> set[str]:
    """Return the cases of the rows that were measured at this machine's commit.

    None of a commit that names no one state of the files.
    """
    commit = machine["commit"]
    if commit is None or commit.endswith("-dirty"):
        return set()
    return {case_of(row.name) for row in read_rows(folder, machine) if row.commit == commit}


def _merged(old: list[Row], new: list[Row]) -> list[Row]:
    """Put new rows in the place of old ones of the same case, and the others behind them."""
    by_case = {case_of(row.name): row for row in (*old, *new)}
    return list(by_case.values())


def write_results(folder: Path, machine: dict, rows: list[Row]) -> Path:
    """Write <machine>.json and <machine>.md; return the path of the table.

    Rows that were measured before and are not among `rows` stay, each with the commit that it is
    of; `machines` in the file describes what each commit was measured with. Times are shown for
    GPUs alone: on a shared CPU only the ratios mean something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _file_of(folder, machine)
    machines = {}
    if path.exists():
        before = json.loads(path.read_text())
        machines = before.get("machines") or {
            str(before["machine"].get("commit")): before["machine"]
        }
    rows = [replace(row, commit=machine["commit"]) for row in rows]
    rows = _merged(read_rows(folder, machine), rows)
    machines[str(machine["commit"])] = machine
    commits = {str(row.commit) for row in rows}
    content = {
        "machine": machine,
        "machines": {commit: machines[commit] for commit in machines if commit in commits},
        "rows": [asdict(row) for row in rows],
    }
    _replace(path, json.dumps(content, indent=2) + "\n")
    lines = [f"# {machine['device']}", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "Fastest round of each peer over ours in one run; above 1x we are faster."]
    if len(commits) > 1:
        lines += [
            "Rows were measured at several commits; above stands what the latest run was. "
            f"The rest is in {path.name}."
        ]
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        unit = of_group[0].unit
        lines += ["", f"## {group}", ""] + ([] if unit is None else [f"In {unit}.", ""])
        timed = "cuda" in machine and any(row.seconds for row in of_group)
        lines += _table(of_group, with_times=timed, with_commits=len(commits) > 1)
    table = path.with_suffix(".md")
    _replace(table, "\n".join(lines) + "\n")
    return table


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: a run may be ended at any time."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
