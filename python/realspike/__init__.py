"""The reference application of realspike_ops: train, fold, verify and use Real Spike networks."""


def __getattr__(name: str):
    if name == "__version__":
        import runpy
        from importlib.util import find_spec
        from pathlib import Path

        # Run where it lies: `import realspike_ops` would import torch, which takes seconds.
        path = Path(find_spec("realspike_ops").origin).with_name("_version.py")
        return runpy.run_path(str(path))["__version__"]
    if name == "fit":
        from realspike.optional import require

        require("lightning.pytorch")
        from realspike.train import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
