"""Max pooling of real-valued spikes, done on the spikes alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn.packed_spikes import PackedSpikes, as_map


class SpikeMaxPool2d(nn.Module):
    """Pool spikes so that ``a * pooled(o)`` is the largest ``a * o`` of every window.

    For ``a >= 0`` that is the largest spike, for ``a < 0`` the smallest; ``a`` must not vary inside
    a map. Packed spikes stay packed: the largest of bits is OR, the smallest is AND.

    Args:
        negative: [C] bool: the channels with ``a < 0``. None: there is none.
        kernel_size, stride, padding, dilation, ceil_mode: As in ``nn.MaxPool2d``.

    Shape: [N, C, H, W] of 0 and 1 (or -1, 0 and 1) -> [N, C, OH, OW] of the same; `PackedSpikes` ->
    `PackedSpikes`.
    """

    negative: Tensor | None

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        ceil_mode: bool = False,
        *,
        negative: Tensor | None = None,
    ):
        super().__init__()
        self.kernel_size = checks.pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else checks.pair("stride", stride, 1)
        self.padding = checks.pair("padding", padding, 0)
        self.dilation = checks.pair("dilation", dilation, 1)
        self.ceil_mode = checks.check_flag("ceil_mode", ceil_mode)
        self.register_buffer("negative", negative)

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        if isinstance(spikes, PackedSpikes):
            return self._pool_words(spikes)
        checks.check_tensor("spikes", spikes)
        if spikes.dim() != 4:
            raise ValueError(
                f"spikes must have shape [N, C, H, W]; got {checks.shape_text(spikes)}"
            )
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

    # --- on bits

    def _pool_words(self, spikes: PackedSpikes) -> PackedSpikes:
        words = spikes.words  # [N, H, W, words] or [2, N, H, W, words]
        flipped = self._flipped(spikes)
        # AND is OR of the complement; whatever lies outside the map is then 0 for both.
        pooled = self._or(words if flipped is None else words ^ flipped)
        pooled = pooled if flipped is None else pooled ^ flipped
        return PackedSpikes(pooled, spikes.channels, spikes.signed)

    def _flipped(self, spikes: PackedSpikes) -> Tensor | None:  # [words] or [2, 1, 1, 1, words]
        """Return the bits whose smallest value is wanted: o+ of a < 0, and o- of all others."""
        negative = self.negative
        if negative is None and not spikes.signed:
            return None
        if negative is None:
            negative = torch.zeros(spikes.channels, dtype=torch.bool, device=spikes.words.device)
        planes = torch.stack((negative, ~negative)) if spikes.signed else negative[None]
        words = functional.pack_spikes(planes, check_binary=False)  # [planes, words]
        return words[:, None, None, None] if spikes.signed else words[0]

    def _or(self, words: Tensor) -> Tensor:
        for axis in (0, 1):
            taps = self._taps(words, axis)
            words = taps[0]
            for tap in taps[1:]:
                words = words | tap
        return words

    def _taps(self, words: Tensor, axis: int) -> list[Tensor]:
        """Return for every tap of the kernel the rows (or columns) that it meets."""
        dim = words.dim() - 3 + axis
        size, k, s, p, d = (
            words.shape[dim],
            *(pair[axis] for pair in (self.kernel_size, self.stride, self.padding, self.dilation)),
        )
        reach = size + 2 * p - d * (k - 1) - 1
        count = (-(-reach // s) if self.ceil_mode else reach // s) + 1
        if self.ceil_mode and (count - 1) * s >= size + p:
            count -= 1  # a window must begin on the map or on the padding before it
        if count < 1:
            raise ValueError(
                f"spikes must have a map that kernel_size {self.kernel_size} fits; "
                f"got {checks.shape_text(words)}"
            )
        behind = (count - 1) * s + d * (k - 1) + 1 - size - p
        if p or behind > 0:
            words = F.pad(words, (0, 0) * (2 - axis) + (p, max(0, behind)))
        starts = (n * d for n in range(k))
        index = (slice(None),) * dim
        return [words[(*index, slice(n, n + (count - 1) * s + 1, s))] for n in starts]

    def extra_repr(self) -> str:
        count = 0 if self.negative is None else int(self.negative.sum())
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}, negative channels={count}"
        )


class SpikeMaxPool1d(SpikeMaxPool2d):
    """`SpikeMaxPool2d` of lines [N, C, L], with pairs as of maps that have one row."""

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
        pooled = super().forward(as_map(spikes, 3))
        if isinstance(pooled, PackedSpikes):
            return PackedSpikes(pooled.words.squeeze(-3), pooled.channels, pooled.signed)
        return pooled.squeeze(2)
