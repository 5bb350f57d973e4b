"""What Triton's compiler makes of the kernels of batch norm and LIF neurons, without a card: a
chunk's loads before its stores, wide accesses, no spills, and products and sums that are rounded
one by one."""

from pathlib import Path

import pytest
import triton
from helpers import run_python
from sass import loads_before_stores, read_functions, read_resources

COMPILER = Path(__file__).parents[1] / "support" / "compile_lif_triton.py"
FORMS = ["norm-bits", "norm-potentials", "norm-element-bits-bfloat16-channels_last"]
FUSES = pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7),
    reason="this Triton fuses there, and is refused (ops/rounding_cuda.py)",
)
KERNELS = {
    *("batch_norm_moments_kernel", "batch_norm_combine_kernel", "batch_norm_statistics_kernel"),
    *("batch_norm_bwd_kernel", "lif_fwd_kernel", "lif_bwd_kernel"),
}
# Registers of a thread on compute capability 9.0.
REGISTERS = {
    "norm-bits": 96,
    "norm-potentials": 176,
    "norm-element-bits-bfloat16-channels_last": 96,
}
# Loads of a chunk: x and the residual forward, and the gradient backward; bits say all that is
# asked about the residual there.
LOADS = {
    ("lif_fwd_kernel", "norm-bits"): 4 + 4,
    ("lif_fwd_kernel", "norm-potentials"): 8 + 8,
    ("lif_fwd_kernel", "norm-element-bits-bfloat16-channels_last"): 4 + 4,
    ("lif_bwd_kernel", "norm-bits"): 4 + 4,
    ("lif_bwd_kernel", "norm-potentials"): 8 + 8 + 8,
    ("lif_bwd_kernel", "norm-element-bits-bfloat16-channels_last"): 4 + 4,
}


@pytest.mark.parametrize(
    ("arch", "forms"),
    [
        pytest.param(80, FORMS[1:2], id="80"),
        pytest.param(90, FORMS, id="90"),
        pytest.param(100, FORMS[:1], id="100", marks=FUSES),
        pytest.param(120, FORMS[2:], id="120", marks=FUSES),
    ],
)
def test_compiles_ahead_of_time(arch, forms, tmp_path):
    run_python(str(COMPILER), str(arch), str(tmp_path), *forms, TRITON_INTERPRET="0")
    cubins = sorted(tmp_path.glob("*.cubin"))
    assert {tuple(cubin.stem.split("-", 1)) for cubin in cubins} == {
        (kernel, form) for kernel in KERNELS for form in forms
    }
    for cubin in cubins:
        kernel, form = cubin.stem.split("-", 1)
        (resources,) = read_resources(cubin).values()
        assert resources["STACK"] == resources["LOCAL"] == 0, (cubin.name, "spills")
        (code,) = read_functions(cubin).values()
        opcodes = {instruction.opcode.split(".")[0] for instruction in code}
        # No sum of a thread goes to memory that another one adds to.
        assert not opcodes & {"RED", "ATOM", "ATOMG"}, cubin.name
        if kernel in ("lif_fwd_kernel", "lif_bwd_kernel"):
            assert opcodes & {"FMUL", "FMUL2"}, cubin.name
            assert not opcodes & {"FFMA", "FFMA2"}, cubin.name
            before, behind = loads_before_stores(code)
            assert before >= LOADS[kernel, form], cubin.name
            assert behind == 0, cubin.name
            assert arch != 90 or resources["REG"] <= REGISTERS[form], cubin.name
        if kernel == "batch_norm_moments_kernel":
            width = ".64" if "bfloat16" in form else ".128"  # of four neighbours
            wide = [i for i in code if i.opcode.startswith("LDG") and i.opcode.endswith(width)]
            assert len(wide) >= 8, cubin.name
            assert loads_before_stores(code)[1] == 0, cubin.name
        if kernel == "batch_norm_bwd_kernel":
            assert loads_before_stores(code)[0] >= 4 + 4, cubin.name
