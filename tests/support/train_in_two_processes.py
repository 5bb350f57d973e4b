"""Run by torchrun: trains, is stopped and resumes, and prints what app/test_train.py compares."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from realspike import train
from realspike.config.run_config import RunConfig
from realspike.train import module

RANK = int(os.environ["RANK"])


def weights(out: Path) -> list:
    state = torch.load(out / "last.ckpt", weights_only=True)["state_dict"]
    return [tensor.double().sum().item() for tensor in state.values()]


def stop_in_step(step: int) -> None:
    """Send SIGTERM to the second process alone; the first must stop with it."""
    original = module.SpikingClassifier.training_step

    def training_step(self, batch, batch_idx):
        if RANK == 1 and self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    module.SpikingClassifier.training_step = training_step
    stop_in_step.undo = lambda: setattr(module.SpikingClassifier, "training_step", original)


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config = RunConfig().replaced(**json.loads(sys.argv[2]))
    whole = train.start(config, folder / "whole")
    stop_in_step(int(sys.argv[3]))
    stopped = train.start(config, folder / "stopped")
    stop_in_step.undo()
    at_stop = torch.load(folder / "stopped" / "last.ckpt", weights_only=True)["global_step"]
    resumed = train.resume(folder / "stopped")
    result = {
        "rank": RANK,
        "stopped_by": stopped.stopped_by,
        "stopped_at": at_stop,
        "whole": whole.records,
        "resumed": resumed.records,
        "same_weights": weights(folder / "whole") == weights(folder / "stopped"),
    }
    (folder / f"result{RANK}.json").write_text(json.dumps(result))


main()
