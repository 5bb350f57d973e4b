"""A command with an end: what it starts ends with it."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path


def limited_run(
    command: Sequence[str], folder: Path, environment: "dict[str, str]", seconds: float
) -> "tuple[int | None, str]":
    """Return the exit code, None beyond the time limit, and the output."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output
