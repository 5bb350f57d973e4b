"""The CUDA kernels behind a C ABI that executes them on the CPU: building and calling them.

The kernels are the shipped source; `tests/support/simt/simt_cpu.h` stands in for the device.
`test_simt_sanitizers.py` builds them with AddressSanitizer and UndefinedBehaviorSanitizer, and says
so by REALSPIKE_SIMT_SANITIZE in the environment, and where they are by REALSPIKE_SIMT_LIBRARY.
"""

import ctypes
import functools
import mmap
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from artefacts import made, sources_in, version
from torch import Tensor

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "tests" / "support" / "simt"
SOURCES = sorted(SHIM.glob("*_simt.cpp"))
SANITIZE_VARIABLE = "REALSPIKE_SIMT_SANITIZE"
SANITIZE = SANITIZE_VARIABLE in os.environ
LIBRARY = "realspike_simt.so"
SANITIZE_FLAGS = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize-sections=simt_shared",
]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


TYPES = {
    **{"int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64},
    **{"float": ctypes.c_float, "DType": ctypes.c_int32},
}


def record(header: str, name: str) -> type[ctypes.Structure]:
    """Return the struct of a header in csrc/core, with its members for fields."""
    text = (ROOT / "csrc" / "core" / header).read_text()
    body = re.search(rf"struct {name} {{\n(.*?)\n}};", text, re.DOTALL)[1]
    members = re.findall(r"^  (?:const )?(\w+)(\*?) (\w+);", body, re.MULTILINE)
    fields = [(name, ctypes.c_void_p if star else TYPES[kind]) for kind, star, name in members]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


UnsharedConvParams = record("unshared_conv.h", "UnsharedConvParams")
PackSpikesParams = record("pack_spikes.h", "PackSpikesParams")
UnpackSpikesParams = record("pack_spikes.h", "UnpackSpikesParams")


def build(sanitize: bool) -> Path:
    """Return the library of the kernels, compiled unless it is there."""
    compiler = ["g++", "-std=c++17", "-O1", "-g", "-fPIC", "-ffp-contract=off", "-DREALSPIKE_SIMT"]
    compiler += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    compiler += [f"-I{ROOT / 'csrc'}", f"-I{SHIM}", *SANITIZE_FLAGS * sanitize]

    def make(folder: Path) -> None:
        objects = [folder / f"{source.stem}.o" for source in SOURCES]
        steps = [
            [["-c", source, "-o", to] for source, to in zip(SOURCES, objects, strict=True)],
            [["-shared", *objects, "-o", folder / LIBRARY]],
        ]
        for step in steps:
            runs = [
                subprocess.Popen(
                    [*compiler, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                for arguments in step
            ]
            for run in runs:
                output, _ = run.communicate()
                assert run.returncode == 0, output.decode()

    name = "simt-sanitized" if sanitize else "simt"
    sources = sources_in("csrc", "tests/support/simt")
    return made(name, sources, [*compiler, version("g++")], make) / LIBRARY


@functools.cache
def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build(SANITIZE)))
    assert bool(lib.unshared_conv_simt_is_sanitized()) == SANITIZE
    assert lib.unshared_conv_simt_sizeof_params() == ctypes.sizeof(UnsharedConvParams)
    assert lib.pack_spikes_simt_sizeof_params() == ctypes.sizeof(PackSpikesParams)
    assert lib.unpack_spikes_simt_sizeof_params() == ctypes.sizeof(UnpackSpikesParams)
    return lib


def call(function, *arguments) -> None:
    error = ctypes.create_string_buffer(4096)
    failed = function(*arguments, error, ctypes.c_size_t(len(error)))
    assert not failed, error.value.decode()


def pack(spikes: Tensor) -> Tensor:
    """Packs [N, C, ...] of 0 and 1 into int32 words [N, ..., ceil(C / 32)], lowest bit first."""
    bits = spikes.movedim(1, -1).to(torch.int64)
    bits = F.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = (bits << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()


def far_apart(tensor: Tensor, dim: int, stride: int) -> Tensor:
    """Copies a contiguous tensor to a mapped file where the slices of `dim` lie `stride` elements
    apart; what lies between them takes no space."""
    elements = (tensor.shape[dim] - 1) * stride + tensor[0].numel()
    with tempfile.TemporaryFile() as file:
        file.truncate(elements * tensor.element_size())
        memory = mmap.mmap(file.fileno(), 0)
    strides = list(tensor.stride())
    strides[dim] = stride
    far = torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, strides)
    return far.copy_(tensor)
