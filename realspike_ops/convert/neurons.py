"""Which neuron of ours equals one of another library; docs/migration.md shows each equality.

The libraries are never imported: their classes are told by their names.
"""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from realspike_ops.nn.plain import why_not_plain
from realspike_ops.reparam.errors import ReparameterizationError
from realspike_ops.reparam.trace.names import layer_class

_LIBRARIES = {
    "spikingjelly": "spikingjelly.activation_based.neuron",
    "snntorch": "snntorch._neurons",
    "norse": "norse.torch.module",
}
# Modules of norse.torch.module that hold other modules or weights.
_NO_NEURONS = ("SequentialState", "Lift", "RegularizationCell", "SpikePooling")
_SPIKINGJELLY_LAYERS = "spikingjelly.activation_based.layer"


@dataclass(frozen=True)
class Neuron:
    """The arguments and first values that let a `RealSpikeLIF` emit the spikes of a neuron.

    Attributes:
        form: Arguments of `RealSpikeLIF`.
        learned: The first values of parameters that the neuron learns, or has per element:
            "amplitude", "decay" and "v_threshold".
        returns_state: Whether a call returns (spikes, state).
        splits_time: Whether it reads [T, B, ...]; else one timestep, [B, ...].
    """

    form: dict
    learned: dict[str, Tensor] = field(default_factory=dict)
    fixed_amplitude: bool = False
    returns_state: bool = False
    splits_time: bool = False


class Recorded(nn.Module):
    """Stands for a neuron of another library while forward is recorded, and where it is proven.

    Attributes:
        timesteps: T of a forward that runs over time, whose timesteps the proof tells apart.
    """

    def __init__(self, neuron: Neuron):
        super().__init__()
        self.neuron = neuron
        self.was_called = self.was_reset = False
        self.timesteps, self.calls = 1, 0

    def forward(self, x, state=None, *, mem=None):  # [B, ...], or [T, B, ...] if it splits time
        if self.was_reset:
            raise ReparameterizationError(
                f"{type(self).__name__} is reset between calls inside forward(): here, a neuron "
                "starts from its rest at every forward, and goes on through all timesteps"
            )
        self.was_called = True
        if self.neuron.splits_time:
            y = of_timesteps(x.flatten(0, 1), self.timesteps).view_as(x)
        else:
            y = x * (1 + self.calls % self.timesteps)
            self.calls += 1
        return (y, x.clone()) if self.neuron.returns_state else y

    def reset(self):
        self.was_reset = self.was_called

    def reset_mem(self):
        return torch.zeros(0)

    init_leaky = reset_mem


def of_timesteps(x: Tensor, timesteps: int) -> Tensor:  # [T*B, ...] -> the same
    """Return x times a number that tells its timestep: 1 to T."""
    numbers = torch.arange(1, timesteps + 1, device=x.device).view(-1, *(1 for _ in x.shape))
    return (x.unflatten(0, (timesteps, -1)) * numbers).flatten(0, 1).to(x.dtype)


class RecordedLayer(nn.Module):
    """Stands for a layer that reads [T, B, ...] as its torch class reads [T*B, ...]."""

    step_mode = "m"  # which networks of SpikingJelly ask a layer for

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):  # [T, B, ...]
        return self.layer(x)


def torch_class(module: nn.Module) -> type | None:
    """Return the torch class that a layer of SpikingJelly is for each timestep, None for others."""
    kind = type(module)
    if not kind.__module__.startswith(_SPIKINGJELLY_LAYERS):
        return None
    if not hasattr(module, "step_mode") or isinstance(module, nn.Sequential):
        return None
    return layer_class(kind)


def stand_in(module: nn.Module, neuron: Neuron | None) -> nn.Module:
    """Return what is recorded in the place of a module: a neuron or a layer, by its name."""
    kind, given = (RecordedLayer, module) if neuron is None else (Recorded, neuron)
    named: Any = type(type(module).__name__, (kind,), {})
    return named(given)


