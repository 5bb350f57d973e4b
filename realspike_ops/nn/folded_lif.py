"""LIF neurons of a folded network: they emit 0 and 1, or -1, 0 and 1."""

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops.nn.lif import RealSpikeLIF
from realspike_ops.surrogate import as_surrogate


class FoldedLIF(RealSpikeLIF):
    """LIF neurons without an amplitude, whose decay and threshold are numbers or buffers.

    What `reparameterize` makes of a `RealSpikeLIF`. The dynamics stay those of training: buffers
    are not cast by ``.half()`` and the like, only moved.

    Args:
        timesteps: T. The leading dimension of the input is T*B, timestep outermost.
        decay, v_threshold: A number, or a tensor that broadcasts against the neuron map.
        v_reset, reset, emission, detach_reset, surrogate: See `realspike_ops.lif`.

    Shape: [T*B, ...] of currents -> the same of spikes.
    """

    def __init__(
        self,
        timesteps: int,
        *,
        decay: "float | Tensor" = 0.25,
        v_threshold: "float | Tensor" = 0.5,
        v_reset: float | None = 0.0,
        reset: str | None = None,
        detach_reset: bool = False,
        emission: str = "binary",
        surrogate: "str | tuple[str, float]" = "rectangular",
    ):
        nn.Module.__init__(self)
        self.timesteps = checks.check_positive_int("timesteps", timesteps)
        v_reset, self.reset = checks.check_reset(v_reset, reset)
        self.v_reset = v_reset if self.reset == "hard" else None
        self.detach_reset = bool(detach_reset)
        fixed = None if isinstance(v_threshold, Tensor) else v_threshold
        self.emission = checks.check_emission(emission, fixed)
        self.surrogate = as_surrogate(surrogate)
        self.granularity, self.amplitude, self.decay_logit = "none", None, None
        for name, value, limits in (
            ("decay_factor", decay, (0.0, 1.0)),
            ("v_threshold", v_threshold, ()),
        ):
            if isinstance(value, Tensor):
                self.register_buffer(name, value.detach().clone())
            else:
                setattr(self, name, checks.check_number(name, value, *limits))

    @property
    def decay(self) -> "float | Tensor":
        return self.decay_factor

    def _apply(self, fn, recurse=True):
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = self._buffers[name]
            if moved.dtype not in (buffer.dtype, torch.float64):
                self._buffers[name] = buffer.to(moved.device)
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
        return ", ".join([*parts, f"emission={self.emission!r}"])
