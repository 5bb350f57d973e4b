"""Starting and resuming a run."""

import contextlib
import errno
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from realspike import checkpoint, environment, files
from realspike import data as data_module
from realspike.config import run_config
from realspike.config.network_config import NetworkConfig
from realspike.config.run_config import ConfigError, RunConfig
from realspike.data.loader import ResumableLoader, WorkerDied, evaluation_loader
from realspike.data.own import splits_of
from realspike.data.sets import Splits
from realspike.errors import UserError
from realspike.inspect import trained_file
from realspike.inspect.trained_file import example_input
from realspike.names import shown
from realspike.networks import build
from realspike.networks.build import try_out
from realspike.networks.layers import draw_amplitudes
from realspike.own import is_own
from realspike.records import checked
from realspike.train import sealed
from realspike.train.divergence import DivergenceCheck
from realspike.train.history import History
from realspike.train.module import SpikingClassifier
from realspike.train.reporting import Reporting
from realspike.train.saving import (
    METRICS_FILE,
    NETWORK_FILE,
    RESUME_FILE,
    Interrupted,
    Saving,
    Stopped,
    network_tensors,
    write_results,
)
from realspike.train.statistics import Statistics
from realspike_ops import RealSpikeLIF

CONFIG_FILE = run_config.FILE
EVALUATION_BATCH = 256
LOGS = "tensorboard"
_GIVEN_DATA = "given:to_fit"  # data that a configuration cannot name
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunError(UserError):
    """A run cannot be started or resumed as asked."""


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run: its records, and the signal that stopped it, or 0."""

    records: list[dict]
    stopped_by: int = 0


def start(config: RunConfig, out: Path, **options) -> RunResult:
    """Train and write everything into ``out``: configuration, checkpoints, network, logs.

    Under ``torchrun`` all processes call it alike.

    Args:
        config: See `RunConfig`.
        out: A folder without a run.
        options: Passed on to `_fit`: ``on_epoch``, and ``console``, where what is trained
            and how far it is gets printed.

    The data and the network that ``config`` names are made, and `fit` trains them.

    Raises:
        RunError: if ``out`` holds a run already, or what is left of one, another process trains in
            it, or it cannot be written to.
        Diverged: if the loss or a weight is not finite; the checkpoints before are kept.
        DataError: if the data cannot be read.
    """
    _check_free(out)
    config, splits = _data_of(config)  # before there is a folder
    return fit(_network_of(config), splits, out, config=config, **options)


def fit(
    network: nn.Module,
    data: "Splits | tuple",
    out: "str | Path",
    *,
    config: "RunConfig | None" = None,
    on_epoch: Callable[[dict], None] = lambda record: None,
    console=None,
    **settings,
) -> RunResult:
    """Train a network on data, in place, and write everything into a folder, as `realspike train`.

    Args:
        network: Any `nn.Module` from images [B, C, S, S] (frames: [T*B, C, S, S]) to [B, classes],
            on the CPU.
        data: A `realspike.data.Splits`, or a pair (training part, test part); a part is a data set
            of (sample, label), or a pair of tensors: samples [N, C, S, S], or frames
            [N, T, C, S, S], of uint8 or float32, and labels [N] int64. A pair is used as it is,
            uint8 over 255.
        out: A folder without a run. Its ``model.safetensors`` is read again by
            ``realspike.checkpoint.load(path, network=...)``, or without a network if its class can
            be imported and takes the fields of `NetworkConfig` that are in the file.
        config: The whole configuration; None: the defaults and ``settings``.
        on_epoch: Called with the record of every epoch.
        console: See `realspike.output.console`; where the progress is printed. None: nowhere.
        settings: Keys of a configuration, such as ``epochs=10``, ``learning_rate=0.05`` or
            ``optimizer="adamw"``; `realspike train --help` lists them.

    Returns:
        The records, epoch by epoch, and the signal that stopped the run, or 0. The network is left
        on the CPU in eval mode.

    Raises:
        RunError: if ``out`` holds a run already, another process trains in it, or it cannot be
            written to.
        ConfigError: for an unknown or impossible setting.
        OwnError, DataError: if the network does not classify the data, or they are no such data.
        Diverged: if the loss or a weight is not finite; the checkpoints before are kept.
    """
    out = Path(out)
    _check_free(out)
    splits = splits_of(data, "data")
    if config is None:
        config = data_module.fitted(_config_of(network, settings), splits)
    elif settings:
        raise TypeError(f"config and {min(settings)} must not be given together")
    _try_own(config, network)  # before there is a folder
    _begin(config, network)
    _placement(config.training.device)
    options = {"on_epoch": on_epoch, "console": console}
    try:
        files.make_writable_folder(out)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
    with _alone_in(out):
        _check_free(out)
        _write_config(config, out)
        return _fit(config, network, splits, out, None, **options)


def _write_config(config: RunConfig, out: Path) -> None:
    if _rank() == 0:
        files.write_atomically(out / CONFIG_FILE, config.to_yaml().encode())


def _config_of(network: nn.Module, settings: dict) -> RunConfig:
    """Return the configuration of a run of a network that the caller made."""
    made = getattr(network, "config", None)
    values: dict[str, object] = {"data.name": _GIVEN_DATA}
    if isinstance(made, NetworkConfig):
        section = RunConfig().to_dict()["network"]
        values |= {f"network.{key}": getattr(made, key) for key in section}
    else:
        kind = type(network)
        values["network.architecture"] = f"{kind.__module__}:{kind.__name__}"
        for lif in network.modules():
            if isinstance(lif, RealSpikeLIF):
                values["network.timesteps"] = lif.timesteps
    for key, value in settings.items():
        values[".".join(run_config.resolve_key(key))] = value
    return RunConfig().replaced(**values)


def _try_own(config: RunConfig, network: nn.Module) -> None:
    if is_own(config.network.architecture):
        wanted = config.network_config()
        try_out(network, wanted, example_input(wanted))


def _begin(config: RunConfig, network: nn.Module) -> None:
    """Draw the amplitudes, and take the weights, that the configuration begins with."""
    draw_amplitudes(network, config.training.amplitude_spread, config.training.seed)
    if config.training.start_from is not None:
        path = trained_file.file_of(files.path_of(config.training.start_from))
        checkpoint.begin_with(path, network)


def _network_of(config: RunConfig) -> nn.Module:
    return build(config.network_config(), config.training.seed)


def resume(
    out: Path,
    on_note: Callable[[str], None] = lambda note: None,
    epochs: "int | None" = None,
    **options,
) -> RunResult:
    """Continue the run in ``out`` from its last checkpoint, exactly as if it had never stopped.

    A run that was stopped before its first checkpoint starts again.

    Args:
        out: The run's folder.
        epochs: More than it was configured with, see `RunConfig.extended`; None: as many.
        on_note: Called with what may make the run another than if it had never stopped.
        options: As of `start`.

    Raises:
        RunError: if there is no run in ``out``, another process is at it, or its checkpoint is
            damaged or of another configuration than its file.
        ConfigError: if its configuration cannot be read.
    """
    if not (out / CONFIG_FILE).exists():
        raise RunError(f"there is no run in {out}: it has no {CONFIG_FILE}")
    with _alone_in(out):
        last = out / RESUME_FILE
        config = run_config.read(out / CONFIG_FILE)
        config = config if epochs is None else config.extended(epochs)
        if not last.exists():
            _check_free(out)
            config, splits = _data_of(config)
            network = _network_of(config)
            _begin(config, network)
            _write_config(config, out)
            return _fit(config, network, splits, out, None, **options)
        state = _resumable(last, config)
        config, splits = _data_of(config)
        if _rank() == 0:
            digest = _share(config, splits).digest()
            if state["realspike"].get("data") not in (None, digest):
                on_note("the run goes on with other data: samples were added, removed or renamed")
            for name, now in environment.versions().items():
                before = state["realspike"].get(name)
                if before != now:
                    on_note(
                        f"the run goes on with another {name}: {now or 'unknown'} instead of "
                        f"{before or 'unknown'}"
                    )
            try:
                _network_of(config).load_state_dict(network_tensors(state))  # it fits
                write_results(out, state)
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise _unreadable(last) from error
        _write_config(config, out)
        return _fit(config, _network_of(config), splits, out, last, **options)


def _check_free(out: Path) -> None:
    """Refuse a folder whose results would be replaced, and one that the logs cannot name."""
    try:
        str(out).encode()  # as the logs do
    except UnicodeEncodeError:
        raise RunError(
            f"the folder of a run must have a name that is text; got {shown(str(out))}"
        ) from None
    if (out / RESUME_FILE).exists():
        raise RunError(f"{out} holds a run: --resume continues it, --out chooses another folder")
    for name in (NETWORK_FILE, METRICS_FILE):
        if (out / name).exists():
            raise RunError(
                f"{out} holds the {name} of a run whose {RESUME_FILE} is gone, so that it cannot "
                "be continued: --out chooses another folder"
            )


@contextlib.contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of a run, for all its processes."""
    if _rank() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(out))
            files.remove_temporary_files(out)
        except BlockingIOError as error:
            raise RunError(f"another process trains in {out}: wait for it or end it") from error
        except OSError as error:
            raise RunError(f"cannot write to {out}: {error.strerror or error}") from error
        yield


