"""What large tensors cost before anything is computed: the page faults of fresh memory.

glibc hands out tensors above 32 MiB as fresh pages, call after call, and each page costs a fault. A
long-running program can tell it to keep its memory; both are measured, and say which they are.
"""

import contextlib
import ctypes
import platform

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_LARGEST = 2**31 - 1


@contextlib.contextmanager
def memory(kind: str):
    """``"kept"``: freed memory is used again; ``"fresh"``: as glibc does it for large tensors."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    if kind == "kept":
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        # What glibc's own adjustment arrives at after a few large tensors.
        mallopt(_M_MMAP_MAX, 65536)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
