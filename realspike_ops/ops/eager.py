"""When an op may be called without the dispatcher, which costs more than a small kernel."""

import torch
from torch import Tensor


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd would intercept a call with these tensors.

    Tracing, torch.func transforms, dispatch modes and tensor subclasses need the registered op.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and all(t is None or type(t) in (Tensor, torch.nn.Parameter) for t in tensors)
    )
