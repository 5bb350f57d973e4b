"""Checkpoints after every epoch and when the run is asked to stop."""

import signal
import threading
from pathlib import Path

import lightning.pytorch as lightning
import torch

from realspike import checkpoint, environment
from realspike.config.run_config import RunConfig
from realspike.data import Splits
from realspike.train import sealed, statistics
from realspike.train.divergence import DivergenceCheck
from realspike.train.history import History, write_csv

RESUME_FILE = "last.ckpt"  # everything that continues the run
# These files follow from it after an epoch:
NETWORK_FILE = "model.safetensors"
METRICS_FILE = "metrics.csv"
SIGNALS = signal.SIGTERM, signal.SIGINT  # which stop a run


class Stopped(Exception):
    """The run was asked to stop and has written its checkpoint."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Interrupted(BaseException):
    """The run was asked a second time, and stops where it is."""

    def __init__(self, signum: int):
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class Saving(lightning.Callback):
    """Writes the checkpoint of every epoch, and on SIGTERM or SIGINT that of the last whole step.

    A handler only sets a flag: the processes of a run agree on it between two steps, so that none
    waits for another that has left. A second signal interrupts at once.

    Args:
        out: The run's folder.
        config: Of the run.
        history: Goes into the record beside the network.
        notes: Travel with it.
        divergence: Asked before anything is saved.
        splits: What is trained on, which the checkpoint tells from other data.
    """

    def __init__(
        self,
        out: Path,
        config: RunConfig,
        history: History,
        notes: statistics.Statistics,
        divergence: DivergenceCheck,
        splits: Splits,
    ):
        self._data, self._classes = splits.digest(), list(splits.classes)
        self.out, self.config, self.divergence = out, config, divergence
        self.gathered = history, notes
        self._signal = 0
        self._epoch_ended = False

    def on_train_start(self, trainer, module) -> None:
        # Lightning's own handlers broadcast inside the handler. Threads have none.
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._on_signal)

    def _on_signal(self, signum, frame) -> None:
        if self._signal:
            raise Interrupted(signum)
        self._signal = signum

    def _asked_to_stop(self, trainer, module) -> int:
        if trainer.world_size == 1:  # without waiting for a GPU
            return self._signal
        flag = torch.tensor(self._signal, device=module.device)
        return int(trainer.strategy.reduce(flag, reduce_op="max"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # Half-accumulated gradients are in no checkpoint, and the end of an epoch has its own.
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_last = trainer.global_step == self.config.training.max_steps
        if trainer.is_last_batch or is_last or not whole_step:
            return
        if signum := self._asked_to_stop(trainer, module):
            self.divergence.check(trainer, module)
            for each in self.gathered:
                each.gather(trainer)
            self._save(trainer, epoch_ended=False)
            raise Stopped(signum)

    def on_train_epoch_end(self, trainer, module) -> None:
        self._save(trainer, epoch_ended=True)
        if trainer.is_global_zero:
            write_results(self.out, sealed.read(self.out / RESUME_FILE))
        goes_on = trainer.current_epoch + 1 < trainer.max_epochs and not trainer.should_stop
        if goes_on and (signum := self._asked_to_stop(trainer, module)):
            raise Stopped(signum)

    def on_save_checkpoint(self, trainer, module, state: dict) -> None:
        state["realspike"] = {
            **environment.versions(),
            "device": environment.device_name(module.device),
            "config": self.config.to_dict(),
            "mean": module.preprocess.mean.flatten().tolist(),
            "std": module.preprocess.std.flatten().tolist(),
            "data": self._data,
            "classes": self._classes,
            "epoch_ended": self._epoch_ended,
        }

    def _save(self, trainer, epoch_ended: bool) -> None:
        self._epoch_ended = epoch_ended
        # No process goes on, and perhaps resumes, before the file is in its place.
        trainer.save_checkpoint(self.out / RESUME_FILE)


def network_tensors(state: dict) -> dict[str, torch.Tensor]:
    """Return the tensors of the network, or of the average of its weights if the run keeps one."""
    start = "network."
    return {k.removeprefix(start): t for k, t in state["state_dict"].items() if k.startswith(start)}


def write_results(out: Path, state: dict) -> None:
    """Write what follows from the checkpoint of a whole epoch: the network, then the metrics.

    They are written again when a run continues, which may have been killed between the two.
    """
    ours, records = state["realspike"], state["callbacks"]["History"]["records"]
    if not ours["epoch_ended"]:
        return
    record = {
        "config": ours["config"],
        "commit": ours["commit"],
        "device": ours.get("device", ""),
        "mean": ours["mean"],
        "std": ours["std"],
        "history": records,
    }
    if classes := ours.get("classes"):
        record["classes"] = classes
    config = RunConfig.from_dict(ours["config"]).network_config()
    checkpoint.write(out / NETWORK_FILE, config, network_tensors(state), record)
    write_csv(out / METRICS_FILE, records)
    if found := state["callbacks"].get("Statistics"):
        statistics.write(out, found)
