"""The lines that a run prints while it trains: network, data, and how far it is."""

import time

import lightning.pytorch as lightning
import torch

from realspike.config.run_config import RunConfig
from realspike.inspect.spikes import described
from realspike.progress import bar
from realspike.train.history import History
from realspike.train.readback import Readback

_EVERY = {True: 0.5, False: 30.0}  # seconds, by whether somebody looks at a terminal


class Reporting(lightning.Callback):
    """Prints what is trained on what, then a bar, or a line every 30 s where there is no terminal.

    The loss is shown once it has arrived from the device, which is not waited for.

    Args:
        console: See `realspike.output.console`; a terminal or not.
        config: Of the run.
        history: Whose sums give the loss of the epoch so far.
        samples: How many train and how many test.
        clock: Gives seconds.
    """

    def __init__(
        self,
        console,
        config: RunConfig,
        history: History,
        samples: tuple[int, int],
        clock=time.monotonic,
    ):
        self.console, self.config, self.history = console, config, history
        self.samples, self.clock = samples, clock
        self._batches = 0
        self._bar = None
        self._loss: Readback | None = None  # on its way from the device, to be shown

    def on_train_start(self, trainer, module) -> None:
        train, test = self.samples
        parameters = sum(parameter.numel() for parameter in module.network.parameters())
        processes = f" in {trainer.world_size} processes" if trainer.world_size > 1 else ""
        count = torch.get_num_threads() if module.device.type == "cpu" else 0
        threads = f", {count} thread{'s' * (count > 1)}" if count else ""
        what = described(module.network, self.config.network_config())
        self._line(
            f"{what}, {parameters:,} parameters, "
            f"on {module.device}{threads}{processes}: {train:,} training and {test:,} "
            f"{self.config.data.tested_on} samples of {self.config.data.name}"
        )
        last = self.config.training.max_steps
        if last and last <= module.warmup_steps:
            self._line(
                f"note: the run ends in its warm-up: training.max_steps={last} of "
                f"{module.warmup_steps} steps over which the learning rate rises"
            )
        # An epoch that was begun by the run before this one does not start again.
        self._began = self._shown = self._epoch_began = self.clock()
        self._images = 0
        if self.console.is_terminal:
            self._bar = bar(self.console, says_time_left=False)  # `status` says it
            self._task = self._bar.add_task("", total=self._total(trainer))
            self._bar.start()

    def _total(self, trainer) -> int:
        """Return the batches of the whole run."""
        training = self.config.training
        total = training.epochs * trainer.num_training_batches
        return min(total, (training.max_steps or total) * training.accumulate)

    def on_train_epoch_start(self, trainer, module) -> None:
        self._epoch_began, self._images = self.clock(), 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._batches += 1
        self._images += len(batch[1]) * trainer.world_size
        if self._is_due():
            self._loss = self.history.running_loss()
        if self._loss is None or not self._loss.has_arrived():
            return
        loss, self._loss = self._loss.read().item(), None
        now = self._shown
        total, batches = self._total(trainer), trainer.num_training_batches
        epochs = -(-total // batches)
        done = trainer.current_epoch * batches + batch_idx + 1
        left = (now - self._began) / self._batches * (total - done)
        text = status(
            *(trainer.current_epoch + 1, epochs, batch_idx + 1, batches),
            self._images / (now - self._epoch_began),
            loss,
            left,
        )
        self._show(text, completed=done)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, *_) -> None:
        if self._is_due():
            epoch = f"epoch {trainer.current_epoch + 1}/{self.config.training.epochs}"
            self._show(f"{epoch}, test batch {batch_idx + 1}/{trainer.num_val_batches[0]}")

    def _is_due(self) -> bool:
        now = self.clock()
        due = now - self._shown >= _EVERY[self.console.is_terminal]
        self._shown = now if due else self._shown
        return due

    def _show(self, text: str, **update) -> None:
        if self._bar:
            self._bar.update(self._task, description=text, **update)
        else:
            self._line(text)

    def on_train_end(self, trainer, module) -> None:
        if self._bar:
            self._bar.stop()

    def on_exception(self, trainer, module, exception) -> None:
        self.on_train_end(trainer, module)

    def _line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)


def status(
    epoch: int,
    epochs: int,
    batch: int,
    batches: int,
    images_per_second: float,
    loss: float,
    seconds_left: float,
) -> str:
    """Return how far a run is; epochs and batches are counted from 1."""
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"epoch {epoch}/{epochs}, batch {batch}/{batches}: {images_per_second:,.0f} images/s, "
        f"loss {loss:.4f}, {hours}:{minutes:02}:{seconds:02} left"
    )
