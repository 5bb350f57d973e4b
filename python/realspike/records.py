"""The record of a run, epoch by epoch: whether what a file holds is one. Imports no torch."""

import csv
from collections.abc import Iterable, Mapping

from realspike.errors import UserError
from realspike.names import shown

LAYERS_FILE = "layers.csv"  # of a run's folder: firing rate and amplitudes by epoch and layer
FIELDS = ("epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "learning_rate")


class RecordError(UserError, ValueError):
    """A file holds no record of a run; the message names it and what is wrong."""


def checked(rows: object, source: object) -> list[dict]:
    """Return records with their numbers as numbers, which may be texts in ``rows``.

    Args:
        rows: Of `FIELDS` each, whatever a file held; epochs count from 1.
        source: The file, for messages.

    Raises:
        RecordError: if they are no such records.
    """
    if not isinstance(rows, list):
        raise RecordError(f"{source} holds no list of epochs; got {shown(rows)}")
    records = []
    for epoch, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or set(row) != set(FIELDS):
            raise RecordError(
                f"{source}: epoch {epoch} must have {', '.join(FIELDS)}; got {shown(row)}"
            )
        try:
            record = {name: float(row[name]) for name in FIELDS}
        except (TypeError, ValueError, OverflowError) as error:
            raise RecordError(f"{source}: epoch {epoch} must hold numbers; {error}") from error
        if record["epoch"] != epoch:
            raise RecordError(f"{source}: epoch {epoch} is called {record['epoch']:g}")
        for name in ("train_accuracy", "test_accuracy"):
            if not 0 <= record[name] <= 1:
                raise RecordError(f"{source}: {name} must be from 0 to 1; got {record[name]}")
        records.append(record | {"epoch": epoch})
    return records


def amplitudes(rows: Iterable[Mapping], source: object) -> dict[str, list[tuple]]:
    """Return (epoch, mean, deviation) of the amplitudes of every layer that has some.

    Raises:
        RecordError: if the rows are not those of a `LAYERS_FILE`.
    """
    found: dict[str, list[tuple]] = {}
    columns = ("epoch", "amplitude_mean", "amplitude_std")
    try:
        for row in rows:
            if row["amplitude_std"] != "":
                numbers = tuple(float(row[column]) for column in columns)
                found.setdefault(row["layer"], []).append(numbers)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RecordError(f"{source} holds no amplitudes of layers: {error!r:.80}") from error
    return found
