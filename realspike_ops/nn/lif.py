"""The LIF layer."""

import torch
from torch import Tensor, nn

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn.time import split_time
from realspike_ops.surrogate import as_surrogate

GRANULARITIES = ("none", "layer", "channel", "element")


class RealSpikeLIF(nn.Module):
    """LIF neurons with a learnable spike amplitude; takes the place of ``nn.ReLU``.

    Args:
        timesteps: T. The leading dimension of the input is T*B, timestep outermost.
        granularity: ``"none"`` (binary spikes), ``"layer"``, ``"channel"`` or ``"element"``: what
            shares one amplitude (Eq. 16 to 18).
        shape: Shape of one neuron map, ``(C, H, W)`` (or ``(C,)``, ``(features,)``). Needed for
            channel granularity (C alone is read) and for element granularity.
        decay, v_threshold, v_reset, detach_reset, surrogate: See `realspike_ops.lif`.

    Attributes:
        amplitude: The parameter, of shape ``[1]``, ``[C, 1, 1]`` or ``[C, H, W]``, initialised to
            1; None for granularity ``"none"``.

    Shape: [T*B, C, H, W] -> the same. The layer keeps no state between calls: every call starts
    from a potential of 0. Use `realspike_ops.lif` to carry the state of a long sequence.
    """

    def __init__(
        self,
        timesteps: int,
        granularity: str = "none",
        shape: "tuple[int, ...] | None" = None,
        decay: float = 0.25,
        v_threshold: float = 0.5,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: "str | tuple[str, float]" = "rectangular",
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.timesteps = checks.check_positive_int("timesteps", timesteps)
        self.granularity = granularity
        self.decay = checks.check_number("decay", decay, 0.0, 1.0)
        self.v_threshold = checks.check_number("v_threshold", v_threshold)
        self.v_reset = None if v_reset is None else checks.check_number("v_reset", v_reset)
        self.detach_reset = bool(detach_reset)
        self.surrogate = as_surrogate(surrogate)
        amplitude_shape = self._amplitude_shape(granularity, shape)
        if amplitude_shape is None:
            self.register_parameter("amplitude", None)
        else:
            ones = torch.ones(amplitude_shape, device=device, dtype=dtype)
            self.amplitude = nn.Parameter(ones)

    @staticmethod
    def _amplitude_shape(granularity, shape):
        if granularity not in GRANULARITIES:
            names = ", ".join(GRANULARITIES)
            raise ValueError(f"granularity must be one of {names}; got {granularity!r}")
        if granularity == "none":
            return None
        if granularity == "layer":
            return (1,)
        shape = (shape,) if isinstance(shape, int) else shape
        if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) == 0:
            raise ValueError(
                f"shape must be given for granularity {granularity!r}, as (C, H, W); got {shape!r}"
            )
        sizes = tuple(checks.check_positive_int("shape", size) for size in shape)
        if granularity == "element":
            return sizes
        # (C,) alone stands for the channels of a map.
        return (sizes[0], 1, 1) if len(sizes) == 1 else (sizes[0], *(1 for _ in sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.lif(
            split_time(x, self.timesteps),
            self.amplitude,
            decay=self.decay,
            v_threshold=self.v_threshold,
            v_reset=self.v_reset,
            detach_reset=self.detach_reset,
            surrogate=self.surrogate,
        )
        return y.flatten(0, 1)

    def extra_repr(self) -> str:
        parts = [f"timesteps={self.timesteps}", f"granularity={self.granularity!r}"]
        if self.amplitude is not None:
            parts.append(f"amplitude={checks.shape_text(self.amplitude)}")
        parts += [f"decay={self.decay:g}", f"v_threshold={self.v_threshold:g}"]
        parts += [f"v_reset={self.v_reset}", f"detach_reset={self.detach_reset}"]
        return ", ".join([*parts, f"surrogate={tuple(self.surrogate)}"])
