"""A run that diverged ends before it replaces a good checkpoint."""

import math

import lightning.pytorch as lightning
import torch
from torch import Tensor

from realspike.errors import RunFailed
from realspike.train.readback import Readback

INTERVAL = 50  # batches between two looks at the loss


class Diverged(RunFailed):
    """The loss or a weight is not finite."""


class DivergenceCheck(lightning.Callback):
    """Looks at the losses of all processes every `INTERVAL` batches, and before every checkpoint
    at the weights too: spikes hide a NaN, as no current that is NaN reaches the threshold."""

    def __init__(self):
        self._losses = torch.zeros((), dtype=torch.float64)
        self._look: Readback | None = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self._losses = self._losses.to(module.device) + outputs["sums"][0]
        if (batch_idx + 1) % INTERVAL == 0:
            self._look = Readback(self._total(trainer))
        # Processes that go on until each has seen it would wait for those that have left.
        if self._look and (trainer.world_size > 1 or self._look.has_arrived()):
            self._check(trainer, self._look)

    def on_validation_batch_end(self, trainer, module, outputs, *_) -> None:
        self._losses = self._losses.to(module.device) + outputs["sums"][0]

    def on_train_epoch_end(self, trainer, module) -> None:
        self.check(trainer, module)

    def check(self, trainer, module) -> None:
        """Raise `Diverged` unless the run may be saved."""
        self._check(trainer, Readback(self._total(trainer)))
        for name, tensor in module.network.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise self._diverged(trainer, f"{name} has values that are not finite")

    def _total(self, trainer) -> Tensor:
        return trainer.strategy.reduce(self._losses.clone(), reduce_op="sum")

    def _check(self, trainer, look: Readback) -> None:
        self._look = None
        if not math.isfinite(total := look.read().item()):
            raise self._diverged(trainer, f"the loss is {total}")

    def _diverged(self, trainer, what: str) -> Diverged:
        return Diverged(
            f"training diverged in epoch {trainer.current_epoch + 1}: {what}; the checkpoints are "
            "those before; a lower training.learning_rate or training.clip_gradient may help"
        )
