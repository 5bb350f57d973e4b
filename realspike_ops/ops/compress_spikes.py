"""Saved-tensor hooks that keep spikes as one bit each.

A convolution behind a LIF layer saves its input, the real-valued spikes, for its own backward. They
are known to be amplitude * o, so the bits of o and the amplitude rebuild them exactly.
"""

import threading
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from realspike_ops.ops.layout import is_channels_last
from realspike_ops.ops.pack_spikes import pack_spikes

_thread = threading.local()


class _Packed:
    """One LIF output as bits; lives as long as a graph refers to it."""

    def __init__(self, y: Tensor, amplitude: Tensor | None, ternary: bool):  # [T, B, C, ...]
        self.shape, self.stride, self.dtype = y.shape, y.stride(), y.dtype
        self.amplitude = amplitude
        self.channels_last = is_channels_last(y)
        self.words = pack_spikes(y.flatten(0, 1), False)
        # A negative spike has not the sign of the amplitude. A silent neuron's does not matter.
        self.negative = None
        if ternary:
            sign = False if amplitude is None else amplitude.signbit()
            self.negative = pack_spikes((y.signbit() ^ sign).flatten(0, 1), False)

    def rebuild(self) -> Tensor:
        o = self._unpack(self.words)
        y = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=o.device)
        if self.amplitude is None and self.negative is None:
            return y.copy_(o)
        emitted = o.new_ones((), dtype=self.dtype) if self.amplitude is None else self.amplitude
        if self.negative is not None:
            emitted = torch.where(self._unpack(self.negative) != 0, -emitted, emitted)
        # A selection, since 0 * amplitude is -0.0 or NaN for some amplitudes.
        return torch.where(o != 0, emitted, emitted.new_zeros(()), out=y)

    def _unpack(self, words: Tensor) -> Tensor:  # [T, B, C, ...]
        o = torch.ops.realspike.unpack_spikes(words, self.shape[2], self.channels_last)
        return o.unflatten(0, self.shape[:2])


@dataclass
class _Emission:
    """What a LIF layer emitted, found again by the storage of its output."""

    shape: torch.Size
    stride: tuple[int, ...]
    version: int
    amplitude: Tensor | None
    ternary: bool
    packed: "weakref.ref[_Packed] | None" = None

    def pack(self, saved: Tensor) -> _Packed:
        packed = self.packed and self.packed()
        if packed is None:
            y = saved.as_strided(self.shape, self.stride, 0)
            packed = _Packed(y, self.amplitude, self.ternary)
            self.packed = weakref.ref(packed)
        return packed


class compress_spikes(torch.autograd.graph.saved_tensors_hooks):
    """Keep the spikes that other layers save for backward as one bit each.

    Within this context, a tensor that a layer saves for its backward and that is the output of
    `lif` (a view of it included) is kept as one bit per spike (two for ternary spikes) plus the
    amplitude, and rebuilt exactly, bit for bit, when backward needs it. Everything else is kept as
    it is.

    Example::

        with rso.compress_spikes():
            loss = criterion(model(images), labels)
        loss.backward()

    Note:
        The bits are packed along the channels, 32 to a word: a layer of fewer channels than that
        gains less. An output that was changed in place is kept as it is. Not for use under
        ``torch.compile``, which plans its own saved tensors.
    """

    def __init__(self):
        self._emissions: dict[StorageWeakRef, _Emission] = {}
        super().__init__(self._pack, self._unpack)

    def __enter__(self):
        self._outer = getattr(_thread, "active", None)
        _thread.active = self
        super().__enter__()
        return self

    def __exit__(self, *error):
        super().__exit__(*error)
        _thread.active = self._outer
        self._emissions.clear()

    def note(self, y: Tensor, amplitude: Tensor | None, ternary: bool) -> None:
        """Remember that y [T, B, C, ...] was emitted with this amplitude."""
        self._emissions = {key: e for key, e in self._emissions.items() if not key.expired()}
        if amplitude is not None:
            # A copy: the optimizer changes the parameter in place.
            amplitude = amplitude.detach().to(y.dtype, copy=True)
        emission = _Emission(y.shape, y.stride(), y._version, amplitude, ternary)
        self._emissions[StorageWeakRef(y.untyped_storage())] = emission

    def _pack(self, saved: Tensor):
        if saved.layout != torch.strided or saved.numel() == 0:
            return saved
        emission = self._emissions.get(StorageWeakRef(saved.untyped_storage()))
        if emission is None or saved._version != emission.version:
            return saved
        return emission.pack(saved), saved.shape, saved.stride(), saved.storage_offset()

    @staticmethod
    def _unpack(kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        packed, shape, stride, offset = kept
        return packed.rebuild().as_strided(shape, stride, offset)


def note_spikes(y: Tensor, amplitude: Tensor | None, ternary: bool) -> None:
    """Tell the active context, if any, what `lif` emitted."""
    active = getattr(_thread, "active", None)
    if active is not None and y.dim() > 2 and y.numel() > 0:
        active.note(y, amplitude, ternary)
