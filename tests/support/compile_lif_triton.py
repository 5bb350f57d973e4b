"""Compile LIF kernels for the compute capability argv[1], without a card, into the folder argv[2].

A process of its own (triton_launches.py). Writes the cubins that the launches of the forms argv[3:]
(default: all without a batch norm) would compile, named <kernel>-<form>.cubin.
"""

import sys
from pathlib import Path

import torch
from triton_launches import launches_of

from realspike_ops.ops.lif_contract import Neuron

PAPERS = Neuron(0.25, 0.5, 0.0, "hard", True, False, "rectangular", 1.0)
ATTACHED = PAPERS._replace(detach_reset=False)
TERNARY = PAPERS._replace(ternary=True)
ELEMENT, CHANNEL = (16, 16, 16), (16, 1, 1)
LEARNABLE = {"amplitude": CHANNEL, "decay": CHANNEL, "v_threshold": CHANNEL, "learn": True}

# Sizes that 16 divides, as those of most networks, and neurons enough for a card.
MANY = (64, 16, 16, 16)
FORMS = {
    "inference": (PAPERS, {"inference": True}),
    "plain-bits": (PAPERS, {}),
    "plain-potentials": (ATTACHED, {}),
    "element-bits": (PAPERS, {"amplitude": ELEMENT}),
    "element-bits-bfloat16": (PAPERS, {"amplitude": ELEMENT, "dtype": torch.bfloat16}),
    "element-potentials-float16": (ATTACHED, {"amplitude": ELEMENT, "dtype": torch.float16}),
    "ternary-bits": (TERNARY, {}),
    "ternary-potentials": (TERNARY._replace(detach_reset=False, surrogate="triangle"), {}),
    "learnable-ternary-soft": (TERNARY._replace(reset="soft", detach_reset=False), LEARNABLE),
    "learnable-delayed": (ATTACHED._replace(reset="soft_delayed"), LEARNABLE),
    "learnable-none": (PAPERS._replace(reset="none"), LEARNABLE),
    "norm-bits": (PAPERS, {"norm": True, "residual": True}),
    "norm-potentials": (ATTACHED, {"norm": True, "residual": True}),
    "norm-element-bits-bfloat16-channels_last": (
        PAPERS,
        {
            **{"norm": True, "residual": True, "amplitude": ELEMENT},
            **{"dtype": torch.bfloat16, "channels_last": True},
        },
    ),
    "packed": (PAPERS, {"packed": True}),
    "packed-channels_last": (PAPERS, {"packed": True, "channels_last": True, "state": True}),
    "packed-ternary-bfloat16": (
        TERNARY,
        {"packed": True, "decay": CHANNEL, "v_threshold": CHANNEL, "dtype": torch.bfloat16},
    ),
}


def main():
    arch, folder = int(sys.argv[1]), Path(sys.argv[2])
    for form in sys.argv[3:] or (form for form in FORMS if not form.startswith("norm")):
        neuron, how = FORMS[form]
        for launch in launches_of(16, MANY, neuron, **how):
            name = f"{launch.kernel.fn.__name__}-{form}.cubin"
            (folder / name).write_bytes(launch.compiled(arch).asm["cubin"])


if __name__ == "__main__":
    main()
