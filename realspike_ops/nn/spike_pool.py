"""Max pooling of real-valued spikes, done on the spikes alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realspike_ops import _checks as checks


class SpikeMaxPool2d(nn.Module):
    """Pool spikes so that ``a * pooled(o)`` is the largest ``a * o`` of every window.

    For ``a >= 0`` that is the largest spike, for ``a < 0`` the smallest; ``a`` must not vary inside
    a map.

    Args:
        negative: [C] bool: the channels with ``a < 0``. None: there is none.
        kernel_size, stride, padding, dilation, ceil_mode: As in ``nn.MaxPool2d``.

    Shape: [N, C, H, W] of 0 and 1 (or -1, 0 and 1) -> [N, C, OH, OW] of the same.
    """

    def __init__(
        self,
        kernel_size,
        stride=None,
        padding=0,
        dilation=1,
        ceil_mode: bool = False,
        *,
        negative: Tensor | None = None,
    ):
        super().__init__()
        self.kernel_size = checks.pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else checks.pair("stride", stride, 1)
        self.padding = checks.pair("padding", padding, 0)
        self.dilation = checks.pair("dilation", dilation, 1)
        self.ceil_mode = bool(ceil_mode)
        self.register_buffer("negative", negative)

    def forward(self, spikes: Tensor) -> Tensor:
        checks.check_tensor("spikes", spikes)
        spikes = self._turn(spikes)
        pooled = F.max_pool2d(
            spikes, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )
        return self._turn(pooled)

    def _turn(self, spikes: Tensor) -> Tensor:
        """Negate the channels with a negative amplitude, whose largest value is the smallest."""
        if self.negative is None:
            return spikes
        return torch.where(self.negative[:, None, None], -spikes, spikes)

    def extra_repr(self) -> str:
        count = 0 if self.negative is None else int(self.negative.sum())
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, negative channels={count}"
        )
