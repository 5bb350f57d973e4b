"""Training on Lightning: imported only by those who train, since it needs the extra ``train``."""

from realspike.errors import RunError

from .divergence import Diverged
from .fitting import RunResult
from .run import fit, resume, start

__all__ = ["Diverged", "RunError", "RunResult", "fit", "resume", "start"]
