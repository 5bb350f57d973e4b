"""Training on Lightning: imported only by those who train, since it needs the extra ``train``."""

from .divergence import Diverged
from .run import RunError, RunResult, fit, resume, start

__all__ = ["Diverged", "RunError", "RunResult", "fit", "resume", "start"]
