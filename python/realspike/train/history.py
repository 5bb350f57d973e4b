"""The record of a run, epoch by epoch; it travels in the checkpoint, so that it continues."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import Tensor

from realspike.files import write_atomically
from realspike.records import FIELDS, RecordError, checked
from realspike.train.readback import Readback


class History(lightning.Callback):
    """Adds up what the steps return, over all processes.

    Args:
        on_epoch: Called with the record of every epoch, by the first process.
    """

    def __init__(self, on_epoch: Callable[[dict], None] = lambda record: None):
        self.on_epoch = on_epoch
        self.records: list[dict] = []
        self._train = torch.zeros(3, dtype=torch.float64)
        self._test = torch.zeros(3, dtype=torch.float64)
        self._rate = 0.0

    def on_train_start(self, trainer, module) -> None:
        # An epoch that was begun by the run before this one does not start again.
        self._train = self._train.to(module.device)

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._train += outputs["sums"]

    def on_validation_epoch_start(self, trainer, module) -> None:
        self._test = torch.zeros(3, dtype=torch.float64, device=module.device)

    def on_validation_batch_end(self, trainer, module, outputs, *_) -> None:
        self._test += outputs["sums"]

    def running_loss(self) -> Readback:
        """Return the mean of this process's training loss over the epoch so far."""
        return Readback(self._train[0] / self._train[2])

    def gather(self, trainer) -> None:
        """Make the sums those of all processes, before a checkpoint in the middle of an epoch."""
        self._train = _total(trainer, self._train)

    def on_train_epoch_end(self, trainer, module) -> None:
        train, test = _total(trainer, self._train), _total(trainer, self._test)
        self._train = torch.zeros_like(self._train)
        record = {
            "epoch": trainer.current_epoch + 1,
            "train_loss": (train[0] / train[2]).item(),
            "train_accuracy": (train[1] / train[2]).item(),
            "test_loss": (test[0] / test[2]).item(),
            "test_accuracy": (test[1] / test[2]).item(),
            "learning_rate": self._rate,
        }
        self.records.append(record)
        if trainer.is_global_zero:
            if trainer.logger:
                values = {name: value for name, value in record.items() if name != "epoch"}
                trainer.logger.log_metrics(values, step=record["epoch"])
            self.on_epoch(record)

    def state_dict(self) -> dict:
        return {"records": self.records, "train": self._train.cpu()}

    def load_state_dict(self, state: dict) -> None:
        self.records = state["records"]
        self._train = of_first_process(state["train"])


def _total(trainer, sums: Tensor) -> Tensor:
    return trainer.strategy.reduce(sums.clone(), reduce_op="sum")


def of_first_process(sums: Tensor) -> Tensor:
    """Return sums of all processes, which were saved, in the first one, and zeros in the others."""
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    return sums if first else torch.zeros_like(sums)


def write_csv(path: Path, records: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomically(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict]:
    """Return the records of ``metrics.csv``.

    Raises:
        OSError: if it cannot be read.
        RecordError: if it is not such a file.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is no record of a run: {error}") from error
    if not rows:
        raise RecordError(f"{path} is no record of a run: it has no epochs")
    return checked(rows, path)
