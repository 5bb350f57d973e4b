"""Random numbers that networks and data of the user's own draw: they follow from where a run is."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def numbers_from(*entropy: int) -> Iterator[None]:
    """Let what torch, NumPy and Python draw in here follow from numbers >= 0 alone.

    What is drawn behind it goes on as if nothing had been drawn.
    """
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    of_python, of_numpy = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    with torch.random.fork_rng(gpus):
        # torch.manual_seed would keep a trace of every call where no GPU is in use.
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
