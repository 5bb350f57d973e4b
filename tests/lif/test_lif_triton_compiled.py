"""What Triton's compiler makes of the LIF kernels, without a card: 16-byte accesses, no spills, no
fused multiply-add, no byte moved twice, and no compilation when sizes change."""

import json
from collections import Counter
from pathlib import Path

import pytest
import triton
from helpers import run_python
from sass import read_functions, read_resources

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
NEURONS_PER_THREAD = 4  # of float32: 16 bytes
NARROW = {
    "element-bits-bfloat16",
    "element-potentials-float16",
    ("lif_bwd_kernel", "learnable-none"),
    ("lif_bwd_kernel", "learnable-delayed"),
    ("lif_bwd_kernel", "learnable-ternary-soft"),
}


FUSES = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7),
    reason="this Triton fuses there, and is refused (check_rounds_separately in lif_cuda.py)",
)


@pytest.mark.parametrize(
    ("arch", "forms"),
    [
        pytest.param(80, FEW, id="80"),
        pytest.param(90, [], id="90"),
        pytest.param(100, FEW, id="100", marks=FUSES),
    ],
)
def test_compiles_ahead_of_time(arch, forms, tmp_path):
    compiler = str(SUPPORT / "compile_lif_triton.py")
    run_python(compiler, str(arch), str(tmp_path), *forms, TRITON_INTERPRET="0")
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert len(cubins) == (8 if forms else 24)
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
            # Fewer neurons a thread where registers are scarce (neurons_per_thread in lif_cuda.py).
            wide = 64 if form in NARROW or (kernel, form) in NARROW else 128
            steps = 8 if recompute else 4
            rows_read = 2 * steps if recompute and kernel == "lif_bwd_kernel" else steps
            assert loads[wide] >= rows_read, cubin.name
            assert stores[wide] >= steps, cubin.name
        if cubin.stem in BYTES:
            moved = sum(width / 8 * count for width, count in (loads + stores).items())
            per_neuron_step = moved / NEURONS_PER_THREAD / steps
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