def _resumable(last: Path, config: RunConfig) -> dict:
    """Return the state in a checkpoint; refuse one that is damaged or of another configuration."""
    try:
        state = sealed.read(last)
        stored = RunConfig.from_dict(state["realspike"]["config"])
        for name in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            state[name]
        checked(state["callbacks"]["History"]["records"], last)
    except Exception as error:  # whatever a damaged archive, or another version, provokes
        raise _unreadable(last) from error
    if stored != config and not _is_extended(stored, config):
        raise RunError(
            f"{last.parent / CONFIG_FILE} was changed since {last.name} was written: a run goes on "
            "as it was configured; change it back, or start another"
        )
    return state


def _is_extended(stored: RunConfig, config: RunConfig) -> bool:
    try:
        return stored.extended(config.training.epochs) == config
    except ConfigError:
        return False


def _share(config: RunConfig, splits: Splits) -> Splits:
    rest = splits.hold_out(config.data.held_out)
    return rest.share(config.data.fraction, config.training.seed)


def _data_of(config: RunConfig) -> tuple[RunConfig, Splits]:
    """Read the data of a run that can be trained as configured; what they say is configured."""
    _placement(config.training.device)
    splits = data_module.load(config)
    config = data_module.fitted(config, splits)
    if min(config.data.batch_size, len(_share(config, splits).train)) == 1:
        _check_single_samples(config)
    return config, splits


