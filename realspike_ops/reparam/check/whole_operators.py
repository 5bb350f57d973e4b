"""Dispatch modes that see what operators are made of, also under torch.inference_mode."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_OF_OTHERS = torch._C.DispatchKey.CompositeImplicitAutograd


def parts_of(
    mode: TorchDispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run an operator that is made of others, each of which the mode sees.

    Autograd takes such operators apart before a mode sees them (conv2d becomes convolution); of
    tensors of ``torch.inference_mode``, which it does not see, they come whole.

    Returns:
        What the operator returns; NotImplemented if it is not made of others.
    """
    # Not func.decompose, which also knows parts that autograd does not.
    if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _OF_OTHERS):
        return NotImplemented
    with mode:
        return func._op_dk(_OF_OTHERS, *args, **kwargs)
