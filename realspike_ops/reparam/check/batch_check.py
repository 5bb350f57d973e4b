"""Whether a network keeps the images of a batch apart."""

import math
import warnings
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from realspike_ops.nn import RealSpikeLIF
from realspike_ops.nn.time import split_time

_OUTERMOST = (
    "an image's outputs depend on its neighbours in the batch: the rows that LIF layers read, and "
    "those that are averaged over time, must be [T*B, ...] with the timestep outermost (row "
    "t * B + b), as DirectEncoding(T) makes and MeanOverTime(T) reads them"
)
_NO_TIME = (
    "an image's outputs depend on its neighbours in the batch, which LIF layers read as its "
    "timesteps: DirectEncoding(T), which repeats images over time, and MeanOverTime(T) at the end "
    "are missing (if these are frames [T*B, ...] with the timestep outermost, MeanOverTime(T) is)"
)
_NO_ENCODING = (
    "an image's outputs depend on its neighbours in the batch, which LIF layers read as its "
    "timesteps: there are as many labels as images, but fewer outputs, because DirectEncoding(T), "
    "which repeats images over time, is missing"
)


def warn_if_images_meet(
    model: nn.Module, x: Tensor, labels: Tensor | None = None, *, stacklevel: int = 1
) -> None:
    """Warn, in one sentence, where the outputs of an image depend on what else is in its batch.

    Args:
        model: A network in eval mode; it is run on a few rows.
        x: A batch for it, [B, ...] or [T*B, ...]; its numbers do not matter.
        labels: The labels of the batch, if they are known: they tell images from frames.
        stacklevel: The level of the caller, as in ``warnings.warn``.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            missing = _what_is_missing(model, x.detach(), labels)
        except Exception:  # a network that takes no other batch than its own is not judged
            return
    if missing is not None:
        warnings.warn(missing, UserWarning, stacklevel=stacklevel + 1)


def _what_is_missing(model: nn.Module, x: Tensor, labels: Tensor | None) -> str | None:
    neurons = [m for m in model.modules() if isinstance(m, RealSpikeLIF)]
    T = math.lcm(*(m.timesteps for m in neurons))
    if T == 1 or len(x) == 0:
        return None
    if not x.is_floating_point():
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        x = x.to(next(floating, torch.float32))
    try:
        outputs, repeats = _run(model, neurons, _rows(x, 2, math.nan))
    except Exception:  # T rows are timesteps, and 2 are not enough
        repeats = 1
    if repeats > 1:
        # [T, B, ...] has no images in its rows; with B = T it looks like [B, T, ...].
        has_time = x.dim() in (3, 5) and repeats == x.shape[1]
        if has_time and (x.shape[0] == T or x.shape[1] != T):
            return None
        met = _meets(outputs) and _differs(model, neurons, x, 2)
        return _OUTERMOST if met else None
    rows = 2 * T
    outputs, repeats = _run(model, neurons, _rows(x, rows, math.nan))
    if repeats != 1:
        return None
    if _meets(outputs):
        return _OUTERMOST if _differs(model, neurons, x, rows) else None
    per_timestep = all(len(out) == rows for out in outputs)
    if labels is not None and labels.dim() > 0 and len(labels) in (len(x), len(x) // T):
        are_images = len(labels) == len(x)
    else:
        steps = x.unflatten(0, (T, -1)) if len(x) % T == 0 else x[None]
        are_images = per_timestep and not (len(steps) == T and bool((steps == steps[0]).all()))
    if are_images:
        return _NO_TIME if per_timestep else _NO_ENCODING
    return None


def _rows(x: Tensor, count: int, neighbour: float | Tensor) -> Tensor:
    """Return rows of two samples, one after the other: the second, the odd ones, is changed."""
    rows = x[torch.arange(count, device=x.device) % len(x)].clone()
    rows[1::2] += neighbour
    return rows


def _run(model: nn.Module, neurons, rows: Tensor) -> tuple[list[Tensor], float]:
    """Return the outputs, and how many rows of the first neurons come from one of ``rows``."""
    with _dense_spikes(neurons) as seen:
        outputs = [out for out in pytree.tree_leaves(model(rows)) if isinstance(out, Tensor)]
    return outputs, seen[0] / len(rows)


@contextmanager
def _dense_spikes(neurons):
    """Let neurons pass on what reaches them at any timestep, so that none is silent."""
    seen: list[int] = []

    def emit(module, args, kwargs, spikes):
        current = args[0] if args else kwargs["x"]
        seen.append(len(current))
        steps = split_time(current, module.timesteps)
        mixed = steps + steps.mean(0)
        return (mixed / (1 + mixed.abs())).flatten(0, 1)

    handles = [m.register_forward_hook(emit, with_kwargs=True) for m in neurons]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _meets(outputs: list[Tensor]) -> bool:
    """Whether NaN of the second sample is in rows of the first."""
    return any(_of_first(out).isnan().any() for out in outputs)


def _of_first(out: Tensor) -> Tensor:
    return out[::2] if out.dim() > 0 and len(out) % 2 == 0 else out


def _differs(model: nn.Module, neurons, x: Tensor, count: int) -> bool:
    """Whether finite neighbours change the outputs too: a product of NaN with 0 does not count."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((count // 2, *x.shape[1:]), generator=generator, device="cpu")
    # The same rows in the same places are the same bits, as long as nothing mixes them with others.
    pairs = zip(
        *(_run(model, neurons, _rows(x, count, other))[0] for other in (0.0, noise.to(x))),
        strict=True,
    )
    return any(not torch.equal(_of_first(a), _of_first(b)) for a, b in pairs)
