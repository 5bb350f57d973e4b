"""What a step must not do: anything for which the host waits for the device, or reads of it.

On a card `torch.cuda.set_sync_debug_mode` refuses it. Without one, these modes do: on tensors of
the CPU, which nobody waits for, they refuse the calls that would wait if they were on a card.
"""

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Synchronised(AssertionError):
    """A step waits for the device."""


# Calls that read values, or whose result has a shape that the values decide.
_READING = set(
    "item tolist numpy cpu nonzero argwhere unique unique_consecutive masked_select equal allclose "
    "is_nonzero __bool__ __float__ __int__ __index__ __complex__ __array__".split()
)
_ATEN = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("bincount", "histc", "repeat_interleave"),
}


class _Copied:
    """Knows the tensors that something was copied to without waiting; those may be read."""

    def __init__(self, copied):
        super().__init__()
        self.copied = copied

    def has(self, tensor):
        return any(tensor is other for other in self.copied)


class _Calls(_Copied, TorchFunctionMode):
    """Refuses what tensors are asked from Python."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if name in _READING and not all(map(self.has, tensors)):
            raise Synchronised(f"{name} reads a tensor")
        if name == "to" and any(isinstance(a, str) and a == "cpu" for a in args[1:]):
            raise Synchronised("to('cpu') reads a tensor")
        return func(*args, **(kwargs or {}))


class _Operators(_Copied, TorchDispatchMode):
    """Refuses operators, whoever calls them; also those of C++."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        refused = name in _ATEN and not (
            name == "_local_scalar_dense" and all(map(self.has, tensors))
        )
        if name == "repeat_interleave" and not isinstance(args[-1], Tensor):
            refused = False  # a number of repeats, which the shape follows from
        if name in ("index", "index_put", "index_put_"):
            refused = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        if refused:
            raise Synchronised(f"{func} reads a tensor")
        result = func(*args, **kwargs)
        if name == "copy_" and (kwargs.get("non_blocking") or args[2:3] == (True,)):
            self.copied.append(args[0])
        return result


@contextlib.contextmanager
def no_sync(device="cpu"):
    """Refuse every synchronisation inside, of what runs on a device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    copied: list[Tensor] = []
    with _Operators(copied), _Calls(copied):
        yield


@contextlib.contextmanager
def no_reads():
    """Refuse what Python reads of a tensor, without a mode: kernels run as they do by themselves.

    What was copied without waiting may be read.
    """
    copied: list[Tensor] = []
    known = _Copied(copied)
    places = [(owner, name) for owner in (Tensor, torch) for name in sorted(_READING)]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places if hasattr(owner, name)]
    own = {(owner, name) for owner, name, _ in kept if name in vars(owner)}

    def refusing(name, function):
        def call(*args, **kwargs):
            tensors = [t for t in args if isinstance(t, Tensor)]
            if tensors and not all(map(known.has, tensors)):
                raise Synchronised(f"{name} reads a tensor")
            return function(*args, **kwargs)

        return call

    def copy_(tensor, source, non_blocking=False):
        if non_blocking:
            copied.append(tensor)
        return copy(tensor, source, non_blocking)

    copy = Tensor.copy_
    for owner, name, function in kept:
        setattr(owner, name, refusing(name, function))
    Tensor.copy_ = copy_
    try:
        yield
    finally:
        del Tensor.copy_
        for owner, name, function in kept:
            if (owner, name) in own:
                setattr(owner, name, function)
            else:
                delattr(owner, name)
