"""realspike::unshared_matmul: the convolution of spikes on matrix units, and when it is taken.

An op of its own, so that whoever watches operators knows that this one multiplies.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import extension
from realspike_ops.ops.rounding_cuda import check_devices
from realspike_ops.ops.unshared_conv import (
    Arguments,
    forward_with,
    is_shared,
    launch_cpu,
    register,
)

ALGORITHMS = ("gather", "auto")
# The first generation whose matrix units take bfloat16.
OLDEST_CAPABILITY = (8, 0)
# Below these sizes the gather is taken (docs/unshared_conv.md has the arithmetic). Few samples
# leave many rows of weights untouched, and products read them all.
FEWEST_SAMPLES = 32
FEWEST_SAMPLES_FLOAT32 = 64
FEWEST_ROWS = 4096  # samples x positions of a kernel that all positions share
# Narrower groups leave most of a tile empty.
FEWEST_CHANNELS_IN = 32
FEWEST_CHANNELS_OUT = 64
LARGEST = 2**31 - 1
# A card has this many multiprocessors or more; fewer programs leave some idle.
FEW_PROGRAMS = 128


class Sizes(NamedTuple):
    """What the choice depends on."""

    dtype: torch.dtype  # of the weight
    shared: bool  # whether all positions share a kernel
    samples: int
    positions: int
    groups: int
    taps: int
    Cin_g: int
    Cout_g: int

    @property
    def rows(self) -> int:
        """Rows that read the same weights."""
        return self.samples * self.positions if self.shared else self.samples


class Tile(NamedTuple):
    """How the products are split among programs, and the options of a program."""

    rows: int
    columns: int
    warps: int
    stages: int  # steps whose loads are in flight


def programs(sizes: Sizes, rows: int, columns: int) -> int:
    kernels = 1 if sizes.shared else sizes.positions
    return -(-sizes.rows // rows) * -(-sizes.Cout_g // columns) * sizes.groups * kernels


def _power_of_two(size: int, low: int, high: int) -> int:
    """Return the smallest power of two that holds `size`, within `low` and `high`."""
    return min(high, max(low, 1 << (size - 1).bit_length()))


@functools.lru_cache(maxsize=1024)
def tile_of(sizes: Sizes) -> Tile:
    """Return the tile of a launch: 64 rows by 128 channels, less where programs would be few."""
    columns = _power_of_two(sizes.Cout_g, 16, 128)
    rows = _power_of_two(sizes.rows, 16, 64)
    while rows > 16 and programs(sizes, rows, columns) < FEW_PROGRAMS:
        rows //= 2
    # A stage of float32 weights is as large as two of bfloat16, and its terms take room too.
    return Tile(rows, columns, 4, 4 if sizes.dtype == torch.float32 else 6)


def fits(capability: tuple[int, int], sizes: Sizes) -> bool:
    """Whether the kernel computes such a convolution."""
    largest_sum = 128 * sizes.taps * sizes.Cin_g
    return (
        capability >= OLDEST_CAPABILITY
        and (sizes.dtype != torch.uint8 or largest_sum <= LARGEST)
        and 33 * sizes.Cout_g <= LARGEST  # offsets within the rows of a spike word
        and programs(sizes, 16, 16) <= LARGEST
    )


def is_ahead(sizes: Sizes) -> bool:
    """Whether products should be faster than additions, whatever the firing rate."""
    if sizes.Cin_g < FEWEST_CHANNELS_IN or sizes.Cout_g < FEWEST_CHANNELS_OUT:
        return False
    if sizes.shared:
        return sizes.rows >= FEWEST_ROWS
    float32 = sizes.dtype == torch.float32
    return sizes.samples >= (FEWEST_SAMPLES_FLOAT32 if float32 else FEWEST_SAMPLES)


def sizes_of_call(samples: int, weight: Tensor, output_size: tuple[int, int]) -> Sizes:
    _, _, G, KH, KW, Cin_g, Cout_g = weight.shape
    OH, OW = output_size
    return Sizes(weight.dtype, is_shared(weight), samples, OH * OW, G, KH * KW, Cin_g, Cout_g)


def capability_of(device: torch.device) -> tuple[int, int]:
    """Return the compute capability; (0, 0): no matrix units that the kernel knows."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return (0, 0)
    return torch.cuda.get_device_capability(device)


def is_card(device: torch.device) -> bool:
    """Whether it has matrix units that the kernel in Triton uses."""
    return capability_of(device) >= OLDEST_CAPABILITY


def multiplies_on_cpu(spikes: Tensor, weight: Tensor) -> bool:
    """Whether a call runs on the matrix unit of a CPU."""
    if weight.dtype != torch.uint8:
        return False
    # A graph is for any batch and any CPU: it may multiply, and the kernel decides.
    compiling = torch.compiler.is_compiling()
    return compiling or extension().multiplies_cpu(spikes.shape[0], *weight.shape[3:])


def multiplies(
    algorithm: str,
    spikes: Tensor,
    weight: Tensor,
    amplitude: Tensor | None,
    output_size: tuple[int, int],
) -> bool:
    """Whether a call runs on matrix units; else its rows are gathered."""
    if algorithm == "gather" or amplitude is not None:
        return False
    if not is_card(spikes.device):
        return spikes.device.type == "cpu" and multiplies_on_cpu(spikes, weight)
    sizes = sizes_of_call(spikes.shape[0], weight, output_size)
    return fits(capability_of(spikes.device), sizes) and is_ahead(sizes)


def sizes_of(arguments: Arguments) -> Sizes:
    size = arguments.sizes
    return Sizes(
        arguments.weight_dtype, size["weight_stride_p"] == 0, size["N"], size["OH"] * size["OW"],
        size["G"], size["KH"] * size["KW"], size["Cin_g"], size["Cout_g"],
    )  # fmt: skip


def constants_of(arguments: Arguments, tile: Tile) -> dict[str, Any]:
    """Return the constants and options of a launch."""
    bias = arguments.tensors["bias"]
    return {
        "SHARED": arguments.sizes["weight_stride_p"] == 0,
        "BIAS": "" if bias is None else "channel" if bias.dim() == 1 else "element",
        "HAS_SCALE": arguments.tensors["scale"] is not None,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        "enable_fp_fusion": False,
    }


def launch(arguments: Arguments, tile: Tile | None = None) -> None:
    # Triton is imported when the first call arrives, not with the package.
    from realspike_ops.kernels.unshared_matmul import unshared_matmul_kernel

    spikes, weight, bias, _, scale, out = arguments.tensors.values()
    if scale is not None:
        check_devices()
    sizes = sizes_of(arguments)
    tile = tile or tile_of(sizes)
    numbers: list[Any] = [
        size for name, size in arguments.sizes.items() if not name.startswith("bias")
    ]
    with torch.cuda.device_of(out):
        unshared_matmul_kernel[(programs(sizes, tile.rows, tile.columns),)](
            spikes, weight, bias, scale, out, *numbers, **constants_of(arguments, tile)
        )


def _launch_cpu(arguments: Arguments) -> None:
    launch_cpu(arguments, products=True)


unshared_matmul = register(
    "unshared_matmul", {"cpu": forward_with(_launch_cpu), "cuda": forward_with(launch)}
)
