"""The reference application of realspike_ops: train, fold, verify and use Real Spike networks."""

import runpy
from importlib.util import find_spec
from pathlib import Path


def _run(file: str) -> dict:
    """Run a file of `realspike_ops` where it lies: to import that imports torch, for seconds."""
    found = find_spec("realspike_ops")
    if found is None or found.origin is None:
        return {}
    return runpy.run_path(str(Path(found.origin).with_name(file)))


_run("_moved.py")


def __getattr__(name: str):
    if name == "__version__":
        return _run("_version.py")["__version__"]
    if name == "fit":
        from realspike.optional import require_training

        require_training()
        from realspike.train import fit

        return fit
    if name == "load":
        from realspike.shipped import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
