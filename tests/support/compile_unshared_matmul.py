"""Compile the convolution on matrix units for the compute capability argv[1], without a card.

A process of its own (triton_launches.py). Writes the cubins of the forms argv[3:] into the folder
argv[2], and how many bytes of shared memory each takes: <form>.cubin, shared_memory.json. With
"keys" for a form, prints as JSON which compiled kernels the launches of many sizes look up.
"""

import itertools
import json
import sys
from pathlib import Path

import torch
from triton_launches import Launch, recorded

from realspike_ops.kernels import unshared_matmul as kernels
from realspike_ops.ops import unshared_conv, unshared_matmul, unshared_matmul_lif
from realspike_ops.ops.lif_contract import Neuron, neurons_in_memory_order

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
# dtype of the weight, kernel for all positions, settings of `launch_of`
FORMS = {
    "bfloat16": (torch.bfloat16, False, {}),
    "float16": (torch.float16, False, {}),
    "float32": (torch.float32, False, {}),
    "int8": (torch.uint8, False, {}),
    "shared-bfloat16": (torch.bfloat16, True, {}),
    "shared-float32": (torch.float32, True, {}),
    "shared-int8": (torch.uint8, True, {}),
    "int8-everything": (torch.uint8, False, {"bias": "element", "scale": True}),
    "bfloat16-contiguous": (torch.bfloat16, False, {"channels_last": False}),
    "bfloat16-few": (torch.bfloat16, False, {"samples": 1, "channels": (20, 10)}),
    # With neurons behind the sums, of four timesteps.
    "neurons-bfloat16": (torch.bfloat16, False, {"neurons": PAPERS}),
    "neurons-float32": (torch.float32, False, {"neurons": PAPERS}),
    "neurons-int8": (torch.uint8, False, {"neurons": PAPERS}),
    "neurons-shared-float32": (torch.float32, True, {"neurons": PAPERS}),
    "neurons-int8-everything": (
        torch.uint8,
        True,
        {"neurons": PAPERS._replace(ternary=True, reset="soft"), "scale": True, "tensors": True},
    ),
}


def launch_of(
    dtype, shared, *, samples=64, channels=(128, 128), size=32, bias=None, scale=False,
    channels_last=True, neurons=None, tensors=False,
) -> Launch:  # fmt: skip
    """The launch for 3 x 3 kernels; nothing is computed."""
    Cin, Cout = channels
    positions = 1 if shared else size
    out_shape = (samples, Cout, size, size)
    meta = torch.device("meta")
    out = torch.empty(
        out_shape,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        device=meta,
    )
    arguments = unshared_conv.kernel_arguments(
        torch.empty((samples, size, size, -(-Cin // 32)), dtype=torch.int32, device=meta),
        torch.empty((positions, positions, 1, 3, 3, Cin, Cout), dtype=dtype, device=meta),
        None if bias is None else torch.empty((Cout, size, size), device=meta),
        None,
        torch.empty(Cout, device=meta) if scale else None,
        out,
        (size, size),
        ((1, 1), (1, 1), (1, 1)),
    )
    with recorded(kernels, "unshared_matmul_kernel", "unshared_matmul_lif_kernel") as launches:
        if neurons is None:
            unshared_matmul.launch(arguments)
        else:
            element = torch.empty((Cout, size, size), device=meta) if tensors else None
            state = torch.empty((samples // 4, Cout, size, size), device=meta)
            state = state.contiguous(memory_format=torch.channels_last) if tensors else None
            behind = neurons_in_memory_order(
                None, element, element, state, neurons, (Cout, size, size), True
            )
            packed = torch.empty((samples, size, size, -(-Cout // 32)), device=meta).int()
            unshared_matmul_lif.launch(arguments, behind, 4, packed, state)
    (launch,) = launches
    return launch


def keys():
    """By dtype: [rows of the tile, key] of many numbers of samples and sizes of maps."""
    sizes = itertools.product((1, 17, 33, 64, 65, 1000), (5, 8, 32))
    for_all = [(samples, size) for samples, size in sizes]
    return {
        f"{dtype} {shared}": [
            [launch.kwargs["ROWS"], launch.key(90)]
            for samples, size in for_all
            for launch in [launch_of(dtype, shared, samples=samples, size=size)]
        ]
        for dtype, shared in itertools.product((torch.bfloat16, torch.uint8), (False, True))
    }


def main():
    arch, folder, forms = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    if forms == ["keys"]:
        print(json.dumps(keys()))
        return
    shared_memory = {}
    for form in forms:
        dtype, shared, how = FORMS[form]
        compiled = launch_of(dtype, shared, **how).compiled(arch)
        (folder / f"{form}.cubin").write_bytes(compiled.asm["cubin"])
        shared_memory[form] = compiled.metadata.shared
    (folder / "shared_memory.json").write_text(json.dumps(shared_memory))


if __name__ == "__main__":
    main()
