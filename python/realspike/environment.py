"""The environment of a measurement, versions and machine, for the record beside it."""

import platform
import subprocess
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


def commit() -> str:
    """Return the commit of the checkout that this file belongs to, "+" behind it if files differ
    from it, or "" outside a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout.strip()

    try:
        # Not the repository of a project that has this package in its virtual environment.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict:
    """Return what decides how a run goes on: the commit, and the versions it stands on."""
    return {
        "realspike": realspike_ops.__version__,
        "commit": commit(),
        "torch": str(torch.__version__),
    }


def describe() -> dict:
    """Return versions, processor, threads and how the kernels were built, as JSON can hold it."""
    return versions() | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "build_info": realspike_ops.build_info(),
    }
