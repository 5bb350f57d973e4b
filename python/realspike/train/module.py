"""The module that Lightning trains: the loss, the optimizer and its schedule."""

import contextlib
import math
import sys
import warnings
from collections.abc import Sequence

import lightning.pytorch as lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike.config.run_config import RunConfig
from realspike.data.preprocess import Preprocess
from realspike.data.transfer import sent
from realspike.first_input import example_input
from realspike.random_numbers import numbers_from
from realspike.train.captured import Captured, CudaGraphs
from realspike.train.optimizer import adamw, sgd
from realspike.train.placement import Placement
from realspike.train.step import Step, make_ordinary, rates_of
from realspike_ops import compress_spikes, fuse


def learning_rate_factor(step: int, steps: int, warmup: int, restarts: Sequence[int] = ()) -> float:
    """Return what the learning rate is multiplied by: a linear rise, then cosines to 0.

    Args:
        step: From 0.
        steps: Of the run.
        warmup: Steps of the rise.
        restarts: Steps at which a cosine begins anew (Loshchilov and Hutter, ICLR 2017).
    """
    if step < warmup:
        return (step + 1) / warmup
    begin = max((warmup, *(restart for restart in restarts if restart <= step)))
    end = min((steps, *(restart for restart in restarts if restart > step)))
    return (1 + math.cos(math.pi * (step - begin) / max(1, end - begin))) / 2


class SpikingClassifier(lightning.LightningModule):
    """A network, what its input goes through, and how it is trained.

    Its steps return sums over the batch ([loss, correct, samples], float64), which `History` adds
    up.

    Args:
        config: Of the run.
        network: What is trained.
        mean, std: Per channel, see `realspike.data.Splits`.
        steps_per_epoch: Of the optimizer.
        placement: How it is computed. Where steps are captured, a call of `training_step` is a
            `Step`, gradients and optimizer included, and Lightning's own do nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        steps_per_epoch: int,
        placement: Placement,
    ):
        super().__init__()
        self.placement = placement
        self.config = config
        # Asking Lightning for the number would set up the loader before its state is restored.
        self.steps_per_epoch = steps_per_epoch
        self.network = network
        image_size = config.network_config().image_size
        self.preprocess = Preprocess(config.data, mean, std, image_size)
        self._captured: Captured | None = None

    def _augmentation_seed(self, batch_idx: int) -> int:
        entropy = (self.config.training.seed, self.current_epoch, batch_idx, self.global_rank)
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _loss(
        self, samples: Tensor, labels: Tensor, draws: "Tensor | None" = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch and its sums."""
        inputs = self.preprocess(samples, draws)
        if self.placement.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        compress = self.training and self.config.training.compress_spikes
        with compress_spikes() if compress else contextlib.nullcontext():
            logits = self.network(inputs).float()
        loss = F.cross_entropy(logits, labels)
        return loss, _sums(loss, logits, labels)

    def training_step(self, batch, batch_idx: int) -> dict:
        seed = self._augmentation_seed(batch_idx)
        with numbers_from(seed):
            return self._train_on(batch, batch_idx, seed)

    def _train_on(self, batch, batch_idx: int, seed: int) -> dict:
        samples, labels = batch
        draws = self.preprocess.draw(len(labels), seed)
        if self._captured is None:
            loss, sums = self._loss(samples, labels, sent(draws, samples.device))
            return {"loss": loss, "sums": sums}
        rates = rates_of(self._optimizer)
        if samples.is_cuda:
            draws, rates = draws.pin_memory(), rates.pin_memory()
        accumulate = self.config.training.accumulate
        last = (batch_idx + 1) % accumulate == 0 or self.trainer.is_last_batch
        sums = self._captured(
            *(samples, labels, draws, rates), first=batch_idx % accumulate == 0, last=last
        )
        return {"loss": sums[0] / sums[2], "sums": sums}

    def validation_step(self, batch, batch_idx: int) -> dict:
        place = self.config.training.seed, self.current_epoch, batch_idx, self.global_rank
        with numbers_from(*place):
            return {"sums": self._loss(*batch)[1]}

    # What a captured step has done already.

    def backward(self, loss: Tensor, *args, **kwargs) -> None:
        if self._captured is None:
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer) -> None:
        if self._captured is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_validation_model_zero_grad(self) -> None:
        # Recorded steps add to the gradients where they are.
        if self._captured is None:
            super().on_validation_model_zero_grad()

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        if self._captured is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        elif optimizer_closure is not None:
            optimizer_closure()

    def _fuse(self) -> None:
        """Fuse what can be fused; a network without such layers is trained as it is.

        Lightning has replaced batch norms by those of several processes before.
        """
        example = example_input(self.config.network_config()).to(self.device)
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            warnings.filterwarnings("ignore", message="nothing is fused")
            fuse(self.network, example)

    def on_train_start(self) -> None:
        if self.config.training.fuse:
            self._fuse()
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        self._optimizer = optimizer
        if self.placement.captures:
            training, precision = self.config.training, self.placement.trainer["precision"]
            settings = training.accumulate, training.clip_gradient, precision
            step = Step(self._loss, self._optimizer, self.device, *settings)
            self._captured = Captured(step, CudaGraphs(), self.device)
        else:
            make_ordinary(self._optimizer)
        # A run that goes on to more epochs than its checkpoint knew of has another rate here.
        schedule = self.lr_schedulers()
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        rates = [
            base * factor(schedule.last_epoch)
            for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if self.trainer.global_step == self.config.training.max_steps:
            self.trainer.should_stop = True  # with the test of an epoch's end

    @property
    def warmup_steps(self) -> int:
        return round(self.steps_per_epoch * self.config.training.warmup_epochs)

    def configure_optimizers(self):
        training = self.config.training
        optimizer = {"sgd": sgd, "adamw": adamw}[training.optimizer](
            self.network,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            scale_amplitudes=training.scale_amplitudes,
            amplitude_lr=training.amplitude_rate,
            adam_amplitudes=training.amplitude_optimizer == "adam",
            momentum=training.momentum,
        )
        steps = min(self.steps_per_epoch * training.epochs, training.max_steps or sys.maxsize)
        warmup = self.warmup_steps
        restarts = [self.steps_per_epoch * epoch for epoch in training.restart_epochs()]
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, warmup, restarts)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _sums(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:  # [3] float64
    count = len(labels)
    correct = (logits.argmax(1) == labels).sum()
    # A number becomes a tensor where it is wanted: one of the host would be waited for.
    samples = torch.full((), count, dtype=torch.float64, device=loss.device)
    return torch.stack([loss.detach().double() * count, correct.double(), samples])
