"""Values on their way from a device to the host."""

import torch
from torch import Tensor


class Readback:
    """The values that a tensor has now, for which nobody waits until they are read."""

    def __init__(self, tensor: Tensor):
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def has_arrived(self) -> bool:
        return self._event is None or self._event.query()

    def read(self) -> Tensor:
        """Return the values on the CPU, for which this waits if they have not arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
