"""The shipped gather kernels multiply nothing but addresses: their machine code is read.

What counts as data is everything that reaches a sum: a load (of a weight, a bias or a partial sum
in shared memory) whose value, or anything computed from it, is an operand of an FADD. Following
every load forward through all paths, until its registers are overwritten, the tests assert that

* no instruction multiplies floating-point numbers at all, so no product can enter a sum that way;
* what is added in 16-bit lanes (int8 weights) counts as data likewise;
* no integer multiply-add reads data, so no product of the bits of a weight, spike or sum enters
  either: it would be computed from a load and reach an FADD, which makes the load data and the
  multiply-add its reader. What integer multiply-adds do read is thread and block numbers, sizes
  and bit positions, for addresses;
* what a spike word contributes to a sum is which rows are loaded (a list of their numbers), or, of
  staged rows, which are added: spike words themselves do not reach one. The number of their bits
  (POPC) does with int8 weights, which are stored 128 too large: 128 for every row added is taken
  off again.

A multiply-add with two zero factors (`IMAD.MOV R1, RZ, RZ, R2`, `HFMA2 R1, -RZ, RZ, 0, 0`) is how
the assembler writes a move or a constant; it is followed as a move and not counted. One with the
constant factor 1 (`IMAD.IADD R1, R2, 0x1, R3`) is how it adds integers in the other pipe.
The only multiplication on data is one per output: the scale of int8 weights times a finished sum,
which is an integer. It stands where the sum has become a floating-point number, and nothing in the
kernel makes such a number an integer again, so that no product can enter a sum.

Shared memory holds more than data: lists of rows and spike words beside partial sums (or, for the
gradient of the weight, beside the gradients that it adds). What was loaded from there is data if it
reaches an FADD, as everywhere. The kernels for many samples have nothing but weights there.
"""

import itertools
import re
import shutil
from pathlib import Path

import pytest
import sass
from artefacts import made, sources_in, version

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc" / "cuda" / "unshared_conv"
ARCHS = ("sm_80", "sm_90", "sm_100")

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.skipif(sass.find_cuobjdump() is None, reason="cuobjdump is not installed"),
]


def compile_op(name: str, arch: str) -> Path:
    """Return the machine code of a file, compiled unless it is there."""

    def make(folder: Path) -> None:
        sass.compile_cubin(SOURCES / name, arch, folder / f"{arch}.cubin", f"-I{ROOT / 'csrc'}")

    kept = f"unshared_conv-{name.removesuffix('.cu')}-{arch}"
    return made(kept, sources_in("csrc"), [version("nvcc")], make) / f"{arch}.cubin"


@pytest.fixture(scope="module", params=ARCHS)
def cubin(request) -> Path:
    return compile_op("launch.cu", request.param)


# The width of four weights in a load, which is a part of its opcode.
WEIGHTS = {"float": ".128", "Float16Weight": ".64", "BFloat16Weight": ".64", "Int8Weight": ""}


def rows_in_flight(weight: str, cubin: Path) -> int:
    return 16 if weight == "Int8Weight" and cubin.stem != "sm_80" else 8


def added_rows(weight: str, cubin: Path) -> int:
    """Places where a row is added: the rows of a whole group, and those of one that is not."""
    return 2 * rows_in_flight(weight, cubin) - 1


def row_load(weight: str, keep: int) -> str:
    return f"LDG.E{'' if keep else '.NA'}{WEIGHTS[weight]}.CONSTANT"


@pytest.fixture(scope="module")
def functions(cubin) -> dict[str, list[sass.Instruction]]:
    return sass.read_functions(cubin)


@pytest.fixture(scope="module")
def kernels(functions) -> dict[tuple[str, int, int], list[sass.Instruction]]:
    """The code of the gather kernels by (weight, channels per thread, whether rows are kept)."""
    return {shape_of(name): code for name, code in functions.items() if "conv_fwd_" in name}


@pytest.fixture(scope="module")
def staged(functions) -> dict[tuple[str, int], list[sass.Instruction]]:
    """The code of the kernels for many samples by (weight, samples per stream)."""
    return {shape_of(name): code for name, code in functions.items() if "_staged_" in name}


def shape_of(name: str) -> tuple:
    found = re.search(r"fwd_kernelI(f|NS_\d+(\w+?)E)Li(\d+)E(?:Lb(\d+)E)?", name)
    assert found, f"{name} is not a gather kernel"
    return found[2] or "float", *(int(number) for number in found.groups()[2:] if number)


def test_every_kernel_is_there(kernels, staged, functions):
    forms = ((1, 1), (4, 0), (4, 1))
    assert set(kernels) == {(weight, *form) for weight in WEIGHTS for form in forms}
    assert set(staged) == set(itertools.product(WEIGHTS, (4, 8)))
    others = [name for name in functions if "_fwd_" not in name]
    assert sorted(re.findall(r"(second_pass|lif)_kernelI([fi])E", " ".join(others))) == [
        *(("lif", "f"), ("lif", "i"), ("second_pass", "f"), ("second_pass", "i"))
    ]
    assert len(others) == 4


