"""The LIF layer."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.types import Device

from realspike_ops import _checks as checks
from realspike_ops import functional
from realspike_ops.nn.neurons.normed_current import NormedCurrent
from realspike_ops.nn.plain import waits_for_weights
from realspike_ops.nn.synapses.storage import Stored
from realspike_ops.nn.time import split_time
from realspike_ops.surrogate import as_surrogate

if TYPE_CHECKING:
    from realspike_ops.functional.settings import LifArguments, NeuronForm

# torch's stub has neither its arguments nor that it is a parameter.
_uninitialized: Any = UninitializedParameter
_SHARED = ("granularity", "decay_granularity", "threshold_granularity")
GRANULARITIES = ("none", "layer", "channel", "element")


def parameter_shape(
    name: str, granularity: str, shape: int | tuple[int, ...] | None
) -> tuple[int, ...] | None:
    """Return the shape of a parameter that neurons of a map of `shape` share, None without one."""
    checks.check_choice(name, granularity, GRANULARITIES)
    if granularity == "none":
        return None
    if granularity == "layer":
        return (1,)
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) == 0:
        raise ValueError(
            f"shape must be given for {name} {granularity!r}, as (C, H, W); got {shape!r}"
        )
    sizes = tuple(checks.check_positive_int("shape", size) for size in shape)
    if granularity == "element":
        return sizes
    # (C,) alone stands for the channels of a map.
    return (sizes[0], 1, 1) if len(sizes) == 1 else (sizes[0], *(1 for _ in sizes[1:]))


class RealSpikeLIF(Stored):
    """LIF neurons with a learnable spike amplitude; takes the place of ``nn.ReLU``.

    Args:
        timesteps: T. The leading dimension of the input is T*B, timestep outermost.
        granularity: Which neurons share one amplitude (Eq. 16 to 18): ``"none"`` (binary spikes),
            ``"layer"``, ``"channel"`` or ``"element"``.
        shape: Shape of one neuron map, ``(C, H, W)`` (or ``(C,)``, ``(features,)``). Channel
            granularity reads C alone: maps of C channels and of any size fit, and so do C features.
            Without a shape, parameters per channel or element are lazy, as in ``nn.LazyConv2d``:
            the first input, or a state that is loaded, tells their shape.
        decay, v_threshold, v_reset, reset, detach_reset, emission, surrogate: See
            `realspike_ops.lif`; ``decay`` and ``v_threshold`` are numbers.
        decay_granularity: Which neurons share one learnable decay, as ``granularity``; ``"none"``
            keeps ``decay`` as it is. A learnable decay is ``sigmoid(decay_logit)``, so that it
            stays inside (0, 1) (the PLIF neuron), and starts at ``decay``.
        threshold_granularity: The same for the threshold, which starts at ``v_threshold`` (with a
            learnable decay: the Diet-SNN neuron).
        device, dtype: Place and type of the parameters. Default dtype: torch's if the kernels take
            it, else float32.

    Attributes:
        amplitude: The parameter, of shape ``[1]``, ``[C, 1, 1]`` or ``[C, H, W]``, initialised to
            1; None for granularity ``"none"``.
        decay: A number, or the tensor ``sigmoid(decay_logit)``.
        v_threshold: A number, or a parameter.

    Shape: [T*B, C, H, W] -> the same. The layer keeps no state between calls: every call starts
    from a potential of 0. Use `realspike_ops.lif` to carry the state of a long sequence.

    Reference:
        Guo et al., "Real Spike", ECCV 2022, equations (5) to (8) and (16) to (18). Learnable decay:
        Fang et al., "Incorporating Learnable Membrane Time Constant", ICCV 2021; with a learnable
        threshold: Rathi and Roy, "DIET-SNN", 2020.
    """

    # The decay and the threshold of a FoldedLIF are numbers or buffers, which have their shapes.
    decay_granularity = threshold_granularity = "none"
    may_be_lazy = False

    amplitude: nn.Parameter | None
    decay_logit: nn.Parameter | None
    v_threshold: float | Tensor
    # Of one amplitude, where a network notes it for the learning rate.
    neurons_per_amplitude: int

    def __init__(
        self,
        timesteps: int,
        granularity: str = "none",
        shape: tuple[int, ...] | None = None,
        decay: float = 0.25,
        v_threshold: float = 0.5,
        v_reset: float | None = 0.0,
        detach_reset: bool = False,
        surrogate: str | tuple[str, float] = "rectangular",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str | None = None,
        emission: str = "binary",
        decay_granularity: str = "none",
        threshold_granularity: str = "none",
    ):
        super().__init__()
        shared = (granularity, decay_granularity, threshold_granularity)
        for name, kind in zip(_SHARED, shared, strict=True):
            checks.check_choice(name, kind, GRANULARITIES)
        needs_shape = any(kind in ("channel", "element") for kind in shared)
        if shape is None and needs_shape and type(self) is RealSpikeLIF:
            self.__class__ = LazyRealSpikeLIF
            assert isinstance(self, LazyRealSpikeLIF)
            self._wait_for_shapes()
        self.timesteps = checks.check_positive_int("timesteps", timesteps)
        self.granularity = granularity
        self.decay_granularity = decay_granularity
        self.threshold_granularity = threshold_granularity
        decay = checks.check_number("decay", decay, 0.0, 1.0)
        v_threshold = checks.check_potential("v_threshold", v_threshold)
        v_reset, self.reset = checks.check_reset(v_reset, reset)
        self.v_reset = v_reset if self.reset == "hard" else None
        self.detach_reset = checks.check_flag("detach_reset", detach_reset)
        self.emission = checks.check_emission(emission, v_threshold)
        self.surrogate = as_surrogate(surrogate)
        if dtype is None and torch.get_default_dtype() not in checks.FLOATS:
            dtype = torch.float32
        if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise TypeError(f"dtype must be a floating-point torch.dtype; got {dtype!r}")

        def parameter(name: str) -> nn.Parameter | None:
            kind = getattr(self, name)
            if self.may_be_lazy and kind in ("channel", "element"):
                return _uninitialized(device=device, dtype=dtype)
            sizes = parameter_shape(name, kind, shape)
            if sizes is None:
                return None
            return nn.Parameter(torch.empty(sizes, device=device, dtype=dtype))

        self.register_parameter("amplitude", parameter("granularity"))
        if decay_granularity != "none" and not 0 < decay < 1:
            raise ValueError(f"decay must be inside (0, 1) to be learnable; got {decay:g}")
        self._fixed_decay = decay
        self.register_parameter("decay_logit", parameter("decay_granularity"))
        self._first_threshold = v_threshold
        learnable_threshold = parameter("threshold_granularity")
        if learnable_threshold is None:
            self.v_threshold = v_threshold
        else:
            self.register_parameter("v_threshold", learnable_threshold)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the amplitude to 1, a learnable decay and threshold to their first values."""
        for name in ("amplitude", "decay_logit", "v_threshold"):
            self._reset_parameter(name)

    def _reset_parameter(self, name: str) -> None:
        if not isinstance(parameter := getattr(self, name), nn.Parameter):
            return
        if name == "decay_logit":
            value = math.log(self._fixed_decay / (1 - self._fixed_decay))
        else:
            value = 1 if name == "amplitude" else self._first_threshold
        with torch.no_grad():
            parameter.fill_(value)

    @property
    def decay(self) -> float | Tensor:
        return self._fixed_decay if self.decay_logit is None else self.decay_logit.sigmoid()

    @property
    def form(self) -> "NeuronForm":
        """The keyword arguments of `realspike_ops.lif` that make this layer's neuron."""
        return {
            "decay": self.decay,
            "v_threshold": self.v_threshold,
            "v_reset": self.v_reset,
            "reset": self.reset,
            "detach_reset": self.detach_reset,
            "emission": self.emission,
            "surrogate": self.surrogate,
        }

    def fitted(self, dims: int) -> "LifArguments":
        """Return `form` and the amplitude for neuron maps of `dims` dimensions.

        A parameter of channels, [C, 1, 1], becomes [C] for features: dims = 1.
        """
        fitted: LifArguments = {**self.form, "amplitude": self.amplitude}
        for name, granularity in (
            ("amplitude", self.granularity),
            ("decay", self.decay_granularity),
            ("v_threshold", self.threshold_granularity),
        ):
            value = fitted[name]
            if granularity == "channel" and isinstance(value, Tensor) and value.dim() != dims:
                fitted[name] = value.view(-1, *(1,) * (dims - 1))
        return fitted

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, NormedCurrent) and x.goes_into(self.timesteps):
            return x.fire(self, self.timesteps, self.fitted(x.call.x.dim() - 1))
        x = split_time(x, self.timesteps)
        return functional.lif(x, **self.fitted(x.dim() - 2)).flatten(0, 1)

    def extra_repr(self) -> str:
        parts = [f"timesteps={self.timesteps}", f"granularity={self.granularity!r}"]
        for name in ("amplitude", "decay_logit", "v_threshold"):
            parameter = getattr(self, name)
            if is_lazy(parameter):
                parts.append(f"{name}=uninitialized")
            elif isinstance(parameter, Tensor):
                parts.append(f"{name}={checks.shape_text(parameter)}")
        if self.decay_logit is None:
            parts.append(f"decay={self.decay:g}")
        if not isinstance(self.v_threshold, Tensor):
            parts.append(f"v_threshold={self.v_threshold:g}")
        parts.append(
            f"v_reset={self.v_reset:g}" if self.reset == "hard" else f"reset={self.reset!r}"
        )
        parts.append(f"detach_reset={self.detach_reset}")
        if self.emission != "binary":
            parts.append(f"emission={self.emission!r}")
        return ", ".join([*parts, f"surrogate={tuple(self.surrogate)}"])


