"""How a layer's weights are stored: their type, their scale, and whether they fit it and memory."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from realspike_ops import _checks as checks
from realspike_ops.functional.quantize_weight import int8_scale, int8_steps, quantize_weight
from realspike_ops.nn.synapses import fold_into_weight
from realspike_ops.ops.huge_pages import empty_in_huge_pages

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = (*checks.FLOATS, torch.int8)
STORAGES = ("materialized", "factored")


def check_storage(storage: str, dtype: torch.dtype) -> None:
    checks.check_choice("storage", storage, STORAGES)
    if dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"dtype must be one of {names}; got {dtype}")
    if storage == "factored" and dtype == torch.int8:
        raise ValueError('storage="factored" needs a floating dtype; got int8')


class Stored(nn.Module):
    """A module whose numbers stay finite: a cast or a state that they overflow is refused."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        # All parameters are checked before one is changed: a refused module stays as it is.
        for name, parameter in self.named_parameters(recurse=recurse):
            if is_lazy(parameter):
                continue
            dtype = fn(parameter.detach().new_empty(0)).dtype
            if dtype != parameter.dtype and dtype in checks.FLOATS and not parameter.is_meta:
                extremes = torch.stack(torch.aminmax(parameter.detach()))
                checks.check_finite(name, extremes.to(dtype))
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, own in self._tensors():
            given = state_dict.get(prefix + name, own)
            dtypes = (own.dtype, getattr(given, "dtype", own.dtype))
            if dtypes.count(torch.uint8) == 1:  # a cast would take steps of a scale for weights
                error_msgs.append(
                    f"{prefix}{name} must have dtype {dtypes[0]}, as this layer holds it; got "
                    f"{dtypes[1]}: int8 weights are in steps of a scale, others are not"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        try:
            self.check_finite(prefix)
        except ValueError as error:
            error_msgs.append(str(error))

    def _tensors(self) -> tuple[tuple[str, Tensor], ...]:
        return (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))

    def check_finite(self, prefix: str = "") -> None:
        """Raise ValueError if a parameter or buffer of this module itself is not finite."""
        for name, tensor in self._tensors():
            if not is_lazy(tensor):
                checks.check_finite(prefix + name, tensor)


def parameter(tensor: Tensor) -> nn.Parameter:
    """Make a parameter whose strides are those of a new tensor, also where a size is 1.

    Its gradient has them too, and DistributedDataParallel compares all strides.
    """
    return nn.Parameter(tensor.view(-1).view(tensor.shape) if tensor.is_contiguous() else tensor)


def initialise(weight: Tensor) -> float:  # [OH, OW, G, KH, KW, Cin/G, Cout/G]
    """Draw a weight as nn.Conv2d does, an int8 one from all of its steps; return the bound."""
    bound = 1 / math.sqrt(math.prod(weight.shape[3:6]))
    with torch.no_grad():
        if weight.is_floating_point():
            weight.uniform_(-bound, bound)
        else:
            weight.random_(1, 256)
    return bound


def bytes_available(device: torch.device) -> int | None:
    """Return how many bytes can still be allocated, or None where that is not known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(n.split()[1]) * 1024 for n in lines if n.startswith("MemAvailable:")), None)


def check_memory(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, positions: int
) -> None:
    """Raise ValueError, before anything is allocated, if unshared weights do not fit in memory."""
    needed = math.prod(shape) * dtype.itemsize
    available = bytes_available(device)
    if available is not None and needed > available:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"weight of shape {checks.shape_text(shape)} in {name} needs {needed} bytes; "
            f"{available} are available on {device}. A narrower dtype needs fewer, and "
            f'storage="factored" {needed // positions} and one amplitude per input'
        )


def unshared(
    kernel: Tensor,  # [G, KH, KW, Cin/G, Cout/G] float64
    amplitude: Tensor,  # [Cin, H, W] float64
    output_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:  # [OH, OW, G, KH, KW, Cin/G, Cout/G], [Cout] for int8
    """Fold an amplitude into unshared weights of any dtype, and never hold them in a wider one."""
    check_memory((*output_size, *kernel.shape), dtype, kernel.device, output_size[0])

    def rows() -> Iterator[Tensor]:  # [OW, G, KH, KW, Cin/G, Cout/G] float64 each
        indices = (0,) * output_size[0], (0,) * output_size[1]
        return fold_into_weight.unshared_rows(
            kernel[None, None], amplitude, output_size, stride, padding, dilation, *indices
        )

    scale = None
    if dtype == torch.int8:
        scale = int8_scale(torch.stack([row.abs().amax((0, 2, 3, 4)) for row in rows()]).amax(0))
    shape = (*output_size, *kernel.shape)
    out = empty_in_huge_pages(shape, dtype if scale is None else torch.uint8, kernel.device)
    for own, row in zip(out, rows(), strict=True):
        own.copy_(row if scale is None else int8_steps(row, scale))
    return out, None if scale is None else scale.flatten()


def stored(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return a shared weight [1, 1, ...] in the dtype, and its scale for int8."""
    if dtype != torch.int8:
        return weight.to(dtype), None
    return quantize_weight(weight)
