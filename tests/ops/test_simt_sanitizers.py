"""The CUDA kernels again, executed on the CPU under AddressSanitizer and UBSan.

AddressSanitizer sees every byte outside a tensor or the block's shared memory.
"""

import os
import re
import subprocess
import sys

import pytest
import simt_kernels as simt
from helpers import SHARD_VARIABLE

pytestmark = simt.needs_compiler


def library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_everything_again_under_the_sanitizers():
    runtime = library("libasan.so")
    if not os.path.isabs(runtime):
        pytest.skip("g++ has no AddressSanitizer runtime")
    simt.build(sanitize=True)  # once, before the processes that need it
    environment = {
        **os.environ,
        simt.SANITIZE_VARIABLE: "1",
        # The sanitizer looks for what throws exceptions when it starts.
        "LD_PRELOAD": f"{runtime} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    files = sorted(str(path) for path in (simt.ROOT / "tests").rglob("test_*_simt.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    shards = min(4, os.cpu_count())
    runs = [
        subprocess.Popen(
            command,
            env=environment | {SHARD_VARIABLE: f"{shard}/{shards}"},
            cwd=simt.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for shard in range(shards)
    ]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0, output[-5000:]
        assert re.search(r"[1-9][0-9]+ passed", output), output[-5000:]
