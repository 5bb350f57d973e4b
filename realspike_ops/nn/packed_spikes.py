"""Spikes as they travel between the layers of a folded network in inference: one bit each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from realspike_ops._checks import shape_text


@dataclass(frozen=True)
class PackedSpikes:
    """A map of spikes as bits along its channels (`realspike_ops.pack_spikes`).

    Args:
        words: int32 [N, H, W, ceil(C / 32)], or of features [N, ceil(F / 32)]; of ternary spikes
            two of them, the positive and the negative ones: [2, N, ...]. Bits beyond the last
            channel are 0.
        channels: C, or F.
        signed: Whether the spikes are ternary.
    """

    words: Tensor
    channels: int
    signed: bool = False

    def planes(self) -> Tensor:
        """Return binary maps as one batch: [N, ..., words], or o+ and then o-: [2*N, ..., words]"""
        if not self.signed:
            return self.words
        if torch.compiler.is_compiling():
            # torch.export cannot follow the strides of a tensor that is merged twice.
            return torch.cat(self.words.unbind())
        return self.words.flatten(0, 1)

    def dense(self) -> Tensor:  # [N, C, H, W] channels_last, or [N, F]; float32
        spikes = torch.ops.realspike.unpack_spikes(self.planes(), self.channels, True)
        if not self.signed:
            return spikes
        signs: Tensor = torch.unflatten(spikes, 0, self.words.shape[:2])
        return signs[0] - signs[1]

    def binary_words(self, channels: int) -> Tensor:  # [N, ..., words]
        """Return the words for a layer that reads binary maps of `channels` channels."""
        if self.signed or self.channels != channels:
            kind = "ternary" if self.signed else "binary"
            raise ValueError(
                f"spikes must be binary ones of {channels} channels; got {kind} ones of "
                f"{self.channels}, packed as {shape_text(self.words)}"
            )
        return self.words


def padded(spikes: Tensor, widths: Sequence[int]) -> Tensor:
    """Pad, then cut: F.pad by itself refuses to cut more than the map has."""
    for own in (tuple(max(0, n) for n in widths), tuple(min(0, n) for n in widths)):
        spikes = F.pad(spikes, own) if any(own) else spikes
    return spikes


def as_dense(spikes: Tensor | PackedSpikes) -> Tensor:
    return spikes.dense() if isinstance(spikes, PackedSpikes) else spikes


def as_map(spikes: Tensor | PackedSpikes, rank: int) -> Tensor | PackedSpikes:
    """Write lines [N, C, L] (`rank` 3) or features [N, F] (2) as maps of one row, or of a pixel."""
    for dims in range(rank, 4):
        if isinstance(spikes, PackedSpikes):  # [..., N, (L,) words]
            words = spikes.words.unsqueeze(-dims)
            spikes = PackedSpikes(words, spikes.channels, spikes.signed)
        else:
            spikes = spikes.unsqueeze(2)
    return spikes