def test_nothing_is_spilled(cubin, functions):
    resources = sass.read_resources(cubin)
    assert set(resources) == set(functions)
    for name, usage in resources.items():
        assert usage["STACK"] == usage["LOCAL"] == 0, name
        # Four blocks of 256 threads per multiprocessor; of those for many samples, three (two).
        many = 128 if cubin.stem == "sm_80" else 80
        assert usage["REG"] <= (many if "_staged_" in name else 64), name
        assert not [str(i) for i in functions[name] if re.match(r"(LDL|STL)(\.|$)", i.opcode)]


def test_data_is_only_added(kernels, cubin):
    for (weight, vec, _), code in kernels.items():
        scales = weight == "Int8Weight"
        assert sass.find_multiplications(code, shared_is_data=False, scales_sums=scales) == []
        if not scales:
            adds = [i for i in code if i.opcode == "FADD"]
            assert len(adds) >= added_rows(weight, cubin) * vec


def test_data_is_only_added_with_many_samples(staged, cubin):
    for (weight, samples), code in staged.items():
        scales = weight == "Int8Weight"
        assert sass.find_multiplications(code, scales_sums=scales) == []
        # Two rows at a time.
        if not scales:
            assert len([i for i in code if i.opcode == "FADD"]) >= 2 * 4 * samples
        elif cubin.stem != "sm_80":
            assert len([i for i in code if i.opcode == "VIADD.16x2"]) == 2 * 2 * samples
        # Rows go through shared memory, as floats or 16-bit lanes.
        prepared = ".64" if weight == "Int8Weight" else ".128"
        opcodes = {i.opcode for i in code}
        expected = {f"LDG.E.NA{WEIGHTS[weight]}.CONSTANT", f"STS{prepared}", f"LDS{prepared}"}
        assert expected <= opcodes, weight


def test_int8_is_added_in_16_bit_lanes(kernels, cubin):
    for (weight, vec, keep), code in kernels.items():
        lanes = [i for i in code if i.opcode == "VIADD.16x2"]
        # sm_80 has no such instruction; there the lanes are masked.
        native = weight == "Int8Weight" and cubin.stem != "sm_80"
        expected = added_rows(weight, cubin) * (1 if vec == 1 else 2) if native else 0
        assert len(lanes) == expected, (weight, vec, keep)


def test_the_second_pass_scales_int8_alone(functions):
    found = {
        name: sass.find_multiplications(code)
        for name, code in functions.items()
        if "second_pass" in name
    }
    (floats,) = (lines for name, lines in found.items() if "kernelIfE" in name)
    (ints,) = (lines for name, lines in found.items() if "kernelIiE" in name)
    assert floats == []
    assert len(ints) == 1
    assert "FMUL" in ints[0]


def test_neurons_multiply_by_the_decay_and_never_fuse(functions):
    for name, code in functions.items():
        if "conv_lif_kernel" not in name:
            continue
        multiplied = [i.opcode for i in code if re.match(r"F(MUL|FMA)", i.opcode)]
        # The decay of a potential; for int8 weights the scales of two sums, that of negative spikes
        # being the second.
        assert multiplied == ["FMUL"] * (3 if "kernelIiE" in name else 1), name


def test_weights_are_loaded_four_at_a_time(kernels, cubin):
    """A warp has 128 channels: 512 bytes of float32 in one load."""
    for (weight, vec, keep), code in kernels.items():
        data = sass.data_loads(code, sass.trace_loads(code), shared_is_data=False)
        loads = [i for n, i in enumerate(code) if data >> n & 1 and i.opcode.startswith("LDG")]
        wide = [i for i in loads if i.opcode == row_load(weight, keep)]
        if vec == 1:
            assert len(loads) >= rows_in_flight(weight, cubin)
        elif weight == "Int8Weight" and keep:  # loads of the bias are no narrower
            assert len(wide) >= rows_in_flight(weight, cubin)
        else:
            assert len(wide) == rows_in_flight(weight, cubin)
            assert len(loads) > len(wide)  # the bias


def test_the_loads_of_a_group_are_issued_before_its_first_addition(kernels):
    for (weight, vec, keep), code in kernels.items():
        if vec == 1 or (weight == "Int8Weight" and keep):
            continue
        opcodes = [i.opcode for i in code]
        rows = [n for n, opcode in enumerate(opcodes) if opcode == row_load(weight, keep)]
        between = opcodes[rows[0] : rows[-1]]
        assert not [opcode for opcode in between if re.match(r"FADD|VIADD\.16x2", opcode)]


def test_spike_words_do_not_reach_a_sum(kernels):
    for (weight, *_), code in kernels.items():
        data = sass.data_loads(code, sass.trace_loads(code), shared_is_data=False)
        others = [i for n, i in enumerate(code) if i.opcode.startswith("LDG") and not data >> n & 1]
        assert {i.opcode for i in others} == {"LDG.E.CONSTANT"}, weight


