"""Argument checks: every message names the argument, what came and what is accepted."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

LARGEST = torch.finfo(torch.float32).max
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def shape_text(tensor_or_shape: Tensor | Sequence[object]) -> str:
    shape = getattr(tensor_or_shape, "shape", tensor_or_shape)
    return "[" + ", ".join(str(size) for size in shape) + "]"


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        hint = "; is_leaf_module of a torch.fx.Tracer must be true of the layers of this library"
        hint = hint if isinstance(value, fx.Proxy) else ""
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}{hint}")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense (strided) tensor; got {kind}")


def check_module(name: str, value: object) -> None:
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} must be an nn.Module; got {type(value).__name__}")


def check_path(name: str, value: object) -> Path:
    """Refuse what would be the name of a file by its text alone: a number, a tensor."""
    if not isinstance(value, (str, Path)):
        raise TypeError(f"{name} must be a str or a Path; got {type(value).__name__}")
    return Path(value)


def check_values(name: str, value: object) -> None:
    """Check a tensor that is read, not its shape alone."""
    check_tensor(name, value)
    if isinstance(value, Tensor) and value.is_meta:
        raise ValueError(f"{name} must have values; got a tensor on the meta device")


def in_float32(tensor: Tensor) -> Tensor:
    """Return the tensor itself if it is float32: to ask takes a tenth of the time of a cast."""
    return tensor if tensor.dtype == torch.float32 else tensor.to(torch.float32)


def check_dtype(name: str, tensor: Tensor, accepted: Sequence[torch.dtype], hint: str = "") -> None:
    if tensor.dtype not in accepted:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name} must have dtype {names}; got {got}{hint}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinities, also those that a cast to the tensor's dtype has made."""
    if tensor.is_meta or tensor.numel() == 0 or not tensor.is_floating_point():
        return
    extremes = torch.stack(torch.aminmax(tensor.detach()))
    if not torch.isfinite(extremes).all():
        dtype = str(tensor.dtype).removeprefix("torch.")
        hint = "; float32 and bfloat16 hold more" if tensor.dtype == torch.float16 else ""
        raise ValueError(
            f"{name} must be finite in {dtype}, which ends at {torch.finfo(tensor.dtype).max:g}"
            f"{hint}; got a range of {extremes[0]:g} to {extremes[1]:g}"
        )


def check_device(name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{name} must be on the device of {like_name} ({like.device}); got {tensor.device}"
        )


def check_no_tangent(**tensors: Tensor | None) -> None:
    """Refuse dual tensors: no kernel has a forward-mode derivative; a tangent must not vanish."""
    if forward_ad._current_level < 0:
        return
    for name, tensor in tensors.items():
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a tangent: there is no forward-mode derivative (torch.func.jvp); "
                "use backward, or realspike_ops.reference"
            )


def check_not_differentiated_by_functorch(function: str) -> None:
    _check_transforms(
        function,
        (TransformType.Grad, TransformType.Jvp),
        "torch.func.grad, vjp and jvp are not supported (vmap is, in inference)",
    )


def check_not_transformed_by_functorch(function: str) -> None:
    _check_transforms(
        function,
        (TransformType.Grad, TransformType.Jvp, TransformType.Vmap),
        "torch.func.grad, vjp, jvp and vmap are not supported",
    )


def _check_transforms(function: str, kinds: Sequence[TransformType], refusal: str) -> None:
    if torch.compiler.is_compiling():
        return
    if any(level.key() in kinds for level in get_interpreter_stack() or ()):
        raise NotImplementedError(
            f"{function}: {refusal}; use torch.autograd, or realspike_ops.reference.{function}"
        )


def check_supported_device(name: str, tensor: Tensor) -> None:
    kind = tensor.device.type
    if kind not in ("cpu", "cuda", "meta"):
        raise ValueError(
            f"{name} is on {tensor.device}; realspike_ops has kernels for cpu and cuda: "
            "move it with .cpu() or .cuda(), or use realspike_ops.reference, which runs anywhere"
        )
    if kind == "cuda" and torch.version.hip is not None:
        raise ValueError(
            f"{name} is on {tensor.device}, an AMD GPU: realspike_ops has kernels for CPUs and "
            "NVIDIA GPUs; move it with .cpu(), or use realspike_ops.reference, which runs anywhere"
        )


