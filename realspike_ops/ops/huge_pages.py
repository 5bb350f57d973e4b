"""Large tensors on the CPU, in huge pages where the system has them."""

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from realspike_ops._native import extension, pointer


def empty_in_huge_pages(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Allocate weights, whose rows lie far apart."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    if tensor.device.type == "cpu":
        extension().prefer_huge_pages(pointer(tensor), tensor.nbytes)
    return tensor


def zeros_in_huge_pages(shape: Sequence[int]) -> Tensor:  # float32, on the CPU
    """Allocate zeros, which take memory only where they are written to."""
    zeros = torch.from_numpy(numpy.zeros(tuple(shape), numpy.float32))
    extension().prefer_huge_pages(pointer(zeros), zeros.nbytes)
    return zeros
