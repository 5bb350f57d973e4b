"""When an op may be called without the dispatcher, which costs more than a small kernel."""

import torch
from torch import Tensor
from torch._C import _functorch
from torch.utils import _device

_PLAIN = (Tensor, torch.nn.Parameter)


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd would intercept a call with these tensors.

    Tracing (torch.compile, torch.export, torch.jit.trace), torch.func transforms, the older vmap of
    ``is_grads_batched=True``, function and dispatch modes and tensor subclasses need the registered
    op. A default device is a function mode, but has no say where every tensor names its device.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() <= (_device.CURRENT_DEVICE is not None)
        and _functorch.peek_interpreter_stack() is None
        and all(
            t is None or (type(t) in _PLAIN and not _functorch.is_legacy_batchedtensor(t))
            for t in tensors
        )
    )
