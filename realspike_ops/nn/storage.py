"""How a layer's weights are stored: their type, their scale, and whether they fit in memory."""

from pathlib import Path

import torch
from torch import Tensor

from realspike_ops import _checks as checks
from realspike_ops.nn import fold
from realspike_ops.ops.huge_pages import empty_in_huge_pages
from realspike_ops.spike_functional import int8_scale, int8_steps, quantize_weight

DTYPES = (*checks.FLOATS, torch.int8)
STORAGES = ("materialized", "factored")


def check_storage(storage: str, dtype: torch.dtype) -> None:
    checks.check_choice("storage", storage, STORAGES)
    if dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise ValueError(f"dtype must be one of {names}; got {dtype}")
    if storage == "factored" and dtype == torch.int8:
        raise ValueError('storage="factored" needs a floating dtype; got int8')


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


def check_memory(shape, dtype: torch.dtype, device: torch.device, positions: int) -> None:
    """Raise ValueError, before anything is allocated, if unshared weights do not fit in memory."""
    needed = torch.Size(shape).numel() * dtype.itemsize
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
    stride,
    padding,
    dilation,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:  # [OH, OW, G, KH, KW, Cin/G, Cout/G], [Cout] for int8
    """Fold an amplitude into unshared weights of any dtype, and never hold them in a wider one."""
    check_memory((*output_size, *kernel.shape), dtype, kernel.device, output_size[0])
    geometry = (stride, padding, dilation)
    if dtype != torch.int8:
        return fold.unshare(kernel, amplitude, output_size, *geometry, dtype=dtype), None
    OH, OW = output_size
    (sh, _), (ph, pw) = stride, padding

    def row(oh: int) -> Tensor:  # [1, OW, G, KH, KW, Cin/G, Cout/G] float32
        return fold.unshare(kernel, amplitude, (1, OW), stride, (ph - oh * sh, pw), dilation)

    largest = torch.stack([row(oh).abs().amax((0, 1, 3, 4, 5)) for oh in range(OH)]).amax(0)
    scale = int8_scale(largest)  # [G, Cout/G]
    out = empty_in_huge_pages((OH, OW, *kernel.shape), torch.uint8, kernel.device)
    for oh in range(OH):
        out[oh] = int8_steps(row(oh)[0], scale)
    return out, scale.flatten()


def stored(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return a shared weight [1, 1, ...] in the dtype, and its scale for int8."""
    if dtype != torch.int8:
        return weight.to(dtype), None
    return quantize_weight(weight)
