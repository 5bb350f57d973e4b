"""What Triton's compiler makes of the LIF kernels, without a card: 16-byte accesses, a chunk's
loads before its stores, no spills, no fused multiply-add, no byte moved twice, and no compilation
when sizes change."""

import json
from collections import Counter
from pathlib import Path

import pytest
import triton
from helpers import run_python
from sass import loads_before_stores, read_functions, read_resources

SUPPORT = Path(__file__).parents[1] / "support"
FEW = [
    *("inference", "element-bits", "element-potentials-float16", "learnable-ternary-soft"),
    "packed-ternary-bfloat16",
]


def accesses(code, opcode):
    """Count the accesses of `opcode` (LDG, STG) to global memory by their width in bits."""
    counts = Counter()
    for instruction in code:
        name, *flags = instruction.opcode.split(".")
        if name == opcode:
            widths = (int(flag.lstrip("US")) for flag in flags if flag.lstrip("US").isdigit())
            counts[next((width for width in widths if width in (8, 16, 64, 128)), 32)] += 1
    return counts


# Bytes per neuron and timestep of what is loaded and stored. float32: x, y, the gradients of both
# (4 each), the words of bits (1/4, ternary 1/2) or a potential every 8 timesteps (1/2).
BYTES = {
    "lif_fwd_kernel-inference": 4 + 4,
    "lif_fwd_kernel-plain-bits": 4 + 4 + 0.25,
    "lif_fwd_kernel-plain-potentials": 4 + 4 + 0.5,
    "lif_fwd_kernel-ternary-bits": 4 + 4 + 0.5,
    "lif_bwd_kernel-plain-bits": 4 + 4 + 0.25,
    "lif_bwd_kernel-plain-potentials": 4 + 4 + 4 + 0.5,
    "lif_bwd_kernel-ternary-bits": 4 + 4 + 0.5,
    "lif_bwd_kernel-ternary-potentials": 4 + 4 + 4 + 0.5,
}
# 8 bytes of a row a thread instead of 16 where registers are scarce, or where programs own few
# columns (lif_tiling.py).
NARROW = {
    *(f"lif_fwd_kernel-{form}" for form in ("element-bits-bfloat16", "element-potentials-float16")),
    *(f"lif_bwd_kernel-{form}" for form in ("plain-potentials", "ternary-potentials")),
    *(f"lif_bwd_kernel-learnable-{form}" for form in ("none", "delayed", "ternary-soft")),
    "lif_bwd_kernel-element-bits",
}
# 4 bytes: few columns, and two bytes a neuron.
NARROWEST = {f"lif_bwd_kernel-element-{form}" for form in ("bits-bfloat16", "potentials-float16")}
# Registers of a thread on compute capability 9.0.
REGISTERS = {
    "lif_fwd_kernel-inference": 32,
    "lif_fwd_kernel-plain-bits": 56,
    "lif_fwd_kernel-plain-potentials": 64,
    "lif_fwd_kernel-element-bits": 56,
    "lif_packed_fwd_kernel-packed": 64,
    "lif_packed_fwd_kernel-packed-channels_last": 48,
    "lif_bwd_kernel-plain-bits": 40,
    "lif_bwd_kernel-plain-potentials": 96,
    "lif_bwd_kernel-element-bits": 80,
}


FUSES = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7),
    reason="this Triton fuses there, and is refused (ops/rounding_cuda.py)",
)


