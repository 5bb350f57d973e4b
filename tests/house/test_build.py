"""What configuring the build decides and says, without compiling."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which(
    "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")


def configure(folder, *arguments, **environment):
    """Return (whether it succeeded, what it printed)."""
    clean = {k: v for k, v in os.environ.items() if "CUDA" not in k}
    result = subprocess.run(
        [
            CMAKE,
            *("-S", str(ROOT), "-B", str(folder)),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=False,
    )
    # CMake breaks the lines of its messages.
    return result.returncode == 0, " ".join((result.stdout + result.stderr).split())


def hide_nvcc():
    folders = {str(Path(NVCC).parent), str(Path(NVCC).resolve().parent), "/usr/local/cuda/bin"}
    return f"-DCMAKE_IGNORE_PATH={';'.join(folders)}" if NVCC else "-DREALSPIKE_HIDDEN=1"


def test_off(tmp_path):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=off")
    assert ok
    assert "realspike: building CPU kernels only (REALSPIKE_CUDA=off)" in said


def test_auto_without_nvcc(tmp_path):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=auto", hide_nvcc())
    assert ok
    assert "realspike: building CPU kernels only (no nvcc on PATH" in said


def test_on_without_nvcc(tmp_path):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=on", hide_nvcc())
    assert not ok
    assert "REALSPIKE_CUDA=on, but nvcc was not found" in said
    assert "REALSPIKE_CUDA=off" in said


def test_unknown_choice(tmp_path):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=maybe")
    assert not ok
    assert 'REALSPIKE_CUDA is "maybe"; use auto, on or off' in said


@needs_nvcc
@pytest.mark.parametrize(
    ("environment", "architectures", "source"),
    [
        ({}, "80-real 90-real", "the default list"),
        (
            {"TORCH_CUDA_ARCH_LIST": "8.0;9.0a+PTX 12.0"},
            "80-real 90a-real 90a-virtual 120-real",
            "TORCH_CUDA_ARCH_LIST",
        ),
        (
            {"CMAKE_CUDA_ARCHITECTURES": "80;90", "TORCH_CUDA_ARCH_LIST": "7.5"},
            "80 90",
            "CMAKE_CUDA_ARCHITECTURES",
        ),
    ],
    ids=["default", "torch-list", "cmake-list-wins"],
)
def test_architectures(tmp_path, environment, architectures, source):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=on", **environment)
    assert ok, said
    assert "realspike: building CPU and CUDA kernels (found nvcc" in said
    assert f"architectures from {source}: " in said
    assert architectures in said


@needs_nvcc
def test_bad_architecture(tmp_path):
    ok, said = configure(tmp_path, TORCH_CUDA_ARCH_LIST="8.0;ninety")
    assert not ok
    assert 'TORCH_CUDA_ARCH_LIST has "ninety"; entries look like 8.0' in said
