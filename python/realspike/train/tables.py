"""Setting a table as the paper does, with what the runs behind it were."""

import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from realspike import environment
from realspike.config.recipes import Cell, description, in_paper
from realspike.config.run_config import PLACES, resolve_key
from realspike.train.jobs import Job
from realspike.train.outcomes import Outcome
from realspike.train.paired import CONFIDENCE, Difference, differences

METHODS = {
    "none": "binary (vanilla)",
    "layer": "Real Spike, layer",
    "channel": "Real Spike, channel",
    "element": "Real Spike, element",
    "ternary": "ternary, no amplitudes",
}
ARCHITECTURES = {
    "resnet20": "ResNet20",
    "resnet19": "ResNet19",
    "vgg16": "VGG16",
    "sew_resnet18": "SEW-ResNet18",
    "sew_resnet34": "SEW-ResNet34",
}


@dataclass(frozen=True)
class Entry:
    """The entry of a cell in a table: the accuracies of its finished seeds, in %."""

    accuracies: tuple[float, ...]
    paper: "float | None" = None

    def __str__(self) -> str:
        if not self.accuracies:
            measured = "-"
        elif len(self.accuracies) == 1:
            measured = f"{self.accuracies[0]:.2f}"
        else:
            deviation = statistics.stdev(self.accuracies)
            measured = f"{statistics.mean(self.accuracies):.2f} ± {deviation:.2f}"
        return measured if self.paper is None else f"{measured} (paper {self.paper:.2f})"


def entries(jobs: list[Job]) -> dict[Cell, Entry]:
    found: dict[Cell, list[float]] = {}
    for job in jobs:
        accuracy = job.accuracy()
        found.setdefault(job.cell, []).extend([] if accuracy is None else [100 * accuracy])
    return {cell: Entry(tuple(values), cell.paper) for cell, values in found.items()}


