"""A recorder that keeps on the CPU what a CUDA graph keeps: operators, tensors and numbers.

Replayed, each operator runs anew on the very tensors that it had, and its result is written where
the first one lies. So what a graph would miss is missed here too: numbers of Python that have
changed, tensors that are new, and code that reads values.
"""

import torch
from no_sync import no_sync
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "lift_fresh":
            raise RuntimeError("a tensor is made of numbers of the host while this is recorded")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True):
                # A view, and what is changed in place, lie where they did.
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tape:
    """Takes the place of `realspike.train.captured.CudaGraphs`.

    A capture computes nothing, and its first replay does. Here recording computes, and the first
    replay is that.
    """

    def __init__(self):
        self.ran = self.recorded = self.replayed = 0

    def run(self, function):
        self.ran += 1
        return function()

    def record(self, function):
        tape = _Tape()
        with no_sync(), tape:
            result = function()
        self.recorded += 1
        is_first = True

        def replay():
            nonlocal is_first
            if not is_first:
                with torch.no_grad():
                    tape.replay()
            is_first = False
            self.replayed += 1
            return pytree.tree_map_only(Tensor, torch.clone, result)

        return replay