def neuron_of(name: str, module: nn.Module, surrogate=None) -> Neuron | None:
    """Return the neuron that equals a module, None if it is none of another library.

    Args:
        name: The name of the module in errors.
        surrogate: The surrogate gradient in the place of its own; None: its own.

    Raises:
        ReparameterizationError: for a neuron that has no equal, with the difference.
    """
    home, kind = type(module).__module__, type(module).__name__

    def refuse(reason: str) -> NoReturn:
        raise ReparameterizationError(f"{name!r} ({kind}): {reason}")

    if home.startswith(_SPIKINGJELLY_LAYERS) and kind in ("Dropout", "Dropout2d"):
        maps_in_time = kind == "Dropout2d" and module.step_mode == "m"
        within = " in a SeqToANNContainer" if maps_in_time else ""
        refuse(
            "SpikingJelly's drops the same elements at all timesteps, and no layer here does: "
            f"replace it by torch.nn.{kind}{within}, which draws them anew at each, or remove it"
        )
    library = next(
        (
            known
            for cls in type(module).__mro__
            for known, place in _LIBRARIES.items()
            if cls.__module__.startswith(place) and cls.__name__ not in _NO_NEURONS
        ),
        None,
    )
    if library is None:
        return None
    make = _NEURONS.get(kind) if home.startswith(_LIBRARIES[library]) else None
    if make is None:
        refuse(
            f"no neuron of this library is known to equal it; of {library}'s, these have an equal: "
            + ", ".join(k for k, m in _NEURONS.items() if m.__name__ == f"_{library}")
        )
    if (reason := why_not_plain(module, type(module))) is not None:
        refuse(reason)
    return make(module, surrogate, refuse)


def just_above(threshold: float) -> float:
    """Return the next float32: h >= just_above(t) is h > t."""
    return torch.nextafter(torch.tensor(threshold).float(), torch.tensor(math.inf)).item()


def _spikingjelly(node, surrogate, refuse) -> Neuron:
    """IFNode, LIFNode and ParametricLIFNode, in units of tau where the input decays too."""
    if node.store_v_seq:
        refuse("store_v_seq=True: the potentials are not kept here; set it to False")
    if not node.surrogate_function.spiking:
        refuse("its surrogate has spiking=False: it emits no spikes")
    kind = type(node).__name__
    learned: dict[str, Tensor] = {}
    decay, scale = 1.0, 1.0
    if kind == "LIFNode":
        decay = 1 - 1 / node.tau
        scale = node.tau if node.decay_input else 1.0
    elif kind == "ParametricLIFNode":
        rate = node.w.detach().double().sigmoid()  # 1 / tau
        learned["decay"] = (1 - rate).view(1)
        decay = 1 - rate.item()
        scale = 1 / rate.item() if node.decay_input else 1.0
    rest = node.v_reset or 0.0
    v_threshold = (node.v_threshold - rest) * scale
    if kind == "ParametricLIFNode" and node.decay_input:
        learned["v_threshold"] = torch.tensor([v_threshold])
    form = {
        "decay": decay,
        "v_threshold": v_threshold,
        "v_reset": None if node.v_reset is None else 0.0,
        "detach_reset": bool(node.detach_reset),
        "surrogate": surrogate or _spikingjelly_surrogate(node.surrogate_function, scale, refuse),
    }
    return Neuron(form, learned, splits_time=node.step_mode == "m")


def _spikingjelly_surrogate(function, scale: float, refuse):
    kind = type(function).__name__
    slopes = {"ATan": "atan", "Sigmoid": "sigmoid"}
    widths = {"Rect": ("rectangular", 1.0), "PiecewiseQuadratic": ("triangle", 2.0)}
    if kind in slopes:
        return slopes[kind], function.alpha / scale
    if kind in widths:
        name, width = widths[kind]
        return name, width / function.alpha * scale
    return _refuse_surrogate(kind, refuse)


def _refuse_surrogate(kind: str, refuse):
    refuse(
        f"its surrogate {kind} has no counterpart: spikes would be equal, gradients would not; "
        "name one to train with, convert(..., surrogate='atan')"
    )


