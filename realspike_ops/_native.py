"""The only importer of the compiled extension."""

import functools
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

# The numbers of csrc/core/dtype.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}

_BUILD = "`pip install .` in the checkout builds it (`pip install -e .` for development)"


def _built_in(folder: Path) -> Path | None:
    """Return the extension that this Python would load from a folder of the package."""
    paths = (folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _why_missing(error: ImportError) -> str:
    """Say what keeps the extension from being imported, and what helps."""
    here = Path(__file__).resolve().parent
    if path := _built_in(here):
        return f"{path} cannot be loaded: {error}. {_BUILD} anew"
    elsewhere = [path for path in sys.path if Path(path).resolve() != here.parent]
    for finder in sys.meta_path:
        spec = finder.find_spec("realspike_ops", elsewhere)
        if spec and spec.origin and (path := _built_in(Path(spec.origin).parent)):
            return (
                f"the sources in {here.parent} hide the package that is installed in "
                f"{path.parent}. Start Python in another folder (`cd /`), or run `pytest` instead "
                "of `python -m pytest`"
            )
    if others := sorted(path.name for path in here.glob("_C.*")):
        return (
            f"it is built for another Python ({', '.join(others)}; this one loads "
            f"_C{EXTENSION_SUFFIXES[0]}). {_BUILD}, with this Python's pip"
        )
    return f"nothing was built in {here}. {_BUILD}"


@functools.cache
def extension():
    """Return the extension module, or raise with why there is none and what helps.

    torch is imported above, before the extension: its OpenMP runtime is the one that we use.
    """
    try:
        from realspike_ops import _C  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise ImportError(
            f"realspike_ops: the compiled extension is missing: {_why_missing(error)}"
        ) from error
    wanted = os.environ.get("REALSPIKE_CPU_ISA")
    if wanted and wanted != _C.cpu_isa():
        raise ValueError(
            "REALSPIKE_CPU_ISA must be baseline, avx2 or avx512, and one that this CPU has; "
            f"got {wanted!r}"
        )
    return _C


@functools.cache
def cuda_extension():
    """Return the extension if it has CUDA kernels, or raise with the command that builds them."""
    module = extension()
    if not module.with_cuda:
        raise RuntimeError(
            "realspike_ops: this build has no CUDA kernels "
            f"(built: {module.build_info}); with the CUDA toolkit, "
            "`REALSPIKE_CUDA=on pip install .` in the checkout builds them"
        )
    return module


def build_info() -> str:
    """Say what the extension was built with, and what this process uses.

    Example: ``CPU kernels only (REALSPIKE_CUDA=off); this CPU runs avx512; threads: openmp``.
    """
    module = extension()
    isa, threads = module.cpu_isa(), module.parallel_backend()
    return f"{module.build_info}; this CPU runs {isa}; threads: {threads}"


def pointer(tensor: torch.Tensor | None) -> int:
    """Address of the first element; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
