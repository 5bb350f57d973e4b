"""The only importer of the compiled extension."""

import functools
import os

import torch

# The numbers of csrc/core/dtype.h.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}

_BUILD = (
    "build it with `pip install .` in the checkout (`pip install -e .` for development). If it is "
    "installed, Python was started in the checkout, whose sources hide it: start Python in another "
    "folder (`cd /`), or run `pytest` instead of `python -m pytest`"
)


@functools.cache
def extension():
    """Return the extension module, or raise with the command that builds it.

    torch is imported above, before the extension: its OpenMP runtime is the one that we use.
    """
    try:
        from realspike_ops import _C
    except ImportError as error:
        raise ImportError(
            f"realspike_ops: the compiled extension is missing ({error}); {_BUILD}"
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
            f"(built: {module.build_info}); install the CUDA toolkit and "
            "rebuild with `REALSPIKE_CUDA=on pip install .`"
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
