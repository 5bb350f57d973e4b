"""The reference application of realspike_ops: train, fold, verify and use Real Spike networks."""


def __getattr__(name: str):
    # Read on demand, so that `import realspike` (and `realspike --help`) do not import torch.
    if name == "__version__":
        from realspike_ops import __version__

        return __version__
    if name == "fit":
        from realspike.optional import require

        require("lightning.pytorch")
        from realspike.train import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
