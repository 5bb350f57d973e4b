"""Builds the extension realspike_ops._C with CMake; everything else is in pyproject.toml.

Environment: REALSPIKE_CUDA=auto|on|off (default auto: CUDA kernels if there are nvcc and, in the
environment that is installed into, a PyTorch for CUDA), CMAKE_CUDA_ARCHITECTURES or
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CMAKE_ARGS.
"""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # One folder for every way to install: the kernels are compiled once, and again where their
        # sources, options or compiler are others.
        build = ROOT / "build" / "cmake"
        # An isolated build leaves the paths of a deleted environment in what CMake found.
        for found in [*build.glob("CMakeFiles/[0-9]*"), *build.glob("CMakeCache.txt")]:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            *("-S", str(ROOT), "-B", str(build)),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DREALSPIKE_CUDA={os.environ.get('REALSPIKE_CUDA', 'auto')}",
        ]
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        print("realspike: compiling the kernels takes minutes the first time", flush=True)
        began = time.monotonic()
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        except FileNotFoundError:
            sys.exit("realspike: building needs CMake >= 3.24 (pip install cmake ninja)")
        except subprocess.CalledProcessError:
            sys.exit(
                "realspike: the build failed (see above). It needs a C++17 compiler (g++ or "
                "clang++); REALSPIKE_CUDA=off builds without the CUDA toolkit."
            )
        print(f"realspike: built {ext.name} in {time.monotonic() - began:.0f} s", flush=True)


setup(ext_modules=[Extension("realspike_ops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