def layout(table: int, found: dict[Cell, Entry]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table, as the paper sets it.

    A network that is not the paper's is named beside its data.
    """
    methods = [m for m in METHODS if any(cell.method == m for cell in found)]
    if table == 1:
        header = ["data", "T", *(METHODS[m] for m in methods)]
        keys = list(dict.fromkeys((_where(cell), cell.timesteps) for cell in found))
        rows = [[data, str(timesteps)] for data, timesteps in keys]
        for row, key in zip(rows, keys, strict=True):
            by_method = {c.method: e for c, e in found.items() if (_where(c), c.timesteps) == key}
            row += [str(by_method[m]) for m in methods]
        return header, rows
    if table == 2:
        data = list(dict.fromkeys(map(_where, found)))
        header = ["method", *data]
        by_both = {(cell.method, _where(cell)): entry for cell, entry in found.items()}
        rows = [[METHODS[m], *(str(by_both[m, d]) for d in data)] for m in methods]
        return header, rows
    header = ["data", "network", "T", "method", "accuracy"]
    rows = [
        [
            *(cell.data, network_of(cell), str(cell.timesteps)),
            *(METHODS[cell.method], str(entry)),
        ]
        for cell, entry in found.items()
    ]
    return header, rows


def network_of(cell: Cell) -> str:
    name = ARCHITECTURES.get(cell.architecture, cell.architecture)
    return f"{name} of width {cell.width}" if cell.width else name


def _where(cell: Cell) -> str:
    """Return the data of a cell of Tables 1 and 2, whose networks are ResNet20s unless they say."""
    network = network_of(cell)
    return cell.data if network == ARCHITECTURES["resnet20"] else f"{cell.data}, {network}"


def _network_and_steps(cell: Cell) -> str:
    return f"{_where(cell)}, T = {cell.timesteps}"


def title(
    table: int,
    data: str,
    cells: Iterable[Cell],
    overrides: Sequence[str] = (),
    measured: str = "test accuracy",
) -> str:
    """Return what a table shows, with what was changed in the networks or their training."""
    networks = ", ".join(dict.fromkeys(map(network_of, cells)))
    timesteps = ", ".join(dict.fromkeys(str(cell.timesteps) for cell in cells))
    subject = {
        1: f"{networks}, binary spikes against element-wise Real Spike",
        2: f"{networks}, T = {timesteps}, what shares an amplitude",
        3: "Real Spike on several networks",
    }[table]
    changes = ", ".join(_public(overrides))
    changes = f"; with {changes}" if changes else ""
    return f"Table {table} on {data}: {subject} ({measured}, last epoch, %{changes})"


def markdown(
    table: int,
    data: str,
    jobs: list[Job],
    ended: Mapping[str, Outcome],
    overrides: Sequence[str] = (),
) -> str:
    """Return the table as a page that says how it was measured.

    Args:
        table, data: As `title` takes them.
        jobs: The runs of the grid.
        ended: What those that are finished came to, by the names of their folders.
        overrides: Changes of every configuration.

    Raises:
        RunError: if the folder of a run holds another one.
    """
    found = entries(jobs)
    header, rows = layout(table, found)
    seeds = len({job.config.training.seed for job in jobs})
    lines = [
        f"# {title(table, data, found, overrides, jobs[0].config.data.measured)}",
        "",
        (f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed")
        + " of weights, batches and augmentation."
        + unfinished(found, seeds),
        f"Data: {description(data)}.",
        "",
        *_pipe_table(header, rows),
        "",
    ]
    if not in_paper(data):
        lines += [
            "The paper has no such table: it shows that the grid runs, not how the methods rank on "
            "the paper's data.",
            "",
        ]
    if found_differences := differences(jobs):
        lines += [*_paired(found_differences), ""]
    facts = environment.describe()
    command = f"realspike table {table} --data {data} --seeds {seeds}"
    command += " --ternary" * any(cell.emission == "ternary" for cell in found)
    command = " ".join([command, *map(shlex.quote, _public(overrides))])
    lines += [
        *_pipe_table(*_runs(ended)),
        "",
        "Seconds are those of training and testing, on a machine that may have had other work. The "
        "last column is the SHA-256 of the network's tensors.",
        "",
        f"All runs have {_shared_settings(jobs)}.",
        "",
        f"Measured with `{command}`, torch {facts['torch']}, realspike {facts['realspike']}.",
    ]
    return "\n".join(lines) + "\n"


def _public(overrides: Sequence[str]) -> list[str]:
    """Return overrides without where data lay and how they were read, which is nobody else's."""
    keys = (override.partition("=")[0].strip() for override in overrides)
    pairs = zip(overrides, keys, strict=True)
    return [override for override, key in pairs if ".".join(resolve_key(key)) not in PLACES]


def paired_rows(found: Iterable[Difference]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table of differences."""
    rows = []
    for difference in found:
        first, second = (METHODS[c.method] for c in (difference.first, difference.second))
        interval = difference.interval()
        ends = "-" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
        place = _network_and_steps(difference.first)
        count = str(len(difference.points))
        rows.append([place, f"{first} - {second}", f"{difference.mean:+.2f}", ends, count])
    return ["networks", "difference", "points", f"{CONFIDENCE:.0%} interval", "seeds"], rows


def _paired(found: Sequence[Difference]) -> list[str]:
    decided = sum(difference.decides for difference in found)
    text = "one has no interval."
    if intervals := sum(difference.interval() is not None for difference in found):
        text = (
            "intervals are Student's, each of one comparison alone, not widened for their number. "
            f"{decided} of {intervals} leave out 0."
        )
    return [*_pipe_table(*paired_rows(found)), "", f"Differences are paired by seed; {text}"]


def _runs(ended: Mapping[str, Outcome]) -> tuple[list[str], list[list[str]]]:
    header = ["run", "accuracy", "seconds", "commit", "on", "weights"]
    rows = []
    for name, run in ended.items():
        measured = f"{100 * run.accuracy:.2f}", f"{run.seconds:.0f}"
        where = run.commit[:12] or "-", run.device or "-"
        rows.append([name, *measured, *where, f"`{run.weights}`"])
    return header, rows


def _shared_settings(jobs: Iterable[Job]) -> str:
    """Return every key of the configuration that has the same value in all runs."""
    settings: list[dict[str, object]] = []
    for job in jobs:
        sections = job.config.to_dict().items()
        values = {f"{s}.{k}": value for s, keys in sections for k, value in keys.items()}
        settings.append({key: value for key, value in values.items() if key not in PLACES})
    first, *others = settings
    shared = (key for key in first if all(other[key] == first[key] for other in others))
    return ", ".join(f"`{key}={first[key]}`" for key in shared)


def unfinished(found: dict[Cell, Entry], seeds: int) -> str:
    """Return how many networks are missing, and where: a mean may be one of fewer seeds."""
    trained = {cell: len(entry.accuracies) for cell, entry in found.items()}
    missing = seeds * len(found) - sum(trained.values())
    if not missing:
        return ""
    several = len({_network_and_steps(cell) for cell in found}) > 1
    rows = [
        f"{METHODS[cell.method]}{f' ({_network_and_steps(cell)})' * several} has {count}"
        for cell, count in trained.items()
        if 0 < count < seeds
    ]
    text = f" {missing} of the {seeds * len(found)} networks are not trained yet"
    return f"{text}; of {seeds} seeds {', '.join(rows)}." if rows else f"{text}."


def _pipe_table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
