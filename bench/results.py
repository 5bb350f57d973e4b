"""Rows of a comparison and the files that keep them."""

import json
import re
from dataclasses import asdict, dataclass
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

    def cell(self, name: str) -> str:
        if name not in self.ratios:
            return ""
        return f"{self.ratios[name]:.2f}" + ("x" if self.unit is None else "")


def _table(rows: list[Row], with_times: bool) -> list[str]:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.ratios))
    header = ["case", *(["ours, us"] if with_times else []), *peers]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = [row.name]
        if with_times:
            cells.append(f"{row.seconds * 1e6:.1f}")
        cells += [row.cell(peer) for peer in peers]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def write_results(folder: Path, machine: dict, rows: list[Row]) -> Path:
    """Write <machine>.json and <machine>.md; return the path of the table.

    Times are shown for GPUs alone: on a shared CPU only the ratios mean something.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", machine["device"]).strip("-").lower()
    content = {"machine": machine, "rows": [asdict(row) for row in rows]}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n")
    lines = [f"# {machine['device']}", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += ["", "Fastest round of each peer over ours in one run; above 1x we are faster."]
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        unit = of_group[0].unit
        lines += ["", f"## {group}", ""] + ([] if unit is None else [f"In {unit}.", ""])
        timed = "cuda" in machine and any(row.seconds for row in of_group)
        lines += _table(of_group, with_times=timed)
    path = folder / f"{stem}.md"
    path.write_text("\n".join(lines) + "\n")
    return path
