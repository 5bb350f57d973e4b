"""The sole importer of the `nir` package, which is optional."""

from types import ModuleType


def nir_package() -> ModuleType:
    """Return the `nir` package.

    Raises:
        ImportError: if it is not installed, with the command that installs it.
    """
    try:
        import nir
    except ImportError as error:
        raise ImportError(f"this needs the nir package ({error}): pip install nir") from error
    return nir
