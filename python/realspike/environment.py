"""What a measurement ran on: the versions and the machine, for the record beside it."""

import platform
from pathlib import Path

import torch

import realspike_ops


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def describe() -> dict:
    """Return versions, processor, threads and how the kernels were built, as JSON can hold it."""
    return {
        "realspike": realspike_ops.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "build_info": realspike_ops.build_info(),
    }
