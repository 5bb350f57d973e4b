"""Convolution whose kernel is shared inside the map and differs near its edges."""

from collections.abc import Iterable

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn.packed_spikes import PackedSpikes, padded
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.nn.synapses.storage import Stored, initialise, parameter


class PiecewiseSpikeConv(Stored):
    """Convolve binary spikes with a kernel shared by every run of rows and run of columns.

    Two linear layers with nothing between them become this one. Composed, they are one convolution.
    Where the outer layer reads beyond the map of the inner one, the composed kernel lacks taps.
    Output row y, column x use kernel ``weight[rows[y], columns[x]]``. Every rectangle of equal
    kernels is one gather-accumulate.

    Args:
        weight: [R, Q, groups, KH, KW, Cin/groups, Cout/groups] of a floating dtype, or uint8: int8
            weights plus 128, whose currents are in steps of a scale (`quantize_weight`).
        rows, columns: For every output row (column) the index into R (Q).
        stride, dilation: As in ``nn.Conv2d``.
        padding: (height, width) before the map; behind it, whatever the last window needs.

    Shape: [N, Cin, H, W] of 0 and 1 (or `PackedSpikes`) -> [N, Cout, OH, OW].
    """

    weight: Tensor
    algorithm: str = "gather"  # of `realspike_ops.unshared_spike_conv`

    def __init__(
        self,
        weight: Tensor,
        rows: Iterable[int],
        columns: Iterable[int],
        stride: int | tuple[int, int],
        padding: tuple[int, int],
        dilation: int | tuple[int, int],
    ):
        super().__init__()
        if weight.dtype == torch.uint8:
            self.register_buffer("weight", weight)
        else:
            self.weight = parameter(weight)
        self.rows, self.columns = tuple(rows), tuple(columns)
        self.stride = checks.pair("stride", stride, 1)
        self.padding = (padding[0], padding[1])
        self.dilation = checks.pair("dilation", dilation, 1)
        self.in_channels = weight.shape[2] * weight.shape[5]
        self.out_channels = weight.shape[2] * weight.shape[6]

    def forward(self, spikes: Tensor | PackedSpikes) -> Tensor:
        size = fold_into_weight.map_size(spikes, self.in_channels)
        checked = not isinstance(spikes, PackedSpikes)
        spikes = spikes.words if isinstance(spikes, PackedSpikes) else spikes
        columns = _runs(self.columns)
        rows = [
            torch.cat([self._rectangle(spikes, size, checked, y, x) for x in columns], 3)
            for y in _runs(self.rows)
        ]
        return torch.cat(rows, 2)

    def _rectangle(
        self, spikes: Tensor, map_size: tuple[int, int], checked: bool, *runs: tuple[int, int]
    ) -> Tensor:
        pads: list[int] = []
        for (first, last), size, k, s, p, d in zip(
            runs, map_size, self.weight.shape[3:5], self.stride, self.padding, self.dilation,
            strict=True,
        ):  # fmt: skip
            end = last * s - p + (k - 1) * d + 1
            pads = [p - first * s, end - size, *pads]
        (y, last_y), (x, last_x) = runs
        weight = self.weight[self.rows[y], self.columns[x]]
        weight = weight.expand(last_y - y + 1, last_x - x + 1, *weight.shape)
        return functional.unshared_spike_conv(
            padded(spikes, [0, 0, *pads] if spikes.dtype == torch.int32 else pads),
            weight,
            stride=self.stride,
            dilation=self.dilation,
            check_binary=None if checked else False,
            algorithm=self.algorithm,
        )

    def reset_parameters(self) -> None:
        """Initialise the weight as nn.Conv2d does."""
        initialise(self.weight)

    def extra_repr(self) -> str:
        R, Q, G, KH, KW, _, _ = self.weight.shape
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size=({KH}, {KW}), "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={G}, "
            f"kernels={R} x {Q} for {len(self.rows)} x {len(self.columns)} positions"
        )


def _runs(indices: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return (first, last) of every run of equal indices."""
    starts = [n for n, index in enumerate(indices) if n == 0 or index != indices[n - 1]]
    return list(zip(starts, [*(s - 1 for s in starts[1:]), len(indices) - 1], strict=True))
