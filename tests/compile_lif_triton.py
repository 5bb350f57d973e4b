"""Compile the LIF kernels for `compute capability` argv[1] without a card and report on the code.

A process of its own, because the interpreter replaces the compiler for a whole process. One line
for each kernel: spills, fused multiply-adds, and the width of its global loads and stores of x, y
and their gradients.
"""

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.ops.lif import SAVE_BITS, SAVE_NOTHING, SAVE_POTENTIALS
from realspike_ops.ops.lif_cuda import NUM_WARPS, options

ELEMENTS = {"float32": ("*fp32", 32), "float16": ("*fp16", 16), "bfloat16": ("*bf16", 16)}
INTEGERS = ("T", "N", "x_stride_t", "amplitude_inner", "amplitude_size")
SCALARS = ("decay", "v_threshold", "v_reset", "width", "scale")


def compile_kernel(kernel, element, save, flags, arch):
    constants = {**options(save), **flags}
    for option in ("num_warps", "enable_fp_fusion"):
        constants.pop(option)
    per_element = ("x_ptr", "y_ptr", "grad_y_ptr", "grad_x_ptr")
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in INTEGERS:
            signature[name] = "i32"
        elif name in SCALARS:
            signature[name] = "fp32"
        elif name == "saved_ptr":
            signature[name] = "*u8" if save == SAVE_BITS else "*fp32"
        else:
            signature[name] = element if name in per_element else "*fp32"
    # What the launcher sees for a torch allocation and a size that 16 divides.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name in ("N", "x_stride_t")
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": NUM_WARPS, "enable_fp_fusion": False},
    )


def widths(ptx, instruction, bits):
    """Bits that one thread moves per access, for the elements of x, y and their gradients."""
    found = set()
    for vector, count_bits in re.findall(rf"{instruction}\S*?(?:\.v(\d))?\.b(\d+)", ptx):
        found.add(int(vector or 1) * int(count_bits))
    return found


def main():
    arch = int(sys.argv[1])
    forward_flags = {"HAS_AMPLITUDE": True, "HAS_V_INIT": False, "SOFT_RESET": False}
    backward_flags = {
        **forward_flags,
        "HAS_GRAD_V_LAST": False,
        "DETACH_RESET": False,
        "SURROGATE": "rectangular",
    }
    cases = [
        (lif_fwd_kernel, "float32", SAVE_NOTHING, forward_flags),
        (lif_fwd_kernel, "bfloat16", SAVE_BITS, forward_flags),
        (lif_fwd_kernel, "float32", SAVE_POTENTIALS, forward_flags),
        (lif_bwd_kernel, "float16", SAVE_BITS, {**backward_flags, "DETACH_RESET": True}),
        (lif_bwd_kernel, "float32", SAVE_POTENTIALS, backward_flags),
    ]
    for kernel, dtype, save, flags in cases:
        element, bits = ELEMENTS[dtype]
        compiled = compile_kernel(kernel, element, save, flags, arch)
        ptx = compiled.asm["ptx"]
        loads = widths(ptx, r"ld\.global", bits)
        stores = widths(ptx, r"st\.global", bits)
        print(
            f"kernel name={kernel.fn.__name__} dtype={dtype} save={save} arch={arch} "
            f"spills={getattr(compiled, 'n_spills', None)} fma={len(re.findall(r'fma', ptx))} "
            f"load_bits={loads} store_bits={stores}"
        )


main()
