"""Running the grid behind a table, cell by cell, and setting the table."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from realspike import environment
from realspike.config import run_config
from realspike.config.recipes import Cell, description, in_paper
from realspike.config.run_config import RunConfig
from realspike.errors import RunError
from realspike.train.folder import CONFIG_FILE
from realspike.train.history import read_csv
from realspike.train.run import resume, start
from realspike.train.saving import METRICS_FILE
from realspike.train.statistics import last_step

METHODS = {
    "none": "binary (vanilla)",
    "layer": "Real Spike, layer",
    "channel": "Real Spike, channel",
    "element": "Real Spike, element",
}
ARCHITECTURES = {
    "resnet20": "ResNet20",
    "resnet19": "ResNet19",
    "vgg16": "VGG16",
    "sew_resnet18": "SEW-ResNet18",
    "sew_resnet34": "SEW-ResNet34",
}


@dataclass(frozen=True)
class Job:
    """One cell with one seed, and the folder of its run."""

    cell: Cell
    config: RunConfig
    folder: Path

    def accuracy(self) -> "float | None":
        """Return the test accuracy of the last epoch, None if the run is not finished.

        Raises:
            RunError: if the folder holds a run of another configuration.
        """
        if not (self.folder / METRICS_FILE).exists():
            return None
        self.check()
        records = read_csv(self.folder / METRICS_FILE)
        training = self.config.training
        done = len(records) == training.epochs or last_step(self.folder) == training.max_steps
        return records[-1]["test_accuracy"] if done else None

    def check(self) -> None:
        stored = self.folder / CONFIG_FILE
        if stored.exists() and run_config.read(stored) != self.config:
            raise RunError(
                f"{self.folder} holds a run of another configuration: --out chooses another folder"
            )


def jobs_of(
    cells: list[Cell], seeds: int, out: Path, overrides: "dict[str, object] | None" = None
) -> list[Job]:
    """Return the runs behind a table, seed by seed."""
    return [
        Job(
            cell,
            cell.config(seed).replaced(**(overrides or {})),
            out / f"{cell.name}_seed{seed}",
        )
        for seed in range(seeds)
        for cell in cells
    ]


def run(
    jobs: list[Job],
    at_most: "int | None" = None,
    on_job: Callable[[Job, int], None] = lambda job, left: None,
    **options,
) -> int:
    """Train what is not yet trained, ``at_most`` that many; resume what was stopped.

    Returns:
        The signal that stopped it, or 0.
    """
    missing = [job for job in jobs if job.accuracy() is None]
    for number, job in enumerate(missing[:at_most]):
        on_job(job, len(missing) - number)
        job.check()
        begun = (job.folder / CONFIG_FILE).exists()
        result = (
            resume(job.folder, **options) if begun else start(job.config, job.folder, **options)
        )
        if result.stopped_by:
            return result.stopped_by
    return 0


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
    methods = [m for m in METHODS if any(cell.granularity == m for cell in found)]
    if table == 1:
        header = ["data", "T", *(METHODS[m] for m in methods)]
        keys = list(dict.fromkeys((_where(cell), cell.timesteps) for cell in found))
        rows = [[data, str(timesteps)] for data, timesteps in keys]
        for row, key in zip(rows, keys, strict=True):
            by_method = {
                c.granularity: e for c, e in found.items() if (_where(c), c.timesteps) == key
            }
            row += [str(by_method[m]) for m in methods]
        return header, rows
    if table == 2:
        data = list(dict.fromkeys(map(_where, found)))
        header = ["method", *data]
        by_both = {(cell.granularity, _where(cell)): entry for cell, entry in found.items()}
        rows = [[METHODS[m], *(str(by_both[m, d]) for d in data)] for m in methods]
        return header, rows
    header = ["data", "network", "T", "method", "accuracy"]
    rows = [
        [
            *(cell.data, network_of(cell), str(cell.timesteps)),
            *(METHODS[cell.granularity], str(entry)),
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


def title(table: int, data: str, cells: Iterable[Cell], overrides: Sequence[str] = ()) -> str:
    """Return what a table shows, with what was changed in the networks or their training."""
    networks = ", ".join(dict.fromkeys(map(network_of, cells)))
    timesteps = ", ".join(dict.fromkeys(str(cell.timesteps) for cell in cells))
    subject = {
        1: f"{networks}, binary spikes against element-wise Real Spike",
        2: f"{networks}, T = {timesteps}, what shares an amplitude",
        3: "Real Spike on several networks",
    }[table]
    changes = f"; with {', '.join(overrides)}" if overrides else ""
    return f"Table {table} on {data}: {subject} (test accuracy of the last epoch, %{changes})"


def markdown(
    table: int, data: str, jobs: list[Job], found: dict[Cell, Entry], overrides: Sequence[str] = ()
) -> str:
    """Return the table as a page that says how it was measured, with which overrides."""
    header, rows = layout(table, found)
    seeds = len({job.config.training.seed for job in jobs})
    lines = [
        f"# {title(table, data, found, overrides)}",
        "",
        f"Mean ± standard deviation over {seeds} seeds of weights, batches and augmentation."
        + _missing_of(found, seeds),
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
    config = jobs[0].config
    facts = environment.describe()
    widths = dict.fromkeys(str(job.config.network_config().width) for job in jobs)
    command = " ".join([f"realspike table {table} --data {data} --seeds {seeds}", *overrides])
    lines += [
        f"Every seed: {'; '.join(_seeds_of(found))}.",
        "",
        f"Network of width {', '.join(widths)}; {config.training.epochs} epochs of "
        f"SGD, batch {config.data.batch_size}, learning rate {config.training.learning_rate} along "
        f"a cosine, weight decay {config.training.weight_decay}, crop {config.data.crop}; "
        f"{_options_of(config)}.",
        f"Measured with `{command}` on {facts['cpu']}, torch {facts['torch']}, "
        f"realspike {facts['realspike']}; the checkpoint of every run holds its commit.",
    ]
    return "\n".join(lines) + "\n"


def _options_of(config: RunConfig) -> str:
    """Return what decides the beginning and the pace of the amplitudes."""
    values = config.to_dict()
    names = ("network.zero_init_residual", "network.threshold_norm", "training.scale_amplitudes")
    keys = (name.split(".") for name in names)
    return ", ".join(f"{key}={str(values[section][key]).lower()}" for section, key in keys)


def _missing_of(found: dict[Cell, Entry], seeds: int) -> str:
    missing = sum(seeds - len(entry.accuracies) for entry in found.values())
    total = seeds * len(found)
    return f" {missing} of the {total} networks are not trained yet." if missing else ""


def _seeds_of(found: dict[Cell, Entry]) -> list[str]:
    return [
        f"T={cell.timesteps} {cell.architecture} {cell.granularity} "
        + " ".join(f"{value:.2f}" for value in entry.accuracies)
        for cell, entry in found.items()
    ]


def _pipe_table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
