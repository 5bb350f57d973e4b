"""Saved-tensor hooks that drop spikes which can be made again.

A convolution behind a LIF layer saves its input, the real-valued spikes, for its own backward. The
LIF layer keeps for its backward whether each neuron fired, or its own input. Either is enough to
make the spikes again.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_thread = threading.local()


def _copy(parameter: Tensor | None) -> Tensor | None:
    """Return a copy: the optimizer changes parameters in place."""
    return None if parameter is None else parameter.detach().clone()


class SavedBits:
    """Makes the output of a LIF layer from the bits that it keeps (csrc/core/lif.h).

    Args:
        y: The output [T, B, ...].
        amplitude: The factor of every spike; None for 1.
        words: [ceil(T / interval), N] integers, the neurons in the memory order of a timestep.
        interval: Timesteps per word.
        width: Bits per timestep: the first says whether the neuron fired, the third whether
            negatively.
        ternary: Whether there are negative spikes.
    """

    def __init__(
        self,
        y: Tensor,
        amplitude: Tensor | None,
        words: Tensor,
        interval: int,
        width: int,
        ternary: bool,
    ):
        self.shape, self.stride, self.dtype = y.shape, y.stride(), y.dtype
        self.amplitude, self.words = _copy(amplitude), words
        self.interval, self.width, self.ternary = interval, width, ternary

    def make(self) -> Tensor:
        words = self.words
        y = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=words.device)
        amplitude = y.new_ones(()) if self.amplitude is None else self.amplitude.to(y.dtype)
        silent = y.new_zeros(())
        for t in range(self.shape[0]):
            word = words[t // self.interval].as_strided(y[t].shape, y[t].stride())
            first = self.width * (t % self.interval)
            emitted = amplitude
            if self.ternary:
                emitted = torch.where((word & (4 << first)) != 0, -amplitude, amplitude)
            # A selection, since 0 * amplitude is -0.0 or NaN for some amplitudes.
            torch.where((word & (1 << first)) != 0, emitted, silent, out=y[t])
        return y


class Rerun:
    """Makes the output of a LIF layer by running its neurons again.

    Args:
        kept: Tensors that backward keeps anyway, or None.
        parameters: Tensors that are copied, or None: an optimizer changes them in place.
        run: The function that makes y of the tensors in both.
    """

    def __init__(
        self,
        kept: Sequence[Tensor | None],
        parameters: Sequence[Tensor | None],
        run: Callable[..., Tensor],
    ):
        self.kept = [None if tensor is None else tensor.detach() for tensor in kept]
        self.parameters = [_copy(parameter) for parameter in parameters]
        self.run, self.versions = run, self._versions()

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self.kept if tensor is not None]

    def make(self) -> Tensor:
        if self._versions() != self.versions:
            raise RuntimeError(
                "compress_spikes: the input of lif was changed in place after the forward pass, so "
                "that its spikes cannot be made again for backward"
            )
        return self.run(*self.kept, *self.parameters)


@dataclass
class _Emission:
    """The output of a LIF layer, known by its storage: its version, and its recipe."""

    version: int
    recipe: SavedBits | Rerun


class compress_spikes(torch.autograd.graph.saved_tensors_hooks):
    """Drop the spikes that other layers save for backward, and make them again when it needs them.

    Within this context, a tensor that a layer saves for its backward is not kept if it is the
    output of `lif`, or a view of it. Backward makes it again, bit for bit, from the tensors that
    `lif` keeps for its own backward pass. These are the bits that say which neurons fired, or the
    input, from which the neurons run once more. Every other tensor is kept as it is.

    Example::

        with rso.compress_spikes():
            loss = criterion(model(images), labels)
        loss.backward()

    Raises:
        RuntimeError: in backward, if the input of a `lif` that must run again was changed in place.

    Note:
        An output that was changed in place is kept as it is. Not for use under ``torch.compile``,
        which plans its own saved tensors.
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

    def note(self, y: Tensor, recipe: SavedBits | Rerun) -> None:
        """Remember what makes y [T, B, ...] again."""
        self._emissions = {key: e for key, e in self._emissions.items() if not key.expired()}
        key = StorageWeakRef(y.untyped_storage())
        self._emissions[key] = _Emission(y._version, recipe)

    def _pack(self, saved: Tensor):
        if saved.layout != torch.strided or saved.numel() == 0:
            return saved
        emission = self._emissions.get(StorageWeakRef(saved.untyped_storage()))
        if emission is None or saved._version != emission.version:
            return saved
        return emission.recipe, saved.shape, saved.stride(), saved.storage_offset()

    @staticmethod
    def _unpack(kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        recipe, shape, stride, offset = kept
        with torch.no_grad():
            return recipe.make().as_strided(shape, stride, offset)


def spikes_are_dropped() -> bool:
    """Whether a context is active in this thread."""
    return getattr(_thread, "active", None) is not None


def note_spikes(y: Tensor, recipe: SavedBits | Rerun) -> None:
    """Tell the active context what makes the output of a LIF layer again."""
    # Under torch.compile the tensors are fake, of a class of their own.
    if y.numel() > 0 and type(y) is Tensor:
        _thread.active.note(y, recipe)
