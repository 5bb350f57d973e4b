"""Compile the LIF kernels for `compute capability` argv[1], without a card, into folder argv[2].

A process of its own, because the interpreter replaces the compiler for a whole process. Writes one
cubin for each form of the kernels, named <kernel>-<dtype>-<what is saved>.cubin.
"""

import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.ops.lif import SAVE_BITS, SAVE_NOTHING, SAVE_POTENTIALS
from realspike_ops.ops.lif_cuda import options

ELEMENTS = {"float32": ("*fp32", 4), "float16": ("*fp16", 2), "bfloat16": ("*bf16", 2)}
SAVED = {SAVE_NOTHING: "nothing", SAVE_BITS: "bits", SAVE_POTENTIALS: "potentials"}
INTEGERS = ("T", "N", "x_stride_t", "amplitude_inner", "amplitude_size")
SCALARS = ("decay", "v_threshold", "v_reset", "width", "scale")


def compile_kernel(kernel, dtype, save, flags, arch):
    pointer, size = ELEMENTS[dtype]
    constants = {**options(save, size), **flags}
    compiler_options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
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
            per_element = name in ("x_ptr", "y_ptr", "grad_y_ptr", "grad_x_ptr")
            signature[name] = pointer if per_element else "*fp32"
    # What the launcher sees for a torch allocation and a size that 16 divides.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name in ("N", "x_stride_t")
    }
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", arch, 32),
        options=compiler_options,
    )


def main():
    arch, folder = int(sys.argv[1]), Path(sys.argv[2])
    forward = {"HAS_AMPLITUDE": True, "HAS_V_INIT": False, "SOFT_RESET": False}
    backward = {**forward, "HAS_GRAD_V_LAST": False, "SURROGATE": "rectangular"}
    detached, attached = ({**backward, "DETACH_RESET": flag} for flag in (True, False))
    for kernel, dtype, save, flags in [
        (lif_fwd_kernel, "float32", SAVE_NOTHING, forward),
        (lif_fwd_kernel, "float32", SAVE_POTENTIALS, forward),
        (lif_fwd_kernel, "bfloat16", SAVE_BITS, forward),
        (lif_bwd_kernel, "float32", SAVE_BITS, detached),
        (lif_bwd_kernel, "float16", SAVE_BITS, detached),
        (lif_bwd_kernel, "float32", SAVE_POTENTIALS, attached),
        (lif_bwd_kernel, "bfloat16", SAVE_POTENTIALS, attached),
    ]:
        compiled = compile_kernel(kernel, dtype, save, flags, arch)
        name = f"{kernel.fn.__name__}-{dtype}-{SAVED[save]}.cubin"
        (folder / name).write_bytes(compiled.asm["cubin"])


main()
