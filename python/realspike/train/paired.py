"""What one row of a table has more than another, paired by seed."""

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from realspike.config.recipes import Cell
from realspike.optional import require
from realspike.train.jobs import Job

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """The accuracy of ``first`` less that of ``second``, in points, of every seed of both.

    Two networks of a seed start from the same weights and see the same batches, so that their
    difference varies less than either.
    """

    first: Cell
    second: Cell
    points: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.points)

    def interval(self, confidence: float = CONFIDENCE) -> "tuple[float, float] | None":
        """Return the ends of Student's interval of the mean; None where one seed has no deviation.

        ``mean -+ t * s / sqrt(n)``, t being the quantile of n - 1 degrees of freedom.
        """
        n = len(self.points)
        if n < 2:
            return None
        quantile = require("scipy.stats").t.ppf((1 + confidence) / 2, n - 1)
        half = float(quantile) * statistics.stdev(self.points) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def decides(self) -> bool:
        """Whether the interval leaves out 0."""
        interval = self.interval()
        return interval is not None and not interval[0] <= 0 <= interval[1]


def differences(jobs: Iterable[Job]) -> list[Difference]:
    """Return every pair of methods of a table's networks, the later less the earlier one.

    Pairs without a seed that both have finished are left out.
    """
    accuracies: dict[Cell, dict[int, float]] = {}
    for job in jobs:
        of_cell = accuracies.setdefault(job.cell, {})
        if (accuracy := job.accuracy()) is not None:
            of_cell[job.config.training.seed] = 100 * accuracy
    found = []
    for second, first in itertools.combinations(accuracies, 2):
        if _but_method(first) != _but_method(second):
            continue
        both = sorted(accuracies[first].keys() & accuracies[second].keys())
        points = tuple(accuracies[first][seed] - accuracies[second][seed] for seed in both)
        if points:
            found.append(Difference(first, second, points))
    return found


def _but_method(cell: Cell) -> tuple:
    return cell.data, cell.architecture, cell.timesteps, cell.width