def _snntorch(node, surrogate, refuse) -> Neuron:
    """Leaky; a potential that equals the threshold does not fire there."""
    for name, why in (
        ("inhibition", "one neuron alone fires per timestep"),
        ("state_quant", "its potential is quantized"),
        ("surrogate_disable", "it has no gradient"),
    ):
        if getattr(node, name):
            refuse(f"{name}: {why}, which has no counterpart")
    if node.reset_mechanism == "subtract" and not node.reset_delay:
        refuse(
            'reset_mechanism="subtract" with reset_delay=False subtracts a second time from a '
            "potential above twice the threshold, which has no counterpart; reset_delay=True has"
        )
    if surrogate is None:
        surrogate = _snntorch_surrogate(node.spike_grad, refuse)
    learned = {}
    for name, tensor in (("decay", node.beta), ("v_threshold", node.threshold)):
        if isinstance(tensor, nn.Parameter):
            learned[name] = tensor.detach()
        elif tensor.numel() != 1:
            refuse(
                f"a fixed {name} per neuron ({tuple(tensor.shape)}) has no counterpart; make it "
                "one number, or learnable"
            )
    if "decay" in learned:
        learned["decay"] = learned["decay"].clamp(0, 1)
    factor = node.graded_spikes_factor.detach()
    is_learned = isinstance(node.graded_spikes_factor, nn.Parameter)
    if is_learned or not bool((factor == 1).all()):
        learned["amplitude"] = factor
    threshold = node.threshold.detach().float().mean().item()
    subtracts = node.reset_mechanism == "subtract"
    form = {
        "decay": node.beta.detach().clamp(0, 1).double().mean().item(),
        "v_threshold": threshold if subtracts else just_above(threshold),
        "reset": {"subtract": "soft_delayed", "zero": "hard", "none": "none"}[node.reset_mechanism],
        "v_reset": 0.0,
        "detach_reset": bool(node.reset_delay),
        "surrogate": surrogate,
    }
    returns_state = node.output or not node.init_hidden
    return Neuron(form, learned, "amplitude" in learned and not is_learned, returns_state)


def _snntorch_surrogate(function, refuse):
    kind = getattr(function, "__qualname__", type(function).__name__).split(".")[0]
    if getattr(function, "__module__", "") == "snntorch.surrogate" and kind in ("atan", "sigmoid"):
        (scale,) = (
            v
            for k, v in inspect.getclosurevars(function).nonlocals.items()
            if k in ("alpha", "slope")
        )
        return kind, float(scale)
    return _refuse_surrogate(kind, refuse)


def _norse(cell, surrogate, refuse) -> Neuron:
    """LIFBoxCell, counted from its leak and in units of dt / tau_mem."""
    p = cell.p
    numbers = {}
    for name in ("tau_mem_inv", "v_leak", "v_th", "v_reset"):
        value = torch.as_tensor(getattr(p, name))
        if value.numel() != 1 or value.requires_grad:
            refuse(f"{name} must be one number that is not learnt; got {tuple(value.shape)}")
        numbers[name] = value.double().item()
    a, leak = cell.dt * numbers["tau_mem_inv"], numbers["v_leak"]
    if not 0 < a <= 1:
        refuse(f"dt * tau_mem_inv must be in (0, 1], or the potential overshoots; got {a:g}")
    method = getattr(p.reset_method, "__name__", "")
    if method == "reset_subtract" and leak != 0:
        refuse(f"reset_subtract with v_leak={leak:g} has no counterpart; v_leak=0 has")
    if method not in ("reset_value", "reset_subtract"):
        refuse(f"reset_method {method} has no counterpart; reset_value and reset_subtract have")
    if surrogate is None:
        if p.method != "triangle" or float(p.alpha) != 1:
            _refuse_surrogate(f"{p.method} (alpha={float(p.alpha):g})", refuse)
        surrogate = ("triangle", 2 / a)
    threshold = (numbers["v_th"] - leak) / a
    subtracts = method == "reset_subtract"
    form = {
        "decay": 1 - a,
        "v_threshold": threshold if subtracts else just_above(threshold),
        "v_reset": None if subtracts else (numbers["v_reset"] - leak) / a,
        "surrogate": surrogate,
    }
    return Neuron(form, returns_state=True)


_NEURONS = {
    "IFNode": _spikingjelly,
    "LIFNode": _spikingjelly,
    "ParametricLIFNode": _spikingjelly,
    "Leaky": _snntorch,
    "LIFBoxCell": _norse,
}
