"""LIF neurons of a folded network: they emit 0 and 1, or -1, 0 and 1."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.functional.quantize_weight import in_steps
from realspike_ops.nn.neurons.lif import RealSpikeLIF
from realspike_ops.nn.packed_spikes import PackedSpikes
from realspike_ops.nn.time import split_time

if TYPE_CHECKING:
    from typing_extensions import Self

    from realspike_ops.functional.settings import NeuronDynamics, NeuronForm


class FoldedLIF(RealSpikeLIF):
    """LIF neurons without an amplitude, whose decay and threshold are numbers or buffers.

    `reparameterize` makes them of `RealSpikeLIF` layers. The dynamics stay those of training:
    ``.half()`` and the like move the buffers, but do not cast them.

    Args:
        timesteps: T. The leading dimension of the input is T*B, timestep outermost.
        decay, v_threshold: A number, or a tensor that broadcasts against the neuron map.
        v_reset, reset, emission, detach_reset, surrogate: See `realspike_ops.lif`.
        current_scale: The current and the threshold are in steps of it, ``[C, 1, 1]`` or ``[F]``
            (int8 synapses). Nothing is multiplied by it here: it tells the size of a step.

    Shape: [T*B, ...] of currents -> the same of spikes, or `PackedSpikes`.
    """

    decay_factor: float | Tensor
    current_scale: Tensor | None

    def __init__(
        self,
        timesteps: int,
        *,
        decay: float | Tensor = 0.25,
        v_threshold: float | Tensor = 0.5,
        v_reset: float | None = 0.0,
        reset: str | None = None,
        detach_reset: bool = False,
        emission: str = "binary",
        surrogate: str | tuple[str, float] = "rectangular",
        current_scale: Tensor | None = None,
    ):
        tensors = {"decay_factor": decay, "v_threshold": v_threshold}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        super().__init__(
            timesteps,
            # A tensor takes the place of its number below.
            decay=1.0 if isinstance(decay, Tensor) else decay,
            v_threshold=1.0 if isinstance(v_threshold, Tensor) else v_threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            reset=reset,
            emission=emission,
        )
        self.decay_factor = self._fixed_decay
        for name, value in tensors.items():
            delattr(self, name)
            self.register_buffer(name, value.detach().clone())
        self.register_buffer("current_scale", current_scale)

    def in_steps_of(self, scale: Tensor) -> "FoldedLIF":  # [C, 1, 1] or [F]
        """Return the neurons that emit the same spikes for ``current / scale``.

        Raises:
            ValueError: for a reset to another potential than 0, which would be in steps too.
        """
        if self.reset == "hard" and self.v_reset != 0:
            raise ValueError(f"v_reset must be 0 to divide by a scale; got {self.v_reset:g}")
        v_threshold = torch.as_tensor(self.v_threshold, device=scale.device)
        form: NeuronForm = {**self.form, "v_threshold": in_steps(v_threshold, scale).float()}
        return FoldedLIF(self.timesteps, **form, current_scale=scale)

    @property
    def decay(self) -> float | Tensor:
        return self.decay_factor

    @overload
    def forward(self, x: Tensor, packed: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, packed: Literal[True]) -> PackedSpikes: ...
    @overload
    def forward(self, x: Tensor, packed: bool) -> Tensor | PackedSpikes: ...

    def forward(self, x: Tensor, packed: bool = False) -> Tensor | PackedSpikes:
        """Emit spikes; ``packed``: as bits, in inference (see `can_pack`)."""
        if not packed:
            return super().forward(x)
        x = split_time(x, self.timesteps)
        words = functional.lif(x, packed=True, **self.form)  # [T, B, ...] or [2, T, B, ...]
        signed = self.emission == "ternary"
        words = words.flatten(1, 2) if signed else words.flatten(0, 1)
        return PackedSpikes(words, x.shape[2], signed)

    @property
    def counts_in_powers_of_two(self) -> bool:
        """Whether the current is in steps of powers of two: products with them are exact."""
        scale = self.current_scale
        return scale is not None and bool((torch.frexp(scale).mantissa == 0.5).all())

    @property
    def dynamics(self) -> "NeuronDynamics":
        """The part of the form that matters in inference."""
        return {
            "decay": self.decay,
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "reset": self.reset,
            "emission": self.emission,
        }

    def can_pack(self, x: Tensor) -> bool:
        """Whether the spikes for this current can be bits: nothing here requires a gradient."""
        tensors = (x, *self.buffers())
        differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return x.dim() > 1 and x.dtype in checks.FLOATS and not differentiated

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if buffer is None or moved is None:
                continue
            if moved.dtype not in (buffer.dtype, torch.float64):
                kept = torch.float32 if buffer.dtype == torch.float64 else buffer.dtype
                self._buffers[name] = buffer.to(moved.device, kept)
        return self

    def extra_repr(self) -> str:
        parts = [f"timesteps={self.timesteps}"]
        for name in ("decay", "v_threshold"):
            value = getattr(self, name)
            shown = checks.shape_text(value) if isinstance(value, Tensor) else f"{value:g}"
            parts.append(f"{name}={shown}")
        parts.append(
            f"v_reset={self.v_reset:g}" if self.reset == "hard" else f"reset={self.reset!r}"
        )
        parts.append(f"emission={self.emission!r}")
        if self.current_scale is not None:
            shape, powers = checks.shape_text(self.current_scale), self.counts_in_powers_of_two
            parts.append(f"current_scale={shape}" + (" of powers of two" if powers else ""))
        return ", ".join(parts)
