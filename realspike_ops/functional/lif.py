"""The documented function of LIF neurons: it checks the arguments, then calls one op."""

import functools
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

import realspike_ops.ops.lif_autograd
import realspike_ops.ops.lif_packed
from realspike_ops import _checks as checks
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.lif_contract import SAVE_NOTHING, Neuron, requires_gradient, what_to_save
from realspike_ops.surrogate import as_surrogate

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from realspike_ops.functional.settings import NeuronForm


@overload
def lif(
    x: Tensor,
    amplitude: Tensor | None = None,
    *,
    v_init: Tensor | None = None,
    return_state: Literal[False] = False,
    packed: bool = False,
    **form: "Unpack[NeuronForm]",
) -> Tensor: ...
@overload
def lif(
    x: Tensor,
    amplitude: Tensor | None = None,
    *,
    v_init: Tensor | None = None,
    return_state: Literal[True],
    packed: bool = False,
    **form: "Unpack[NeuronForm]",
) -> tuple[Tensor, Tensor]: ...
@overload
def lif(
    x: Tensor,
    amplitude: Tensor | None = None,
    *,
    v_init: Tensor | None = None,
    return_state: bool,
    packed: bool = False,
    **form: "Unpack[NeuronForm]",
) -> Tensor | tuple[Tensor, Tensor]: ...


