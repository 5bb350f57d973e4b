"""The environment of a measurement, versions and machine, for the record beside it."""

import platform
import subprocess
from pathlib import Path

import torch

import realspike_ops


def cpu_name() -> str:
    """Return the model of the processor, and its family: a virtual machine may tell no more of a
    model than who made it."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    if "model name" not in facts:
        return platform.processor() or platform.machine()
    family = facts.get("cpu family")
    return f"{facts['model name']} (family {family})" if family else facts["model name"]


def device_name(device: torch.device) -> str:
    """Return the model of a GPU or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


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