def _unreadable(last: Path) -> RunError:
    return RunError(
        f"{last} is truncated, corrupt or no checkpoint of a run of this version: without it, "
        f"{NETWORK_FILE} can be used, but the run cannot be continued"
    )


@torch.no_grad()
def _check_single_samples(config: RunConfig) -> None:
    """Refuse batches of one sample where a batch norm sees one value per channel."""
    network = config.network_config()
    try:
        build(network, seed=0)(example_input(network))
    except ValueError as error:
        raise RunError(
            f"{network.architecture} with timesteps={network.timesteps} cannot be trained on "
            f"batches of one sample: give data.batch_size=2 or more, of 2 or more samples ({error})"
        ) from error


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _placement(device: str) -> dict:
    """Return where Lightning puts the processes: one, or as many as torchrun started."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("training.device is cuda, but there is no CUDA device")
    gpu = device != "cpu" and torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": local,
        "num_nodes": world // local,
        "strategy": "ddp" if world > 1 else "auto",
        "sync_batchnorm": gpu and world > 1,
    }


def _callbacks(config: RunConfig, splits: Splits, out: Path, on_epoch, console) -> list:
    # Before the checkpoints, which contain the records.
    divergence, history = DivergenceCheck(), History(on_epoch)
    callbacks = [divergence, history, Statistics(config, history)]
    if config.training.ema:
        callbacks.append(lightning.callbacks.EMAWeightAveraging(decay=config.training.ema))
    if console is not None and _rank() == 0:
        samples = len(splits.train), len(splits.test)
        callbacks.append(Reporting(console, config, history, samples))
    return [*callbacks, Saving(out, config, history, divergence, splits)]


def _fit(
    config: RunConfig,
    network: nn.Module,
    splits: Splits,
    out: Path,
    last: "Path | None",
    on_epoch: Callable[[dict], None] = lambda record: None,
    console=None,
) -> RunResult:
    training, splits = config.training, _share(config, splits)
    placement = _placement(training.device)
    placement["sync_batchnorm"] &= training.sync_batchnorm
    if training.threads is not None:
        torch.set_num_threads(training.threads)
    rank, world = _rank(), int(os.environ.get("WORLD_SIZE", 1))
    workers = config.data.workers if splits.read_in_workers else 0
    callbacks = _callbacks(config, splits, out, on_epoch, console)
    history = next(callback for callback in callbacks if isinstance(callback, History))
    with _quiet():
        trainer = lightning.Trainer(
            **placement,
            max_epochs=training.epochs,
            max_steps=training.max_steps or -1,
            precision=training.precision,
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
        train_loader = ResumableLoader(
            splits.train, config.data.batch_size, training.seed, rank, world, workers
        )
        test_loader = evaluation_loader(splits.test, EVALUATION_BATCH, rank, world, workers)
        steps = -(-len(train_loader) // training.accumulate)
        _try_own(config, network)  # before a step, so that its amplitudes know their neurons
        module = SpikingClassifier(config, network, splits.mean, splits.std, steps)
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
    network.cpu().eval()
    return RunResult(history.records)


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


__all__ = ["CONFIG_FILE", "METRICS_FILE", "NETWORK_FILE", "RESUME_FILE", "fit", "resume", "start"]