class LazyRealSpikeLIF(LazyModuleMixin, RealSpikeLIF):
    """A `RealSpikeLIF` whose parameters get their shape from the first input, [T*B, C, ...].

    ``RealSpikeLIF(T, "element")`` makes one. The first call, or a state that is loaded into it,
    turns it into a `RealSpikeLIF`.
    """

    cls_to_become = RealSpikeLIF
    may_be_lazy = True

    def _wait_for_shapes(self) -> None:
        # LazyModuleMixin registers these two hooks behind its own __init__. Its methods are typed
        # for a protocol of torch that no module fits.
        load_hook = self._lazy_load_hook  # pyright: ignore[reportAttributeAccessIssue]
        self._load_hook = self._register_load_state_dict_pre_hook(load_hook)
        self._initialize_hook = self.register_forward_pre_hook(
            self._infer_parameters, with_kwargs=True
        )

    def _reset_parameter(self, name: str) -> None:
        if not is_lazy(getattr(self, name)):
            super()._reset_parameter(name)

    def initialize_parameters(self, x: Tensor | None = None) -> None:  # [T*B, C, ...]
        """Give parameters without a shape the shape of a map of x, and their first values."""
        granularities = {
            "amplitude": self.granularity,
            "decay_logit": self.decay_granularity,
            "v_threshold": self.threshold_granularity,
        }
        missing = [name for name in granularities if is_lazy(getattr(self, name))]
        if not missing:
            return
        assert x is not None  # only a state that is loaded comes without, and gives them all
        steps = split_time(x, self.timesteps)  # [T, B, C, ...]
        if steps.dim() < 3:
            raise ValueError(
                "x must be [T*B, C, ...] to give parameters per channel or element their shape; "
                f"got {checks.shape_text(x)}"
            )
        for name in missing:
            sizes = parameter_shape(name, granularities[name], tuple(steps.shape[2:]))
            getattr(self, name).materialize(sizes)
            self._reset_parameter(name)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not waits_for_weights(self):
            self._infer_parameters(self, ())  # pyright: ignore[reportAttributeAccessIssue]
