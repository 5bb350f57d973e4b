"""Training on Lightning: imported only by those who train, since it needs the extra ``train``."""

from .run import RunError, RunResult, resume, start

__all__ = ["RunError", "RunResult", "resume", "start"]
