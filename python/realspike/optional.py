"""Packages that only the application needs, imported where they are used."""

import importlib
from types import ModuleType

from realspike.errors import UserError

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
_EXTRAS = {"lightning": "train", "tensorboard": "train", "yaml": "train"} | {
    "requests": "data",
    "PIL": "data",
    "nir": "nir",
}


class MissingPackageError(UserError, ImportError):
    """A package of an extra is not installed; the message says how to install it."""


def require(module: str) -> ModuleType:
    """Import and return ``module`` (a dotted name such as ``"rich.table"``).

    Raises:
        MissingPackageError: if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackageError(
            f"{_DISTRIBUTIONS.get(package, package)} is needed here and cannot be imported "
            f"({error}): pip install '.[{_EXTRAS.get(package, 'app')}]' in the checkout"
        ) from error


def require_training() -> None:
    """Raise MissingPackageError without what a run needs, before it has a folder."""
    for module in ("lightning.pytorch", "tensorboard"):
        require(module)
