"""Events: from a list of them to frames, and what an event camera sees of a moving image."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from realspike.errors import DataError

# The camera moves along a triangle, as in the recordings of N-MNIST (Orchard et al., 2015).
_CORNERS = ((0.0, 0.0), (1.0, 0.5), (-0.2, 1.0), (0.0, 0.0))  # (down, right)
_AMPLITUDE = 2.5  # pixels of the sensor
_DARK = 0.1  # keeps the logarithm of an empty pixel finite
STEPS = 96


def frames_of_events(
    timestamps: np.ndarray,  # [E], any unit, whole or not, ascending or not
    x: np.ndarray,  # [E]
    y: np.ndarray,  # [E]
    polarity: np.ndarray,  # [E], 0 or 1
    timesteps: int,
    sensor_size: int,
    image_size: int,
) -> np.ndarray:  # [T, 2, image_size, image_size] float32
    """Count the events of every pixel and polarity in T intervals of equal duration.

    An image smaller than the sensor adds up the events of neighbouring pixels; none is lost. No
    events give empty frames.

    Raises:
        ValueError: for events beside the sensor, of another polarity or at no finite time, and for
            arrays of different lengths.
    """
    limits = {"x": (x, sensor_size), "y": (y, sensor_size), "polarity": (polarity, 2)}
    for name, (values, limit) in limits.items():
        if len(values) != len(timestamps):
            raise ValueError(
                f"{name} must have one value per event; got {len(values)} of {len(timestamps)}"
            )
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(
                f"{name} must be from 0 to {limit - 1}; it reaches from {values.min()} to "
                f"{values.max()}"
            )
    shape = (timesteps, 2, image_size, image_size)
    if len(timestamps) == 0:
        return np.zeros(shape, np.float32)
    t = _intervals(timestamps, timesteps)
    rows = y.astype(np.int64) * image_size // sensor_size
    columns = x.astype(np.int64) * image_size // sensor_size
    flat = ((t * 2 + polarity.astype(np.int64)) * image_size + rows) * image_size + columns
    return np.bincount(flat, minlength=int(np.prod(shape))).reshape(shape).astype(np.float32)


def _intervals(timestamps: np.ndarray, timesteps: int) -> np.ndarray:  # [E] -> [E]
    """Return in which of T intervals of equal duration each event is; the last ends with it."""
    if timestamps.dtype.kind in "iu":
        since = timestamps.astype(np.int64) - int(timestamps.min())
        return since * timesteps // (int(since.max()) + 1)
    since = timestamps.astype(np.float64) - float(timestamps.min())
    if not np.isfinite(since).all():
        raise ValueError("timestamps must be finite")
    part = since / (since.max() or 1.0)
    return np.minimum((part * timesteps).astype(np.int64), timesteps - 1)


def _positions(steps: int) -> Tensor:  # [steps, 2]
    """Where the camera looks at each step, in pixels of the sensor."""
    corners = torch.tensor(_CORNERS) * _AMPLITUDE
    along = torch.linspace(0, len(_CORNERS) - 1, steps)
    leg = along.long().clamp(max=len(_CORNERS) - 2)
    part = (along - leg)[:, None]
    return corners[leg] * (1 - part) + corners[leg + 1] * part


def saccades(
    images: Tensor,  # [N, 1, H, W] in [0, 1]
    timesteps: int,
    size: int = 16,
    threshold: float = 0.25,
) -> Tensor:  # [N, T, 2, size, size] float32
    """Render what an event camera sees while it moves over still images: counts of events.

    A pixel emits one event whenever its log intensity has changed by ``threshold`` since its last:
    polarity 0 brighter, 1 darker. The image fills three quarters of the sensor, and the motion is
    the same triangle for all, in `STEPS` steps. Deterministic: there is no noise.

    Raises:
        DataError: for more timesteps than steps of the motion.
    """
    if timesteps > STEPS:
        raise DataError(f"timesteps must be at most {STEPS}; got {timesteps}")
    inner = 3 * size // 4
    before = (size - inner) // 2
    scene = F.interpolate(images, size=(inner, inner), mode="bilinear", align_corners=False)
    scene = F.pad(scene, (before, size - inner - before) * 2)  # [N, 1, size, size]
    frames = torch.zeros(len(images), timesteps, 2, size, size)
    reference = None
    for step, position in enumerate(_positions(STEPS)):
        theta = torch.eye(2, 3)
        theta[:, 2] = position.flip(0) * 2 / size  # grid_sample wants (right, down) in [-1, 1]
        grid = F.affine_grid(theta[None], [1, 1, size, size], align_corners=False)
        seen = F.grid_sample(scene, grid.expand(len(images), -1, -1, -1), align_corners=False)
        intensity = torch.log(seen[:, 0] + _DARK)  # [N, size, size]
        if reference is None:
            reference = intensity.clone()
        events = torch.trunc((intensity - reference) / threshold)
        reference += events * threshold
        frame = frames[:, step * timesteps // STEPS]
        frame[:, 0] += events.clamp(min=0)
        frame[:, 1] -= events.clamp(max=0)
    return frames
