"""The convolution on matrix units without a card: Triton's interpreter stands for one."""

import contextlib

import numpy as np
import pytest
import torch
import triton.language as tl

from realspike_ops.ops import unshared_matmul, unshared_matmul_lif
from realspike_ops.reparam import plan

H200 = (9, 0)


@contextlib.contextmanager
def products_of_bfloat16():
    """Let the interpreter multiply bfloat16, which it holds as integers."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(operand):
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *others):
        return dot(self, widened(a), widened(b), *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        yield


@contextlib.contextmanager
def a_card():
    """Let the CPU pass for a device with matrix units, which are ahead from 2 input channels on.

    Yields the list of the sizes that were launched, and whether neurons ran behind the sums.
    """
    launched = []
    launch, launch_lif = unshared_matmul.launch, unshared_matmul_lif.launch

    def seen(arguments, products=True):
        launched.append((arguments.sizes, False))
        launch(arguments)

    def seen_lif(arguments, *neurons):
        launched.append((arguments.sizes, True))
        launch_lif(arguments, *neurons)

    with (
        products_of_bfloat16(),
        torch.library._scoped_library("realspike", "IMPL") as library,
        pytest.MonkeyPatch.context() as patch,
    ):
        library.impl("unshared_matmul_lif", unshared_matmul_lif._registered, "CPU")
        patch.setattr(unshared_matmul, "launch_cpu", seen)
        patch.setattr(unshared_matmul_lif, "launch", seen_lif)
        # Layers run one by one, as on a card.
        patch.setattr(plan, "is_plain_eager", lambda *tensors: False)
        patch.setattr(unshared_matmul, "capability_of", lambda device: H200)
        patch.setattr(unshared_matmul, "is_ahead", lambda sizes: sizes.Cin_g >= 2)
        yield launched
