"""When an op may be called without the dispatcher, which costs more than a small kernel."""

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils import _device

_CLASSES = (Tensor, torch.nn.Parameter)


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd would intercept a call with these tensors.

    The registered op is needed by tracing (torch.compile, torch.export, torch.jit.trace),
    torch.func transforms, the older vmap of ``is_grads_batched=True``, function and dispatch modes,
    tensor subclasses, and tensors whose memory does not hold their values. A default device is a
    function mode that changes nothing where every tensor names its device.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() <= (_device.CURRENT_DEVICE is not None)
        and _functorch.peek_interpreter_stack() is None
        and all(t is None or _is_plain(t) for t in tensors)
    )


def is_transformed() -> bool:
    """Whether a torch.func transform runs, which cannot map ops that take lists of tensors."""
    return not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None


def _is_plain(t: Tensor) -> bool:
    """Whether the memory holds the values, and those of one call alone."""
    return type(t) in _CLASSES and not (
        t.is_neg()  # the memory of the imaginary part of a conjugate holds the negative values
        or t._is_zerotensor()  # nothing is stored
        or _functorch.is_legacy_batchedtensor(t)
    )
