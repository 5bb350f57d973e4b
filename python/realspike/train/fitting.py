"""One run on Lightning: its trainer, its callbacks, its loaders."""

import contextlib
import errno
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from realspike.config.run_config import RunConfig
from realspike.data.loader import ResumableLoader, WorkerDied, evaluation_loader
from realspike.data.resident import kept_on
from realspike.data.sets import Splits
from realspike.errors import RunError
from realspike.first_input import example_input
from realspike.networks.build import try_out
from realspike.own import OwnError, is_own
from realspike.train import sealed
from realspike.train.average import Average
from realspike.train.divergence import DivergenceCheck
from realspike.train.history import History
from realspike.train.module import SpikingClassifier
from realspike.train.placement import placement, rank, world_size
from realspike.train.reporting import Reporting
from realspike.train.saving import SIGNALS, Interrupted, Saving, Stopped
from realspike.train.statistics import Statistics
from realspike_ops import unfuse

EVALUATION_BATCH = 256
LOGS = "tensorboard"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run: its records, and the signal that stopped it, or 0."""

    records: list[dict]
    stopped_by: int = 0


def try_own(config: RunConfig, network: nn.Module) -> None:
    """Refuse a network of the user's own that cannot be trained as configured."""
    name = config.network.architecture
    if not is_own(name):
        return
    wanted = config.network_config()
    try_out(network, wanted, example_input(wanted))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise OwnError(f"network.architecture={name} must have a parameter that is trained")
    for key, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise OwnError(
                f"network.architecture={name} must have a state of tensors, which files hold; "
                f"{key!r} is a {type(value).__name__}"
            )
        if not torch.isfinite(value).all():
            raise OwnError(
                f"network.architecture={name} must begin with finite values, others are taken for "
                f"a training that diverged; {key!r} has some: a buffer of a constant may be "
                "registered with persistent=False"
            )


def share(config: RunConfig, splits: Splits) -> Splits:
    """Return what a run trains and tests on.

    Raises:
        DataError: if no sample would be left to train on.
        RunError: if a process would have none to test on.
    """
    rest = splits.hold_out(config.data.held_out)
    if (count := len(rest.test)) < (world := world_size()):
        raise RunError(
            f"{world} processes cannot test on {count} {config.data.tested_on} samples: as many "
            "processes as samples at most"
        )
    return rest.share(config.data.fraction, config.training.seed)


def _callbacks(
    config: RunConfig, splits: Splits, out: Path, on_epoch, console
) -> list[lightning.Callback]:
    # Before the checkpoints, which contain the records.
    divergence, history = DivergenceCheck(), History(on_epoch)
    notes = Statistics(config, history)
    callbacks: list[lightning.Callback] = [divergence, history, notes]
    if config.training.ema:
        callbacks.append(Average(config.training.ema))
    if console is not None and rank() == 0:
        samples = len(splits.train), len(splits.test)
        callbacks.append(Reporting(console, config, history, samples))
    return [*callbacks, Saving(out, config, history, notes, divergence, splits)]


def fit_network(
    config: RunConfig,
    network: nn.Module,
    splits: Splits,
    out: Path,
    last: "Path | None",
    on_epoch: Callable[[dict], None] = lambda record: None,
    console=None,
) -> RunResult:
    training, splits = config.training, share(config, splits)
    placed = placement(config)
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    world = world_size()
    workers = config.data.workers if splits.read_in_workers else 0
    callbacks = _callbacks(config, splits, out, on_epoch, console)
    history = next(callback for callback in callbacks if isinstance(callback, History))
    with _quiet(), _handlers_restored():
        trainer = lightning.Trainer(
            **placed.trainer,
            # A run that is told its max_steps resumes the end of an epoch inside of it.
            max_epochs=training.epochs,
            accumulate_grad_batches=training.accumulate,
            gradient_clip_val=training.clip_gradient or None,
            logger=TensorBoardLogger(out, name=LOGS, version=""),
            callbacks=callbacks,
            plugins=[sealed.SealedCheckpoints()],
            default_root_dir=out,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        )
        splits = kept_on(trainer.strategy.root_device, splits)
        train_loader = ResumableLoader(
            splits.train, config.data.batch_size, training.seed, rank(), world, workers
        )
        test_loader = evaluation_loader(splits.test, EVALUATION_BATCH, rank(), world, workers)
        steps = -(-len(train_loader) // training.accumulate)
        try_own(config, network)  # before a step, so that its amplitudes know their neurons
        if placed.channels_last:
            _lie(network, torch.channels_last)
        module = SpikingClassifier(config, network, splits.mean, splits.std, steps, placed)
        module.train()  # which Lightning leaves to us
        try:
            trainer.fit(module, train_loader, test_loader, ckpt_path=last, weights_only=True)
        except Stopped as stopped:
            return RunResult(history.records, stopped.signum)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise WorkerDied(error) from error  # which torch tells at any time
        except OSError as error:
            # What else is written names itself.
            if error.filename is None and error.errno in _DISK_FULL:
                error.filename = str(out / LOGS)
            raise
        except Interrupted as interrupted:
            raise KeyboardInterrupt(interrupted.signum) from interrupted
        except SystemExit as left:  # which is what Lightning makes of a KeyboardInterrupt
            raise KeyboardInterrupt from left
        finally:
            unfuse(network)
    _lie(network.cpu().eval(), torch.contiguous_format)
    return RunResult(history.records)


def _lie(network: nn.Module, memory_format: torch.memory_format) -> None:
    to: Any = network.to  # the checker knows no memory formats of it
    to(memory_format=memory_format)


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Give signals back to whoever had them: Lightning does so before the last of our hooks, and
    not where it is interrupted early."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in handlers.items():
                if handler is not None:  # one that Python did not install
                    signal.signal(signum, handler)


class _quiet:
    """Without Lightning's advice; its errors are raised."""

    def __enter__(self):
        self.logger = logging.getLogger("lightning.pytorch")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)
        # The thread that writes the logs; what it met is raised again where the run writes next.
        self.hook = threading.excepthook
        threading.excepthook = self._hook
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.filterwarnings("ignore", module=r"lightning\.")

    def _hook(self, arguments) -> None:
        if not issubclass(arguments.exc_type, OSError):
            self.hook(arguments)

    def __exit__(self, *error):
        self.logger.setLevel(self.level)
        threading.excepthook = self.hook
        self.warnings.__exit__(*error)