def same_sizes(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two shapes are equal; size by size, as the symbols of traced ones can be compared."""
    if type(a) is type(b) and not torch.compiler.is_compiling():
        return a == b  # the same, in less time
    return len(a) == len(b) and all(x == y for x, y in zip(a, b, strict=True))


def check_shape(name: str, tensor: Tensor, accepted: Sequence[int], meaning: str) -> None:
    if not same_sizes(tensor.shape, accepted):
        raise ValueError(
            f"{name} must have shape {shape_text(accepted)} ({meaning}); got {shape_text(tensor)}"
        )


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    # Comparisons alone, which torch.compile traces; a NaN fails them.
    if not (low <= value <= high and -math.inf < value < math.inf):
        accepted = "finite" if low == -math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {accepted}; got {value}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float; got {value}") from None


def check_potential(name: str, value: object) -> float:
    """Check a number in units of the potential, whose state is float32."""
    number = check_number(name, value)
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(f"{name} must be finite in float32; got {value}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Refuse what is no truth value: ``"False"`` is as true as any other text."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {type(value).__name__}")
    return value


def check_positive_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    if value >= 2**62:
        raise ValueError(f"{name} must be below 2^62; got {value}")
    return value


def pair(name: str, value: object, low: int) -> tuple[int, int]:
    """Return `value` as (height, width): an int stands for both."""
    values = (value, value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise TypeError(f"{name} must be an int or a pair of ints; got {value!r}")
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(f"{name} must be an int or a pair of ints; got {value!r}")
        if item < low:
            raise ValueError(f"{name} must be at least {low}; got {value!r}")
        if item >= 2**62:
            raise ValueError(f"{name} must be below 2^62; got {value!r}")
    height, width = values
    return height, width


def check_parameter(name: str, parameter: Tensor, neuron_shape: Sequence[int]) -> None:
    """Accept what broadcasts against `neuron_shape` without enlarging it."""
    shape = tuple(parameter.shape)
    fits = len(shape) <= len(neuron_shape) and all(
        size == 1 or size == full  # `in` is not for the symbols of a traced size
        for size, full in zip(reversed(shape), reversed(neuron_shape), strict=False)
    )
    # [1] is one value for the layer whatever the rank, also for x of shape [T, B].
    if fits or shape == (1,):
        return
    C, *rest = neuron_shape or (1,)
    channel = shape_text((C, *(1 for _ in rest)))
    raise ValueError(
        f"{name} must have shape [1] (layer), {channel} (channel) or {shape_text(neuron_shape)} "
        f"(element), to broadcast against x.shape[2:]; got {shape_text(shape)}"
    )


def check_choice(name: str, value: object, accepted: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")
    return value


def check_emission(emission: str, v_threshold: float | None) -> str:
    """Check the kind of spikes; `v_threshold` is None where it is a tensor."""
    check_choice("emission", emission, ("binary", "ternary"))
    if emission == "ternary" and v_threshold is not None and v_threshold <= 0:
        raise ValueError(f"v_threshold must be positive for ternary spikes; got {v_threshold:g}")
    return emission


def check_reset(v_reset: float | None, reset: str | None) -> tuple[float, str]:
    """Return the potential after a hard reset (0 where there is none) and the kind of reset."""
    if v_reset is not None:
        # Forms are kept by their value: -0.0 would be 0.0 where that had come first.
        v_reset = check_potential("v_reset", v_reset) or 0.0
    if reset is None:
        reset = "soft" if v_reset is None else "hard"
    check_choice("reset", reset, ("hard", "soft", "none", "soft_delayed"))
    if reset != "hard":
        return 0.0, reset
    if v_reset is None:
        raise ValueError("v_reset must be a number for reset='hard'; got None")
    return v_reset, reset
