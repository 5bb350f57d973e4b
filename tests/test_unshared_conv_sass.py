"""The shipped gather kernels multiply nothing but addresses: their machine code is read.

What counts as data is everything that reaches a sum: a load (of a weight, a bias or a partial sum
in shared memory) whose value, or anything computed from it, is an operand of an FADD. Following
every load forward through all paths, until its registers are overwritten, the tests assert that

* no instruction multiplies floating-point numbers at all, so no product can enter a sum that way;
* no integer multiply-add reads data, so no product of the bits of a weight, spike or sum enters
  either: it would be computed from a load and reach an FADD, which makes the load data and the
  multiply-add its reader. What integer multiply-adds do read is thread and block numbers, sizes
  and bit positions, for addresses;
* what a spike word contributes to a sum is the predicate of an FADD: spike words themselves do
  not reach one.

A multiply-add with two zero factors (`IMAD.MOV R1, RZ, RZ, R2`, `HFMA2 R1, -RZ, RZ, 0, 0`) is how
the assembler writes a move or a constant; it is followed as a move and not counted.
"""

import itertools
import re
import shutil
from pathlib import Path

import pytest
import sass

ROOT = Path(__file__).parents[1]
ARCHS = ("sm_80", "sm_90", "sm_100")

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.skipif(sass.find_cuobjdump() is None, reason="cuobjdump is not installed"),
]


@pytest.fixture(scope="module", params=ARCHS)
def cubin(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sass") / f"{request.param}.cubin"
    source = ROOT / "csrc" / "cuda" / "unshared_conv_cuda.cu"
    sass.compile_cubin(source, request.param, path, f"-I{ROOT / 'csrc'}")
    return path


@pytest.fixture(scope="module")
def kernels(cubin) -> dict[tuple[int, int], list[sass.Instruction]]:
    """The code of the gather kernels by (channels per thread, samples per tile)."""
    return {shape_of(name): code for name, code in sass.read_functions(cubin).items()}


def shape_of(name: str) -> tuple[int, int]:
    found = re.search(r"unshared_conv_fwd_kernelIfLi(\d+)ELi(\d+)E", name)
    assert found, f"{name} is not a gather kernel"
    return int(found[1]), int(found[2])


def test_every_kernel_is_there(kernels):
    assert set(kernels) == set(itertools.product((1, 4), (1, 2, 4, 8, 16)))


def test_nothing_is_spilled(cubin, kernels):
    resources = {shape_of(name): usage for name, usage in sass.read_resources(cubin).items()}
    assert set(resources) == set(kernels)
    for shape, usage in resources.items():
        assert usage["STACK"] == usage["LOCAL"] == 0, shape
        assert usage["REG"] <= 128, shape  # two blocks of 256 threads per multiprocessor
        assert not [str(i) for i in kernels[shape] if re.match(r"(LDL|STL)(\.|$)", i.opcode)]


def test_data_is_only_added(kernels):
    for (vec, samples), code in kernels.items():
        assert sass.find_multiplications(code) == []
        adds = [i for i in code if i.opcode == "FADD"]
        assert len(adds) >= 4 * vec * samples  # four rows in flight
        assert len([i for i in adds if i.predicate]) >= 4 * vec * samples


def test_weights_are_loaded_as_rows_of_the_vector_width(kernels):
    for (vec, _), code in kernels.items():
        data = sass.data_loads(code, sass.trace_loads(code))
        loads = [i for n, i in enumerate(code) if data >> n & 1 and i.opcode.startswith("LDG")]
        wide = [i for i in loads if i.opcode == "LDG.E.128.CONSTANT"]
        narrow = [i for i in loads if i.opcode == "LDG.E.CONSTANT"]
        assert len(wide) + len(narrow) == len(loads)
        assert len(wide) == (4 if vec == 4 else 0)  # what remains is the bias
        assert len(narrow) >= (1 if vec == 4 else 5)


def test_spike_words_do_not_reach_a_sum(kernels):
    for (_, samples), code in kernels.items():
        data = sass.data_loads(code, sass.trace_loads(code))
        others = [i for n, i in enumerate(code) if i.opcode.startswith("LDG") and not data >> n & 1]
        assert len(others) >= samples
        assert {i.opcode for i in others} == {"LDG.E.CONSTANT"}


PROBES = """
#include <cuda_fp16.h>
extern "C" {
__global__ void adds(const float* w, const unsigned* spikes, float* out, int stride) {
  float sum = 0.0f;
  for (int i = 0; i < 32; ++i) {
    if (spikes[threadIdx.x] >> i & 1) sum += w[i * stride + threadIdx.x];
  }
  out[threadIdx.x] = sum;
}
__global__ void multiplies_floats(const float* w, const float* x, float* out) {
  float sum = 0.0f;
  for (int i = 0; i < 32; ++i) sum += w[i] * x[threadIdx.x + i];
  out[threadIdx.x] = sum;
}
__global__ void fuses(const float* w, const float* x, float* out) {
  out[threadIdx.x] = __fmaf_rn(w[threadIdx.x], x[threadIdx.x], out[threadIdx.x]);
}
__global__ void multiplies_bits(const float* w, const unsigned* x, float* out) {
  float sum = 0.0f;
  for (int i = 0; i < 32; ++i) sum += __uint_as_float(__float_as_uint(w[i]) * x[threadIdx.x]);
  out[threadIdx.x] = sum;
}
__global__ void multiplies_bits_of_partial_sums(const float* w, float* out, int scale) {
  __shared__ float partial[64];
  partial[threadIdx.x] = w[threadIdx.x] + w[threadIdx.x + 64];
  __syncthreads();
  const float other = partial[threadIdx.x ^ 1];
  out[threadIdx.x] = __uint_as_float(__float_as_uint(other) * scale);
}
__global__ void multiplies_halves(const __half2* w, const __half2* x, __half2* out) {
  out[threadIdx.x] = __hmul2(w[threadIdx.x], x[threadIdx.x]);
}
__global__ void multiplies_doubles(const double* w, const double* x, double* out) {
  out[threadIdx.x] = w[threadIdx.x] * x[threadIdx.x];
}
__global__ void divides(const float* w, const float* x, float* out) {
  out[threadIdx.x] = w[threadIdx.x] / x[threadIdx.x];
}
}
"""


@pytest.fixture(scope="module")
def probes(tmp_path_factory) -> dict[str, list[sass.Instruction]]:
    folder = tmp_path_factory.mktemp("probes")
    (folder / "probes.cu").write_text(PROBES)
    sass.compile_cubin(folder / "probes.cu", "sm_90", folder / "probes.cubin")
    return sass.read_functions(folder / "probes.cubin")


def test_the_checker_accepts_additions(probes):
    assert any(i.multiplies for i in probes["adds"])  # addresses
    assert sass.find_multiplications(probes["adds"]) == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"void (\w+)\(", PROBES)) - {"adds"}))
def test_the_checker_finds_multiplications(probes, name):
    assert sass.find_multiplications(probes[name])