@pytest.mark.parametrize(
    ("arch", "forms"),
    [
        pytest.param(80, FEW, id="80"),
        pytest.param(90, [], id="90"),
        pytest.param(100, FEW, id="100", marks=FUSES),
        pytest.param(120, FEW[1:3], id="120", marks=FUSES),
    ],
)
def test_compiles_ahead_of_time(arch, forms, tmp_path):
    compiler = str(SUPPORT / "compile_lif_triton.py")
    run_python(compiler, str(arch), str(tmp_path), *forms, TRITON_INTERPRET="0")
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert len(cubins) == {0: 24, 2: 4}.get(len(forms), 8)
    counted = set()
    for cubin in cubins:
        (resources,) = read_resources(cubin).values()
        assert resources["STACK"] == resources["LOCAL"] == 0, (cubin.name, "spills")
        (code,) = read_functions(cubin).values()
        opcodes = {instruction.opcode.split(".")[0] for instruction in code}
        # The recurrence is a product and a sum, each rounded (two at a time on sm_100).
        assert opcodes & {"FMUL", "FMUL2"}, cubin.name
        assert opcodes & {"FADD", "FADD2"}, cubin.name
        assert not opcodes & {"FFMA", "FFMA2"}, cubin.name
        kernel, form = cubin.stem.split("-", 1)
        loads, stores = accesses(code, "LDG"), accesses(code, "STG")
        if kernel != "lif_packed_fwd_kernel":
            recompute = "bits" not in form and form != "inference"
            wide = 64 if cubin.stem in NARROW else 32 if cubin.stem in NARROWEST else 128
            steps = 8 if recompute else 4
            rows_read = 2 * steps if recompute and kernel == "lif_bwd_kernel" else steps
            assert loads[wide] >= rows_read, cubin.name
            assert stores[wide] >= steps, cubin.name
            # No load waits for a store; what is loaded once, before the first chunk, comes on top.
            before, behind = loads_before_stores(code)
            assert before >= rows_read, cubin.name
            assert behind == 0, cubin.name
            if form.startswith("element"):
                # Amplitudes of neighbours are one load, and their gradient one store.
                parameters = sum(loads.values()) - loads[wide]
                assert parameters <= (4 if cubin.stem in NARROWEST | NARROW else 1), cubin.name
        else:
            # 16 bytes of neighbours, and those of the next timestep before the words of this one.
            per_channel = sum(loads.values()) - loads[128]
            assert loads[128] >= 4, cubin.name
            assert per_channel == (32 if "ternary" in form else 0), cubin.name
            assert loads_before_stores(code)[1] == 0, cubin.name
        assert arch != 90 or resources["REG"] <= REGISTERS.get(cubin.stem, 168), cubin.name
        if cubin.stem in BYTES:
            moved = sum(width / 8 * count for width, count in (loads + stores).items())
            per_neuron_step = moved / (wide / 32) / steps
            assert per_neuron_step == BYTES[cubin.stem], cubin.name
            counted.add(cubin.stem)
    assert forms or counted == set(BYTES)


def test_no_compilation_when_sizes_change():
    """A compiled kernel is looked up by whether 16 divides N, the stride over time and the row, by
    whether there are many neurons, and where potentials are kept by whether there are more than 4
    timesteps; neither T nor the batch nor a number of the neuron is a constant of it."""
    found = json.loads(run_python(str(SUPPORT / "specialize_lif_triton.py"), TRITON_INTERPRET="0"))
    assert len(found["plain"]) == 80
    for form, by_size in found.items():
        kernels = len(by_size[0][1])
        assert kernels == (1 if form == "packed" else 2)
        for i in range(kernels):
            different = {keys[i] for _, keys in by_size}
            if isinstance(by_size[0][0], list):
                assert len(different) <= (4 if form in ("attached", "learnable") else 2), form
                # One for many neurons and timesteps, one for few and many, ...
                assert len({(*kind, keys[i]) for kind, keys in by_size}) == 4, form
            else:
                # Fewer neurons than a tile are a row of their own, which 16 may divide or not.
                assert len(different) <= (2 if form == "odd maps" else 1), form
    assert found["plain"][0][1] == found["other maps"][0][1] == found["other numbers"][1][1]
    # The check can fail: what 16 does not divide has no 16-byte accesses, another form is another.
    assert found["odd maps"][0][1] != found["plain"][0][1]
    assert found["attached"][0][1] != found["plain"][0][1]
