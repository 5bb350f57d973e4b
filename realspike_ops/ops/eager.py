"""When an op may be called without the dispatcher, which costs more than a small kernel."""

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils._device import DeviceContext

_CLASSES = (Tensor, torch.nn.Parameter)


def is_plain_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd would intercept a call with these tensors.

    The registered op is needed by tracing (torch.compile, torch.export, torch.jit.trace),
    torch.func transforms, the older vmap of ``is_grads_batched=True``, function and dispatch modes,
    tensor subclasses, and tensors whose memory does not hold their values. A default device is a
    function mode that changes nothing where every tensor names its device.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() != 0
        or (torch._C._len_torch_function_stack() and not _all_are_default_devices())
        or _functorch.peek_interpreter_stack() is not None
    ):
        return False
    for t in tensors:  # a loop takes less time than all() of a generator
        # The memory must hold the values, and those of one call alone: that of the imaginary part
        # of a conjugate holds the negative values, that of a zero tensor nothing.
        if t is not None and (
            type(t) not in _CLASSES
            or t.is_neg()
            or t._is_zerotensor()
            or _functorch.is_legacy_batchedtensor(t)
        ):
            return False
    return True


def _all_are_default_devices() -> bool:
    modes = range(torch._C._len_torch_function_stack())
    return all(type(torch._C._get_function_stack_at(n)) is DeviceContext for n in modes)


def is_transformed() -> bool:
    """Whether a torch.func transform runs, which cannot map ops that take lists of tensors."""
    return not torch.compiler.is_compiling() and _functorch.peek_interpreter_stack() is not None
