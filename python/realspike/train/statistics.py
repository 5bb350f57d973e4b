"""What a run was like, for CSV files and TensorBoard; it travels in the checkpoint.

``steps.csv`` has loss, learning rate and speed every N steps; ``layers.csv`` the firing rate and
the amplitudes of every layer on the test data, epoch by epoch.
"""

import csv
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch

from realspike.config.run_config import RunConfig
from realspike.files import write_atomically
from realspike.records import LAYERS_FILE
from realspike.train.history import History, of_first_process
from realspike.train.readback import Readback
from realspike_ops import RealSpikeLIF

STEPS_FILE = "steps.csv"
_STEP = ("step", "epoch", "loss", "learning_rate", "images_per_second", "seconds")
_AMPLITUDE = ("amplitude_mean", "amplitude_std", "amplitude_min", "amplitude_max")
_LAYER = ("epoch", "layer", "firing_rate", *_AMPLITUDE)


class Statistics(lightning.Callback):
    """Notes the steps and the layers of a run.

    Args:
        config: Of the run.
        history: Whose last record the hyperparameters are shown with.
        clock: Gives seconds.
    """

    def __init__(self, config: RunConfig, history: History, clock=time.monotonic):
        self.config, self.history, self.clock = config, history, clock
        self.steps: list[dict] = []
        self.layers: list[dict] = []
        self.seconds = 0.0  # of training and testing, in all the processes that the run has had
        # Since the last note; seconds are those of processes before.
        self._sums, self._since = torch.zeros(3, dtype=torch.float64), 0.0
        self._pending: tuple[Any, dict, float, Readback] | None = None
        self._amplitudes: dict[str, dict] = {}
        self._fired: dict[str, torch.Tensor] = {}
        self._chances: dict[str, int] = {}
        self._handles: list = []

    def on_train_start(self, trainer, module) -> None:
        self._last = self.clock()
        self._noted, self._since = self._last - self._since, 0.0
        self._sums = self._sums.to(module.device)

    def on_train_epoch_start(self, trainer, module) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=module.device)
        self._noted = self.clock()  # a test is no training

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._sums += outputs["sums"]
        self._note(only_if_arrived=True)
        step = trainer.global_step
        training = self.config.training
        due = step % training.log_every == 0 or step == training.max_steps
        if step == self._step or not (due or trainer.is_last_batch):
            return
        self._note()
        sums = Readback(trainer.strategy.reduce(self._sums.clone(), reduce_op="sum"))
        now = self.clock()
        self._tick(now)
        row = {"step": step, "epoch": trainer.current_epoch + 1, "learning_rate": self._rate}
        row["seconds"] = self.seconds
        self._pending = trainer, row, max(now - self._noted, 1e-9), sums
        self._noted = now
        self._sums = torch.zeros_like(self._sums)
        self._note(only_if_arrived=True)

    def _note(self, only_if_arrived: bool = False) -> None:
        """Note the last step that was due, whose sums may be on their way from the device."""
        if self._pending is None or (only_if_arrived and not self._pending[-1].has_arrived()):
            return
        trainer, row, seconds, sums = self._pending
        self._pending = None
        loss, _, images = sums.read().tolist()
        row |= {"loss": loss / images, "images_per_second": images / seconds}
        self.steps.append({name: row[name] for name in _STEP})
        if trainer.logger and trainer.is_global_zero:
            shown = {f"steps/{name}": row[name] for name in _STEP if name not in ("step", "epoch")}
            trainer.logger.log_metrics(shown, step=row["step"])

    def _tick(self, now: float) -> None:
        self.seconds += now - self._last
        self._last = now

    def on_validation_epoch_start(self, trainer, module) -> None:
        self._fired, self._chances = {}, {}
        for name, lif in module.network.named_modules():
            if isinstance(lif, RealSpikeLIF):
                self._handles.append(lif.register_forward_hook(self._count(name)))

    def _count(self, name: str):
        def hook(lif, _, output):
            self._fired[name] = self._fired.get(name, 0) + output.detach().count_nonzero()
            self._chances[name] = self._chances.get(name, 0) + output.numel()

        return hook

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *_) -> None:
        if batch_idx:
            return
        # With the weights that are tested, which may be an average.
        self._amplitudes = {}
        for name, lif in module.network.named_modules():
            if isinstance(lif, RealSpikeLIF) and lif.amplitude is not None:
                values = lif.amplitude.detach().double()
                found = (values.mean(), values.std(correction=0), values.min(), values.max())
                values = torch.stack(found).tolist()
                self._amplitudes[name] = dict(zip(_AMPLITUDE, values, strict=True))

    def on_validation_epoch_end(self, trainer, module) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def on_train_epoch_end(self, trainer, module) -> None:
        self._note()
        self._tick(self.clock())
        epoch = trainer.current_epoch + 1
        if not self._fired:
            return
        fired = torch.stack([*self._fired.values()]).double()
        chances = fired.new_tensor([*self._chances.values()])
        fired, chances = trainer.strategy.reduce(torch.stack([fired, chances]), reduce_op="sum")
        shown: dict[str, float] = {}
        for name, rate in zip(self._fired, (fired / chances).tolist(), strict=True):
            found = {"firing_rate": rate, **self._amplitudes.get(name, {})}
            self.layers.append({"epoch": epoch, "layer": name, **found})
            shown |= {f"{key}/{name}": value for key, value in found.items()}
        if trainer.logger and trainer.is_global_zero:
            trainer.logger.log_metrics(shown, step=epoch)

    def on_train_end(self, trainer, module) -> None:
        if trainer.logger and trainer.is_global_zero and self.history.records:
            sections = self.config.to_dict()
            keys = {f"{s}.{k}": v for s, values in sections.items() for k, v in values.items()}
            keys = {key: "null" if value is None else value for key, value in keys.items()}
            last = self.history.records[-1]
            metrics = {f"hp/{name}": last[name] for name in ("test_accuracy", "test_loss")}
            trainer.logger.log_hyperparams(keys, metrics)

    def gather(self, trainer) -> None:
        """Make the sums those of all processes, before a checkpoint in the middle of an epoch."""
        self._sums = trainer.strategy.reduce(self._sums.clone(), reduce_op="sum")
        self._tick(self.clock())
        self._since = self._last - self._noted

    def state_dict(self) -> dict:
        self._note()
        return {
            **{"steps": self.steps, "layers": self.layers, "seconds": self.seconds},
            **{"sums": self._sums.cpu(), "since": self._since},
        }

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.layers = [*state["steps"]], [*state["layers"]]
        self.seconds = state["seconds"]
        if "sums" in state:  # which older checkpoints have not
            self._sums, self._since = of_first_process(state["sums"]), state["since"]


def write(out: Path, state: dict) -> None:
    """Write both files of what `Statistics.state_dict` returned."""
    for file, names, rows in (
        (STEPS_FILE, _STEP, state["steps"]),
        (LAYERS_FILE, _LAYER, state["layers"]),
    ):
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(out / file, text.getvalue().encode())


def last_note(out: Path) -> tuple[int, float]:
    """Return the last step that was noted in the folder of a run and the seconds until then; zeros
    without one.

    Raises:
        OSError: if the file cannot be read.
    """
    path = out / STEPS_FILE
    if not path.exists():
        return 0, 0.0
    with open(path, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    return (int(rows[-1]["step"]), float(rows[-1]["seconds"])) if rows else (0, 0.0)
