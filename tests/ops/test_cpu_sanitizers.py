"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on every instruction set.

The extension is built a second time, with the sanitizers and without optimisation, in
build/sanitized, where the next run finds it. sanitized_sweep.py runs it, in processes of their own.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitized"
ISAS = ("baseline", "avx2", "avx512")
OPTIONS = "malloc_context_size=1:halt_on_error=1:detect_leaks=0:abort_on_error=0:exitcode=99"


def library(name: str) -> Path:
    """The file of a library that g++ links, or a path that does not exist."""
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return Path(found.stdout.strip())


def can_sanitize() -> bool:
    tools = all(shutil.which(tool) for tool in ("g++", "cmake", "ninja"))
    return sys.platform.startswith("linux") and tools and library("libasan.so").is_absolute()


pytestmark = pytest.mark.skipif(
    not can_sanitize(), reason="needs Linux, g++ with libasan, cmake and ninja"
)


@pytest.fixture(scope="module")
def extension() -> Path:
    """Build the extension with the sanitizers; return its path."""
    import pybind11

    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
        *("-DREALSPIKE_SANITIZE=ON", "-DREALSPIKE_CUDA=off", "-DCMAKE_CXX_COMPILER=g++"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        *shlex.split(os.environ.get("CMAKE_ARGS", "")),
    ]
    for command in (configure, ["cmake", "--build", str(BUILD)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (built,) = BUILD.glob("_C*.so")
    return built


def start(extension: Path, what: str, **environment) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT / "tests" / "support"), *filter(None, sys.path)])
    # The C++ library as well: its functions are looked for when the sanitizer's start.
    preload = ":".join(str(library(name)) for name in ("libasan.so", "libstdc++.so"))
    environment = os.environ | {
        **{"PYTHONPATH": path, "LD_PRELOAD": preload},
        **{"ASAN_OPTIONS": OPTIONS, "UBSAN_OPTIONS": f"{OPTIONS}:print_stacktrace=1"},
        # Small enough for some results to be written past the caches.
        **{"REALSPIKE_CPU_CACHE_BYTES": "32768", "OMP_WAIT_POLICY": "passive"},
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "sanitized_sweep", str(extension), what],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def sweeps(extension):
    """All sweeps side by side, by instruction set."""
    running = {isa: start(extension, "sweep", REALSPIKE_CPU_ISA=isa) for isa in ISAS}
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("isa", ISAS)
def test_no_access_outside_a_tensor_and_nothing_undefined(sweeps, isa):
    process = sweeps[isa]
    output, errors = process.communicate(timeout=280)
    if f"got {isa!r}" in errors:
        pytest.skip(f"this CPU, or this build, lacks {isa}")
    assert process.returncode == 0, errors[-4000:]
    outcome = json.loads(output)
    assert outcome["isa"] == isa
    assert outcome["calls"] > 1000


@pytest.mark.parametrize(
    ("mistake", "report"),
    [("one_beyond", "heap-buffer-overflow"), ("misaligned", "misaligned address")],
)
def test_the_sanitizers_watch(extension, mistake, report):
    process = start(extension, mistake)
    _, errors = process.communicate(timeout=280)
    assert process.returncode != 0
    assert report in errors, errors[-4000:]
    assert "unpack" in errors  # the kernel is named
