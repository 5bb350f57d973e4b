"""A run of a folded network on shapes alone, before anything of its size is allocated."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from realspike_ops import nn as layers
from realspike_ops.reparam.encoding_call import EncodingCall
from realspike_ops.reparam.network import FoldedNetwork
from realspike_ops.reparam.units import bytes_text

LARGEST_NUMBER = 2**53


def check_run(folded: FoldedNetwork, limit: float) -> None:
    """Run a network whose tensors are on the meta device, on one sample.

    Raises:
        ValueError: if its tensors, the weights aside, would take more than ``limit`` bytes at once.
        Exception: whatever a network raises that cannot run.
    """
    for module in folded.modules():
        if isinstance(module, EncodingCall):
            module.register_forward_pre_hook(_check_operands)
    timesteps = [m.timesteps for m in folded.modules() if isinstance(m, layers.FoldedLIF)]
    # T rows are one sample of frames, or T images.
    rows = folded.batch or max(timesteps, default=1)
    assert folded.input_shape is not None
    with torch.inference_mode(), torch.device("meta"), _Bounded(limit):
        folded(torch.empty(rows, *folded.input_shape, device="meta"))


def _check_operands(call: Any, inputs: tuple) -> None:
    """Refuse arithmetic on anything but tensors and numbers: a text times 6 * 10^8 is a text."""
    is_arithmetic = getattr(call.target, "__module__", None) == "_operator"
    if not is_arithmetic or call.target.__name__ == "getitem":
        return
    constants = [value for value in call.args if isinstance(value, (str, list, tuple, dict))]
    operands = [*inputs, *(value for value in call.args if isinstance(value, (int, float)))]
    for value in (*constants, *operands):
        small = isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER
        if not small and not isinstance(value, Tensor):
            raise ValueError(f"it computes with {type(value).__name__} {value!r:.40}")


class _Bounded(TorchDispatchMode):
    """Refuses what would hold more than `limit` bytes at once."""

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit
        self.held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.held = {s: count for s, count in self.held.items() if not s.expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[StorageWeakRef(storage)] = storage.nbytes()
        if (total := sum(self.held.values())) > self.limit:
            raise ValueError(
                f"one sample needs {bytes_text(total)}, and memory_limit is "
                f"{bytes_text(self.limit)}"
            )
        return result
