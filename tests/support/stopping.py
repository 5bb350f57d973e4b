"""A signal that comes in the middle of a training step."""

import contextlib
import itertools
import signal

from realspike.train.module import SpikingClassifier


@contextlib.contextmanager
def stopping_in(monkeypatch, step):
    """Send a signal in the middle of a step, counted from 0."""
    original, steps = SpikingClassifier.training_step, itertools.count()

    def training_step(self, batch, batch_idx):
        if next(steps) == step:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SpikingClassifier, "training_step", training_step)
        yield
