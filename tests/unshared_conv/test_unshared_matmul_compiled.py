"""What Triton's compiler makes of the convolution on matrix units, without a card: instructions of
theirs, no spills, weights in 16-byte copies, and no compilation when sizes change."""

import json
import re
from pathlib import Path

import pytest
import triton
from artefacts import ROOT, made, sources_in
from helpers import run_python
from sass import read_functions, read_resources

SUPPORT = Path(__file__).parents[1] / "support"
COMPILER = SUPPORT / "compile_unshared_matmul.py"
SOURCES = [
    *(COMPILER, SUPPORT / "triton_launches.py"),
    *sources_in("realspike_ops/kernels"),
    *(ROOT / "realspike_ops" / "ops").glob("unshared_*.py"),
]
FEW = (
    *("bfloat16", "float32", "int8", "shared-float32", "int8-everything"),
    *("neurons-bfloat16", "neurons-float32", "neurons-int8-everything"),
)
ALL = (
    *("bfloat16", "float16", "float32", "int8", "shared-bfloat16", "shared-float32"),
    *("shared-int8", "int8-everything", "bfloat16-contiguous", "bfloat16-few"),
    *("neurons-bfloat16", "neurons-float32", "neurons-int8", "neurons-shared-float32"),
    "neurons-int8-everything",
)
# By compute capability: forms, the instructions of the matrix units on floats and on int8, the most
# shared memory that a program may have.
ARCHITECTURES = {
    80: (FEW, r"HMMA\.16816\.F32", r"IMMA\.16832\.S8\.S8", 163),
    90: (ALL, r"HGMMA\.64x\d+x16\.F32", r"IGMMA\.64x\d+x32\.S8\.S8", 227),
    100: (FEW, r"UTCHMMA", r"UTCIMMA", 227),
    120: (FEW, r"HMMA\.16816\.F32", r"IMMA\.16832\.S8\.S8", 99),
}


def compiled(arch: int) -> Path:
    forms = ARCHITECTURES[arch][0]

    def make(folder):
        arguments = (str(COMPILER), str(arch), str(folder), *forms)
        run_python(*arguments, TRITON_INTERPRET="0")

    how = (triton.__version__, arch, *forms)
    return made(f"unshared-matmul-sm{arch}", SOURCES, how, make)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_to_matrix_units_ahead_of_time(arch):
    forms, on_floats, on_int8, kib = ARCHITECTURES[arch]
    folder = compiled(arch)
    shared_memory = json.loads((folder / "shared_memory.json").read_text())
    assert set(shared_memory) == set(forms)
    for form in forms:
        cubin = folder / f"{form}.cubin"
        (resources,) = read_resources(cubin).values()
        (code,) = read_functions(cubin).values()
        opcodes = {instruction.opcode for instruction in code}
        assert resources["STACK"] == resources["LOCAL"] == 0, (form, "spills")
        # Two programs of 128 threads, or more, fit into the registers of a multiprocessor, and one
        # into its shared memory.
        assert 2 * 128 * resources["REG"] <= 65536, form
        assert shared_memory[form] <= kib * 1024, form
        products = {opcode for opcode in opcodes if "MMA" in opcode}
        expected = on_int8 if "int8" in form else on_floats
        if form == "bfloat16-few":  # 16 rows; a warp group multiplies 64
            expected = ARCHITECTURES[80][1]
        assert products, form
        assert all(re.match(expected, opcode) for opcode in products), (form, products)
        # The scale and the bias, and what decays and its current, are rounded separately.
        plain = {opcode.split(".")[0] for opcode in opcodes}
        assert not plain & {"FFMA", "FFMA2"}, form
        scales = form == "int8-everything" or form.startswith("neurons")
        assert bool(plain & {"FMUL", "FMUL2"}) == scales, form
        copies = [i.opcode for i in code if i.opcode.startswith("LDGSTS")]
        wide = [opcode for opcode in copies if opcode.endswith(".128")]
        # Ten channels are not a whole number of 16 bytes. Where registers feed the matrix units,
        # bytes are copied by fours.
        narrow = form == "bfloat16-few" or ("int8" in form and arch in (80, 120))
        assert copies, form
        assert bool(wide) != narrow, form


def test_three_programs_of_half_precision_share_a_multiprocessor():
    """On an H100, whose memory 64 samples by 128 channels are to keep busy."""
    folder = compiled(90)
    shared_memory = json.loads((folder / "shared_memory.json").read_text())
    for form in ("bfloat16", "float16", "int8"):
        (resources,) = read_resources(folder / f"{form}.cubin").values()
        assert 3 * 128 * resources["REG"] <= 65536, form
        assert 3 * (shared_memory[form] + 1024) <= 227 * 1024, form


def test_no_compilation_when_sizes_change():
    """A compiled kernel is looked up by the tile, of which there are three as the samples and the
    map vary, and by whether 16 divides the channels."""
    text = run_python(str(COMPILER), "90", "", "keys", TRITON_INTERPRET="0")
    found = json.loads(text)
    assert len(found) == 4
    for form, launches in found.items():
        assert len(launches) == 18, form
        assert {rows for rows, _ in launches} == {16, 32, 64}, form
        assert len({key for _, key in launches}) == 3, form
