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
from torch._C import _autograd
from torch.multiprocessing.reductions import StorageWeakRef

from realspike_ops.ops import lif_cpu
from realspike_ops.ops.layout import is_channels_last
from realspike_ops.ops.lif_contract import (
    BITS_INTERVAL,
    POTENTIAL_INTERVAL,
    SAVE_BITS,
    SAVE_POTENTIALS,
    Neuron,
    neurons_in_memory_order,
)

_thread = threading.local()


def _copy(parameter: Tensor | None) -> Tensor | None:
    """Return a copy: the optimizer changes parameters in place."""
    return None if parameter is None else parameter.detach().clone()


class SavedBits:
    """Makes the output of a LIF layer from bits that the layer kept (csrc/core/lif.h).

    Args:
        y: The output [T, B, ...].
        amplitude: The factor of every spike; None for 1.
        words: [ceil(T / BITS_INTERVAL), N], the neurons in the memory order of a timestep.
        neuron: The form of the neurons.
    """

    def __init__(self, y: Tensor, amplitude: Tensor | None, words: Tensor, neuron: Neuron):
        self.shape, self.stride, self.dtype = y.shape, y.stride(), y.dtype
        self.amplitude, self.words, self.neuron = _copy(amplitude), words, neuron

    def make(self) -> Tensor:
        words = self.words
        y = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=words.device)
        if words.device.type == "cpu":
            neurons = neurons_in_memory_order(
                self.amplitude, None, None, None, self.neuron, y.shape[2:], is_channels_last(y)
            )
            lif_cpu.launch_spikes(neurons, words, y)
        else:
            self.write_step_by_step(y)
        return y

    def write_step_by_step(self, y: Tensor) -> None:
        """Write the spikes with PyTorch's own operations."""
        ternary, width = self.neuron.ternary, 4 if self.neuron.ternary else 2
        amplitude = y.new_ones(()) if self.amplitude is None else self.amplitude.to(y.dtype)
        silent = y.new_zeros(())
        for t, y_t in enumerate(y):
            word = self.words[t // BITS_INTERVAL].as_strided(y_t.shape, y_t.stride())
            first = width * (t % BITS_INTERVAL)
            emitted = amplitude
            if ternary:
                emitted = torch.where((word & (4 << first)) != 0, -amplitude, amplitude)
            # A selection, since 0 * amplitude is -0.0 or NaN for some amplitudes.
            torch.where((word & (1 << first)) != 0, emitted, silent, out=y_t)


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
    """The output of a LIF layer: its storage, version and dtype, and its recipe."""

    storage: StorageWeakRef  # while it is referred to, no other storage gets its address
    version: int
    dtype: torch.dtype
    recipe: SavedBits | Rerun


class compress_spikes(torch.autograd.graph.saved_tensors_hooks):
    """Drop the spikes that other layers save for backward, and make them again when it needs them.

    Within this context, a tensor that a layer saves for its backward is not kept if it is the
    output of `lif` or `batch_norm_lif`, or a view of it. Backward makes it again, bit for bit:
    from the bits that say which neurons fired, or, where none are kept, from the input, by running
    the neurons once more (docs/lif.md). Every other tensor is kept as it is.

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
        self._emissions: dict[int, _Emission] = {}  # by the address of the storage
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
        alive = {key: e for key, e in self._emissions.items() if not e.storage.expired()}
        storage = y.untyped_storage()
        alive[storage._cdata] = _Emission(StorageWeakRef(storage), y._version, y.dtype, recipe)
        self._emissions = alive

    def _pack(self, saved: Tensor):
        if saved.layout != torch.strided or saved.numel() == 0:
            return saved
        emission = self._emissions.get(saved.untyped_storage()._cdata)
        if emission is None or saved._version != emission.version:
            return saved
        # A view of the same memory may mean other values: complex ones, or their negative.
        if saved.dtype != emission.dtype or saved.is_neg():
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


def save_with_spikes(save: int, T: int, device: str) -> int:
    """Return what a forward pass saves where `save` is what backward needs.

    Of so few timesteps backward recomputes all potentials from x, and looks at nothing that was
    saved: that may be bits, which make the spikes again for less than a run of the neurons.
    """
    short = save == SAVE_POTENTIALS and T <= POTENTIAL_INTERVAL
    return SAVE_BITS if short and device == "cpu" and _sees_what_is_saved() else save


def _sees_what_is_saved() -> bool:
    """Whether the innermost saved-tensor hooks are those of the active context.

    Others, as those of a checkpoint, take the spikes before it; and a checkpoint runs its layers
    again in backward, outside of the context, where they have to save the same.
    """
    if not spikes_are_dropped():
        return False
    hooks = _autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0] == _thread.active.pack_hook


def note_spikes(
    y: Tensor,  # [T, B, ...]
    amplitude: Tensor | None,
    saved: Tensor,
    neuron: Neuron,
    save: int,  # what `saved` is
    rerun: Callable[[], Rerun],
) -> None:
    """Tell the active context what makes the output of a LIF layer again.

    `rerun` is called where no bits were saved.
    """
    # Under torch.compile the tensors are fake, of a class of their own.
    if y.numel() > 0 and type(y) is Tensor:
        has_bits = save == SAVE_BITS
        _thread.active.note(y, SavedBits(y, amplitude, saved, neuron) if has_bits else rerun())
