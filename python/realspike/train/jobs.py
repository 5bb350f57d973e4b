"""Running the grid behind a table, cell by cell."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from realspike import checkpoint
from realspike.config import run_config
from realspike.config.recipes import Cell
from realspike.config.run_config import ConfigError, RunConfig
from realspike.errors import InUse, RunError
from realspike.train.folder import CONFIG_FILE
from realspike.train.history import read_csv
from realspike.train.outcomes import Outcome
from realspike.train.run import resume, start
from realspike.train.saving import METRICS_FILE, NETWORK_FILE
from realspike.train.statistics import last_note


@dataclass(frozen=True)
class Job:
    """One cell with one seed, the folder of its run, and what the run came to elsewhere."""

    cell: Cell
    config: RunConfig
    folder: Path
    known: "Outcome | None" = None

    def accuracy(self) -> "float | None":
        """Return the test accuracy of the last epoch, None if the run is not finished.

        Raises:
            RunError: if the folder holds a run of another configuration.
        """
        measured = self._measured()
        return self.known.accuracy if measured is None and self.known else measured

    def outcome(self) -> "Outcome | None":
        """Return what the run came to, here if it is finished here; None if it is not finished.

        Raises:
            RunError: as `accuracy`.
            CheckpointError: if its network cannot be read.
        """
        if (accuracy := self._measured()) is None:
            return self.known
        loaded = checkpoint.load(self.folder / NETWORK_FILE)
        return Outcome(
            accuracy=accuracy,
            seconds=last_note(self.folder)[1],
            commit=loaded.training["commit"],
            device=loaded.training.get("device", ""),
            weights=checkpoint.digest(loaded.network),
            config=self.config,
        )

    def _measured(self) -> "float | None":
        if not (self.folder / METRICS_FILE).exists():
            return None
        self.check()
        records = read_csv(self.folder / METRICS_FILE)
        training = self.config.training
        last_step, _ = last_note(self.folder)
        done = len(records) == training.epochs or last_step == training.max_steps
        return records[-1]["test_accuracy"] if done else None

    def check(self) -> None:
        stored = self.folder / CONFIG_FILE
        if stored.exists() and run_config.read(stored).anywhere() != self.config.anywhere():
            raise RunError(
                f"{self.folder} holds a run of another configuration: --out chooses another folder"
            )


def jobs_of(
    cells: list[Cell],
    seeds: int,
    out: Path,
    overrides: "Mapping[str, object] | None" = None,
    known: "Mapping[str, Outcome] | None" = None,
) -> list[Job]:
    """Return the runs behind a table, seed by seed.

    Args:
        cells: Of the table.
        seeds: How many.
        out: The folder of the runs' folders.
        overrides: Changes of every configuration.
        known: What runs came to elsewhere, by the names of their folders.

    Raises:
        ConfigError: if one of those was another run, or is of no cell: the page of the table would
            lose it.
    """
    jobs = []
    for seed in range(seeds):
        for cell in cells:
            name, config = f"{cell.name}_seed{seed}", cell.config(seed).replaced(**overrides or {})
            outcome = (known or {}).get(name)
            if outcome and not outcome.is_of(config):
                raise ConfigError(
                    f"{name} is known with another configuration"
                    f"{_settings_of_its_own(outcome, [config])}: --save chooses another file"
                )
            jobs.append(Job(cell, config, out / name, outcome))
    lost = (known or {}).keys() - {job.folder.name for job in jobs}
    if known and lost:
        name = min(lost)
        raise ConfigError(
            f"{name} is known, one of {len(lost)} runs that the table would lose"
            f"{_settings_of_its_own(known[name], [job.config for job in jobs])}: give what it was "
            "made with, or --save another file"
        )
    return jobs


def _settings_of_its_own(outcome: Outcome, configs: list[RunConfig]) -> str:
    """Return what a run is configured with and none of the others is."""
    others = [config.anywhere().to_dict() for config in configs]
    own = [
        f"{section}.{key}={'null' if value is None else value}"
        for section, keys in outcome.config.to_dict().items()
        for key, value in keys.items()
        if all(other[section][key] != value for other in others)
    ]
    return f" ({', '.join(own)})" if own else ""


def run(
    jobs: list[Job],
    at_most: "int | None" = None,
    on_job: Callable[[Job, int], None] = lambda job, left: None,
    **options,
) -> int:
    """Train what is not yet trained, ``at_most`` that many; resume what was stopped.

    Several processes may do so at once: what another one trains is left to it.

    Args:
        jobs: The runs of the grid.
        at_most: How many of them to train; None: all.
        on_job: Called before each of them, with how many are left.
        options: See `realspike.train.resume`.

    Returns:
        The signal that stopped it, or 0.
    """
    trained = 0
    for job in jobs:
        if trained == at_most:
            break
        if job.accuracy() is not None:
            continue
        on_job(job, sum(each.accuracy() is None for each in jobs))
        job.check()
        begun = (job.folder / CONFIG_FILE).exists()
        try:
            if begun:
                result = resume(job.folder, places=job.config.places(), **options)
            else:
                result = start(job.config, job.folder, **options)
        except InUse:
            continue
        if result.stopped_by:
            return result.stopped_by
        trained += 1
    return 0