def lif(
    x: Tensor,  # [T, B, ...]
    amplitude: Tensor | None = None,  # [1], [C, 1, 1] or [C, H, W]
    *,
    decay: float | Tensor = 0.25,  # a tensor: as amplitude
    v_threshold: float | Tensor = 0.5,  # a tensor: as amplitude
    v_reset: float | None = 0.0,
    reset: str | None = None,
    detach_reset: bool = False,
    emission: str = "binary",
    surrogate: str | tuple[str, float] = "rectangular",
    v_init: Tensor | None = None,  # [B, ...]
    return_state: bool = False,
    packed: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # [T, B, ...] or ([T, B, ...], [B, ...])
    r"""Run leaky integrate-and-fire neurons over all T timesteps and emit real-valued spikes.

    .. math::
        h[t] = decay \cdot v[t-1] + x[t]

        o[t] = [h[t] \ge v_{threshold}]

        v[t] = (1 - o[t])\, h[t] + o[t]\, v_{reset}

        y[t] = amplitude \cdot o[t]

    Equal to ``realspike_ops.reference.lif``, spike for spike.

    Args:
        x: Input current, in units of the membrane potential. Time-major; float32, float16 or
            bfloat16; contiguous or channels_last, each read as it lies (other layouts are copied).
            A current that is constant over time may be an expanded tensor: it is read once.
        amplitude: Spike amplitude, any shape that broadcasts against ``x.shape[2:]``: ``[1]``
            (layer), ``[C, 1, 1]`` (channel), ``[C, H, W]`` (element). None: binary spikes.
        decay: Factor in [0, 1] by which the potential decays per timestep (the paper's tau; not a
            time constant). 1 is the IF neuron; docs/migration.md maps the neurons of SpikingJelly,
            snnTorch and norse. A tensor of the same shapes as ``amplitude`` gives every layer,
            channel or element its own and may be learnable (PLIF: ``decay=w.sigmoid()``); its
            values are not checked.
        v_threshold: Potential at which the neuron fires; a tie fires. A tensor as for ``decay``.
        v_reset: Potential after a spike (hard reset), or None to subtract ``v_threshold`` (soft).
        reset: ``"hard"``, ``"soft"``, ``"none"`` (a spike leaves the potential as it is) or
            ``"soft_delayed"``: the next timestep subtracts ``v_threshold``, after the decay,
            ``h[t] = decay * v[t-1] + x[t] - v_threshold * o[t-1]`` with ``v[t] = h[t]``, where
            v[t-1] fires the spike o[t-1] (snnTorch's default). Default: as ``v_reset`` says.
        detach_reset: Stop the gradient through the reset.
        emission: ``"binary"``, or ``"ternary"``: ``h[t] <= -v_threshold`` fires a negative spike,
            o[t] = -1, which emits ``-amplitude`` and resets as a positive one does (the soft reset
            adds ``v_threshold``). It needs ``v_threshold > 0``. The surrogate then belongs to the
            nearer of the two thresholds.
        surrogate: The function that replaces the derivative of the spike: a name (``rectangular``,
            ``atan``, ``sigmoid``, ``triangle``) or ``(name, scale)``; see
            `realspike_ops.Surrogate`.
        v_init: Potential before the first timestep, after the reset; with ``"soft_delayed"``
            before it, so that a potential which fires is reset. Default: zeros.
        return_state: Also return the potential after the last timestep, so that a long sequence
            can be run in pieces with the result of one run.
        packed: In inference, return o as bits along the channels, as `pack_spikes` does, for
            `unshared_spike_conv`; the dense spikes never exist. It needs x [T, B, C, ...], no
            amplitude (fold it into the weights) and nothing that requires a gradient.

    Returns:
        y, in the shape, dtype and memory format of ``x``; with ``packed``, int32 words
        [T, B, ..., ceil(C / 32)], for ternary spikes [2, T, B, ..., ceil(C / 32)]: the positive
        ones, then the negative ones; with ``return_state``, ``(y, v_last)``,
        where v_last is float32. Differentiable with respect to x, amplitude, decay, v_threshold
        and v_init, through both outputs.

    Raises:
        TypeError: if a tensor is not a floating tensor of an accepted dtype.
        ValueError: if a shape, a device or a number is out of range; the message names it.

    Note:
        Deterministic, also in the backward pass. The state is float32 whatever the input dtype,
        and products and sums are rounded separately (docs/conventions.md). With
        ``detach_reset=True``, the rectangular surrogate and no gradient for decay or threshold,
        backward keeps two bits per neuron and timestep (four for ternary spikes); otherwise it
        keeps ``x`` and recomputes. NaN never fires and stays NaN.

    Reference:
        Guo et al., "Real Spike", ECCV 2022, equations (5) to (8) and (16) to (18). Ternary spikes:
        Guo et al., "Ternary Spike", AAAI 2024.
    """
    check_input(x, "lif")
    checks.check_flag("return_state", return_state)
    checks.check_flag("packed", packed)
    amplitude = None if amplitude is None else check_parameter("amplitude", amplitude, x)
    decays, thresholds, v_init, neuron = check_neurons(
        x, decay, v_threshold, v_reset, reset, detach_reset, emission, surrogate, v_init
    )
    if forward_ad._current_level >= 0:
        checks.check_no_tangent(
            x=x, amplitude=amplitude, decay=decays, v_threshold=thresholds, v_init=v_init
        )
    save = SAVE_NOTHING
    if requires_gradient(x, amplitude, decays, thresholds, v_init):
        save = what_to_save(neuron, decays, thresholds)
    is_plain = is_plain_eager(x, amplitude, decays, thresholds, v_init)
    if not is_plain:
        checks.check_not_differentiated_by_functorch("lif")
    if packed:
        if amplitude is not None:
            raise ValueError(
                "amplitude must be None with packed=True, since bits have none: fold it into the "
                f"weights that read the spikes; got {checks.shape_text(amplitude)}"
            )
        if save != SAVE_NOTHING:
            raise ValueError(
                "packed=True is for inference: call it under torch.no_grad(), or detach what "
                "requires a gradient"
            )
        if x.dim() < 3:
            raise ValueError(
                f"x must have a dimension of channels [T, B, C, ...]; got {checks.shape_text(x)}"
            )
        return realspike_ops.ops.lif_packed.lif_packed(
            x, decays, thresholds, v_init, neuron, return_state
        )
    return realspike_ops.ops.lif_autograd.lif(
        x, amplitude, decays, thresholds, v_init, neuron, save, return_state, is_plain
    )


def check_input(x: Tensor, function: str) -> None:
    """Check the currents [T, B, ...] of a function of neurons."""
    checks.check_tensor("x", x)
    checks.check_supported_device("x", x)
    hint = (
        f"; realspike_ops.reference.{function} runs in float64" if x.dtype == torch.float64 else ""
    )
    checks.check_dtype("x", x, checks.FLOATS, hint)
    if x.dim() < 2:
        raise ValueError(
            f"x must have at least 2 dimensions [T, B, ...]; got {checks.shape_text(x)}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"x must have T >= 1 timesteps; got shape {checks.shape_text(x)}")


class _Neurons(NamedTuple):
    """Neurons on currents x, checked; the tensors are float32."""

    decay: Tensor | None  # None: the number in the form
    v_threshold: Tensor | None
    v_init: Tensor | None
    form: Neuron


def check_neurons(
    x: Tensor,
    decay: float | Tensor,
    v_threshold: float | Tensor,
    v_reset: float | None,
    reset: str | None,
    detach_reset: bool,
    emission: str,
    surrogate: str | tuple[str, float],
    v_init: Tensor | None,
    leading: int = 2,
) -> _Neurons:
    """Check the arguments of `lif` but the amplitude; x has been checked.

    x is [T, B, ...], or of other `leading` dimensions than T and B.
    """
    decays, decay_value = _tensor_or_number("decay", decay, x, leading)
    thresholds, threshold_value = _tensor_or_number("v_threshold", v_threshold, x, leading)
    form = _neuron(decay_value, threshold_value, v_reset, reset, detach_reset, emission, surrogate)
    if v_init is not None:
        checks.check_tensor("v_init", v_init)
        checks.check_dtype("v_init", v_init, checks.FLOATS)
        checks.check_device("v_init", v_init, "x", x)
        checks.check_shape("v_init", v_init, x.shape[1:], "x.shape[1:]")
        v_init = checks.in_float32(v_init)
    return _Neurons(decays, thresholds, v_init, form)


def _make_neuron(
    decay: float | None,
    v_threshold: float | None,
    v_reset: float | None,
    reset: str | None,
    detach_reset: bool,
    emission: str,
    surrogate: str,
    scale: float | None,
) -> Neuron:
    """Check the form of a neuron, whose decay or threshold is None where it is a tensor."""
    decay = 0.0 if decay is None else checks.check_number("decay", decay, 0.0, 1.0)
    if v_threshold is not None:
        v_threshold = checks.check_potential("v_threshold", v_threshold)
    ternary = checks.check_emission(emission, v_threshold) == "ternary"
    v_reset, reset = checks.check_reset(v_reset, reset)
    surrogate, scale = as_surrogate(surrogate if scale is None else (surrogate, scale))
    # Without a reset there is nothing to detach, and less to save.
    detach_reset = checks.check_flag("detach_reset", detach_reset) or reset == "none"
    return Neuron(
        decay or 0.0, v_threshold or 0.0, v_reset, reset, detach_reset, ternary, surrogate, scale
    )


# Networks call with the same few neurons again and again. Typed, since True == 1 but is no number.
_cached_neuron = functools.lru_cache(maxsize=1024, typed=True)(_make_neuron)


def _neuron(
    decay: float | None,
    v_threshold: float | None,
    v_reset: float | None,
    reset: str | None,
    detach_reset: bool,
    emission: str,
    surrogate: str | tuple[str, float],
) -> Neuron:
    form = (decay, v_threshold, v_reset, reset, detach_reset, emission)
    if isinstance(surrogate, (tuple, list)) and len(surrogate) == 2:
        name, scale = surrogate
    else:
        name, scale = surrogate, None
    if torch.compiler.is_compiling():
        return _make_neuron(*form, name, scale)
    try:
        return _cached_neuron(*form, name, scale)
    except TypeError:
        # An argument without a hash cannot be looked up, and is no setting of a neuron: the checks
        # say which setting it was given for.
        return _make_neuron(*form, name, scale)


def check_parameter(name: str, parameter: Tensor, x: Tensor, leading: int = 2) -> Tensor:
    """Check a parameter of the neurons; return it in float32.

    The dimensions along which the result varies are neighbours: the kernels read it as one run.
    """
    checks.check_tensor(name, parameter)
    checks.check_dtype(name, parameter, checks.FLOATS)
    checks.check_device(name, parameter, "x", x)
    shape = x.shape[leading:]
    parameter = checks.in_float32(parameter)
    if not torch.compiler.is_compiling() and parameter.shape == shape:
        return parameter
    checks.check_parameter(name, parameter, shape)
    if parameter.dim() > len(shape):
        parameter = parameter.reshape(())  # [1] against no dimensions at all
    sizes = (1,) * (len(shape) - parameter.dim()) + tuple(parameter.shape)
    varying = [d for d, size in enumerate(sizes) if size > 1]
    has_gap = bool(varying) and any(
        sizes[d] == 1 < shape[d] for d in range(varying[0], varying[-1])
    )
    return parameter.expand(shape) if has_gap else parameter


def _tensor_or_number(
    name: str, value: float | Tensor | None, x: Tensor, leading: int
) -> tuple[Tensor | None, float | None]:
    """Return (tensor, None) or (None, value)."""
    if isinstance(value, Tensor):
        return check_parameter(name, value, x, leading), None
    if value is None:
        raise TypeError(f"{name} must be a number or a tensor; got NoneType")
    return None, value
