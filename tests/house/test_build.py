"""What configuring the build decides and says, without compiling."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pybind11
import pytest
import torch

ROOT = Path(__file__).parents[2]
CMAKE = shutil.which(
    "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
TORCH_CUDA = ROOT / "cmake" / "torch_cuda.py"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed")


def configure(folder, *arguments, python=sys.executable, **environment):
    """Return (whether it succeeded, what it printed)."""
    hidden = ("CUDA", "PYTHONPATH")
    clean = {k: v for k, v in os.environ.items() if not any(word in k for word in hidden)}
    result = subprocess.run(
        [
            CMAKE,
            *("-S", str(ROOT), "-B", str(folder)),
            f"-DPython_EXECUTABLE={python}",
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


def test_windows_is_refused_before_anything_is_compiled(tmp_path):
    ok, said = configure(tmp_path, "-DWIN32=ON", "-DREALSPIKE_CUDA=off")
    assert not ok
    assert "realspike: Windows is not supported" in said
    assert "building CPU kernels" not in said


def test_only_the_bindings_know_python(tmp_path):
    """setup.py keeps the objects of all else for every Python, and for every way to install."""
    ok, printed = configure(tmp_path, "-DREALSPIKE_CUDA=off", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    assert ok, printed
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    environments = (pybind11.get_include(), sysconfig.get_path("include"), sys.prefix)
    dependent = {
        Path(entry["file"]).name
        for entry in commands
        if any(folder in entry["command"] for folder in environments)
    }
    assert dependent == {"bindings.cpp"}
    assert len(commands) > 10


def test_unknown_choice(tmp_path):
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=maybe")
    assert not ok
    assert 'REALSPIKE_CUDA is "maybe"; use auto, on or off' in said


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter whose environment holds no package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def pytorch(site, cuda=None, hip=None):
    """Write what is read of a PyTorch into a folder of packages."""
    (site / "torch").mkdir(parents=True)
    lines = [
        f"{name}: Optional[str] = {value!r}\n" for name, value in (("cuda", cuda), ("hip", hip))
    ]
    (site / "torch" / "version.py").write_text(f"__version__ = '2.99.0'\n{''.join(lines)}")
    return site


@needs_nvcc
@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"cuda": "13.0"}, "CPU and CUDA kernels (found nvcc"),
        ({}, "CPU kernels only (the PyTorch of this Python is built for CPU, REALSPIKE_CUDA=on"),
        ({"hip": "6.4"}, "CPU kernels only (the PyTorch of this Python is built for ROCm 6.4, "),
        (None, "CPU kernels only (this Python had no PyTorch yet, REALSPIKE_CUDA=on builds"),
    ],
    ids=["cuda", "cpu", "rocm", "none"],
)
def test_auto_follows_the_pytorch_that_is_there(tmp_path, bare_python, versions, said):
    site = tmp_path / "site" if versions is None else pytorch(tmp_path / "site", **versions)
    ok, printed = configure(tmp_path / "build", python=bare_python, PYTHONPATH=str(site))
    assert ok, printed
    assert f"realspike: building {said}" in printed


def test_an_isolated_build_finds_the_pytorch_that_it_hides(tmp_path):
    """pip takes the environment's packages off the path; the interpreter is still its own."""
    venv.create(tmp_path, with_pip=False)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    pytorch(site, cuda="12.8")
    program = f"""
import runpy, sys
sys.path = [folder for folder in sys.path if "site-packages" not in folder]
runpy.run_path({str(TORCH_CUDA)!r}, run_name="__main__")
"""
    command = [tmp_path / "bin" / "python", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "CUDA 12.8\n"


def test_what_the_installed_pytorch_is_built_for():
    found = runpy.run_path(str(TORCH_CUDA))
    cuda, hip = torch.version.cuda, torch.version.hip
    expected = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    assert found["built_for"](found["folders"]()) == expected
    assert found["built_for"](["/nowhere"]) == ""


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
    ok, said = configure(tmp_path, "-DREALSPIKE_CUDA=on", TORCH_CUDA_ARCH_LIST="8.0;ninety")
    assert not ok
    assert 'TORCH_CUDA_ARCH_LIST has "ninety"; entries look like 8.0' in said