@pytest.fixture(scope="module", params=ARCHS)
def grad_cubin(request) -> Path:
    return compile_op("grad_launch.cu", request.param)


def test_the_gradient_of_the_weight_is_only_added(grad_cubin):
    functions = sass.read_functions(grad_cubin)
    resources = sass.read_resources(grad_cubin)
    widths = {}
    for name, code in functions.items():
        found = re.search(r"grad_weight_kernelI(f|NS_\d+(\w+?)E)Li(\d+)E", name)
        stored, vec = found[2] or "float", int(found[3])
        widths.setdefault(stored, set()).add(vec)
        assert sass.find_multiplications(code, shared_is_data=False) == []
        assert len([i for i in code if i.opcode == "FADD"]) >= vec
        assert resources[name]["STACK"] == resources[name]["LOCAL"] == 0, name
        assert resources[name]["REG"] <= 64, name  # four blocks of 256 threads per multiprocessor
        data = sass.data_loads(code, sass.trace_loads(code), shared_is_data=False)
        loads = {i.opcode for n, i in enumerate(code) if data >> n & 1}
        stores = {i.opcode for i in code if i.opcode.startswith("STG")}
        if vec == 1:
            assert "LDS" in loads
        else:
            # Gradients come from shared memory and rows go out 16 bytes at a time.
            assert "LDS.128" in loads
            assert stores == {"STG.E.128"}
        # Spike words, and what a warp makes of them, are no data.
        others = {i.opcode for n, i in enumerate(code) if not data >> n & 1}
        assert {"LDS", "LDG.E.CONSTANT", "SHFL.BFLY"} <= others
    assert widths == {"float": {1, 4}, "Float16Weight": {1, 8}, "BFloat16Weight": {1, 8}}


@pytest.fixture(scope="module")
def depthwise(functions) -> dict[tuple[str, int], list[sass.Instruction]]:
    """The code of the kernels for one channel per group by (weight, samples per tile)."""
    return {shape_of(name): code for name, code in functions.items() if "_depthwise_" in name}


def test_depthwise_data_is_only_added(depthwise):
    assert set(depthwise) == set(itertools.product(WEIGHTS, (8, 32)))
    for (weight, samples), code in depthwise.items():
        added = [i for i in code if i.predicate and re.match("FADD|I?ADD|IMAD.IADD", i.opcode)]
        # Whether a sample fired is the predicate of its addition.
        assert len(added) >= samples, (weight, samples)
        if weight != "Int8Weight":
            assert sass.find_multiplications(code, shared_is_data=False) == []
            # Of all loads a sum has those of the weights and the bias; spike words are predicates.
            data = sass.data_loads(code, sass.trace_loads(code), shared_is_data=False)
            loads = [i for i in code if i.opcode.startswith("LDG")]
            others = [i for n, i in enumerate(code) if i in loads and not data >> n & 1]
            assert {i.opcode for i in others} == {"LDG.E.CONSTANT"}
            assert 4 <= len(others) < len(loads)


def test_depthwise_scales_finished_int8_sums_alone(depthwise):
    for (weight, samples), code in depthwise.items():
        scaled = [n for n, i in enumerate(code) if i.opcode == "FMUL"]
        if weight != "Int8Weight":
            assert scaled == []
            continue
        # Of each sample, where the outputs lie and where they are exchanged.
        assert len(scaled) == 2 * samples
        for n in scaled:
            factors = [converts(code, n, register) for register in code[n].sources]
            assert factors.count(True) == 1, str(code[n])
        # Without these products nothing that is read from memory is multiplied.
        assert sass.find_multiplications(code, shared_is_data=False, scales_sums=True) == []


def converts(code: list[sass.Instruction], n: int, register: str) -> bool:
    """Whether what `code[n]` reads from a register is an integer just converted to a float."""
    for instruction in reversed(code[:n]):
        if register in instruction.result:
            return instruction.opcode.startswith("I2F")
    return False


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
__global__ void multiplies_bytes(const uint4* w, unsigned* out, int scale) {
  const uint4 row = w[threadIdx.x];
  out[threadIdx.x] = __vadd2(row.x * scale, row.y);
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


@pytest.mark.parametrize(("sides", "found"), [(("P0",), 1), (("P0", "!P0"), 0), (("P0", "P1"), 1)])
def test_what_is_overwritten_whatever_the_predicate_is_gone(sides, found):
    lines = [
        ("", "LDG.E", "R1", "[R8.64]"),
        ("", "FADD", "R9", "R1", "R1"),
        *((side, "MOV", "R1", "RZ") for side in sides),
        ("", "IMAD", "R2", "R1", "R3", "RZ"),
        ("", "EXIT"),
    ]
    code = [
        sass.Instruction(16 * i, predicate, opcode, operands)
        for i, (predicate, opcode, *operands) in enumerate(lines)
    ]
    assert len(sass.find_multiplications(code)) == found
