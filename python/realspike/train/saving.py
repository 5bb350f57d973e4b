"""Checkpoints after every epoch and when the run is asked to stop."""

import os
import signal
from pathlib import Path

import lightning.pytorch as lightning
import torch

from realspike import checkpoint, environment
from realspike.networks import build
from realspike.run_config import RunConfig
from realspike.train.history import History

RESUME_FILE = "last.ckpt"  # everything that continues the run
NETWORK_FILE = "model.safetensors"  # the network after the last epoch


class Stopped(Exception):
    """The run was asked to stop and has written its checkpoint."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Saving(lightning.Callback):
    """Writes the checkpoint of every epoch, and on SIGTERM or SIGINT that of the last whole step.

    A handler only sets a flag: the processes of a run agree on it between two steps, so that none
    waits for another that has left. A second signal interrupts at once.

    Args:
        out: The run's folder.
        config: Of the run.
        history: Goes into the record beside the network.
    """

    def __init__(self, out: Path, config: RunConfig, history: History):
        self.out, self.config, self.history = out, config, history
        self._signal = 0
        self._handlers: dict = {}

    def on_train_start(self, trainer, module) -> None:
        # Lightning's own handlers, which it restores in the end, broadcast inside the handler.
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._handlers[signum] = signal.signal(signum, self._on_signal)

    def _on_signal(self, signum, frame) -> None:
        if self._signal:
            raise KeyboardInterrupt
        self._signal = signum

    def teardown(self, trainer, module, stage) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _asked_to_stop(self, trainer, module) -> int:
        if trainer.world_size == 1:  # without waiting for a GPU
            return self._signal
        flag = torch.tensor(self._signal, device=module.device)
        return int(trainer.strategy.reduce(flag, reduce_op="max"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        # Half-accumulated gradients are in no checkpoint, and the end of an epoch has its own.
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if trainer.is_last_batch or not whole_step:
            return
        if signum := self._asked_to_stop(trainer, module):
            self.history.gather(trainer)
            self._save(trainer)
            raise Stopped(signum)

    def on_train_epoch_end(self, trainer, module) -> None:
        self._save(trainer)
        if trainer.is_global_zero:
            record = {
                "config": self.config.to_dict(),
                "commit": environment.commit(),
                "mean": module.preprocess.mean.flatten().tolist(),
                "std": module.preprocess.std.flatten().tolist(),
                "history": self.history.records,
            }
            network = build(self.config.network_config(), seed=0)
            network.load_state_dict(_network_of(self.out / RESUME_FILE))
            checkpoint.save(self.out / NETWORK_FILE, network, record)
        if trainer.current_epoch + 1 < trainer.max_epochs and (
            signum := self._asked_to_stop(trainer, module)
        ):
            raise Stopped(signum)

    def _save(self, trainer) -> None:
        temporary = self.out / f".{RESUME_FILE}.tmp"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.out / RESUME_FILE)
        # No process goes on, and perhaps resumes, before the file is in its place.
        trainer.strategy.barrier()


def _network_of(path: Path) -> dict:
    """Return the weights in a checkpoint of Lightning: the average, if the run keeps one."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    start = "network."
    return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}
