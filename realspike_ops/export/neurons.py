"""The numbers of a NIR neuron, from those of a LIF layer and back, without a change of a bit.

NIR's LIF is ``tau dv/dt = (v_leak - v) + r x`` and fires where ``v > v_threshold``. A step of dt is
``h = (1 - dt / tau) v + (r dt / tau) x``, so that ``tau = dt / (1 - decay)`` and ``r = tau / dt``
give ``h = decay v + x``. With the float below the threshold, `>` fires as `>=` does.
"""

import numpy as np
import torch
from torch import Tensor

from realspike_ops.nn import FoldedLIF

# 1 - 2^-30 is 1 in float32: an integrate-and-fire neuron as a LIF that every reader takes.
TAU_OF_IF = 2.0**30  # in units of dt


def _one_number(name: str, what: str, value: float | Tensor) -> np.float32:
    if isinstance(value, Tensor):
        values = value.detach().cpu().float().unique()
        if values.numel() != 1:
            raise ValueError(
                f"{name!r}: its {what} must be one number for the whole layer, which is all that "
                f"the readers of NIR take; got {values.numel()} different ones"
            )
        value = values.item()
    return np.float32(value)


def _time_constant(name: str, decay: np.float32, dt: float) -> float:
    """Return the tau whose decay every reader computes to the last bit of float32."""
    if decay == 1:
        return TAU_OF_IF * dt
    tau = dt / (1 - float(decay))
    for candidate in (tau, np.nextafter(tau, np.inf), np.nextafter(tau, 0.0)):
        # As snnTorch computes it, and as SpikingJelly does.
        read = (1 - dt / candidate, 1 - 1 / (candidate / dt))
        if tau > dt and all(np.float32(value) == decay for value in read):
            return float(candidate)
    raise ValueError(
        f"{name!r}: its decay {decay:g} is too near to 0 to be the time constant of a NIR neuron "
        "(tau = dt / (1 - decay) must be more than dt); train with a larger decay"
    )


def neuron_numbers(
    name: str, neurons: FoldedLIF, scale: Tensor | None, dt: float
) -> tuple[float, np.float32]:
    """Return tau and the NIR threshold of neurons whose current is in real units.

    Args:
        name: The name of the layer in errors.
        neurons: The layer.
        scale: The size of the steps that its threshold is counted in; None: 1.
        dt: Duration of a timestep in seconds.

    Raises:
        ValueError: for a neuron that NIR, or its readers, have no numbers for.
    """
    if neurons.emission != "binary":
        raise ValueError(
            f"{name!r}: NIR's neurons emit 0 and 1; got emission={neurons.emission!r}: train with "
            "emission='binary'"
        )
    if neurons.reset != "hard" or neurons.v_reset != 0:
        got = f"v_reset={neurons.v_reset:g}" if neurons.reset == "hard" else f"{neurons.reset!r}"
        raise ValueError(
            f"{name!r}: NIR's neurons are reset to a potential, and its readers agree on 0 alone; "
            f"got reset {got}: train with reset='hard', v_reset=0"
        )
    threshold = neurons.v_threshold
    if scale is not None:
        threshold = torch.as_tensor(threshold, device=scale.device) * scale
    v_threshold = _one_number(name, "threshold", threshold)
    if not v_threshold > 0:
        raise ValueError(
            f"{name!r}: its threshold must be above 0, as snnTorch resets neurons at rest "
            f"otherwise; got {v_threshold:g}"
        )
    decay = _one_number(name, "decay", neurons.decay)
    below = np.nextafter(v_threshold, np.float32(0))
    return _time_constant(name, decay, dt), below


def fires_above(v_threshold: float | np.float32) -> float:
    """Return the threshold of `>=` that fires where `>` does at ``v_threshold``."""
    return float(np.nextafter(np.float32(v_threshold), np.float32(np.inf)))
