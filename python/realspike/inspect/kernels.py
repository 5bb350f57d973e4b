"""Which convolution reads which spikes, and the kernels that its amplitudes make of it (Fig. 3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from realspike_ops import RealSpikeLIF


@dataclass(frozen=True)
class Reading:
    """A convolution that reads the spikes of one LIF layer, and nothing else."""

    conv_name: str
    conv: nn.Conv2d
    lif_name: str
    lif: RealSpikeLIF
    input_size: tuple[int, int]


@torch.no_grad()
def find_readings(network: nn.Module, example_input: Tensor) -> list[Reading]:
    """Return every 3 x 3 or larger convolution whose input is the output of a LIF layer."""
    emitted: list[tuple[Tensor, str, RealSpikeLIF]] = []
    found: list[Reading] = []

    def emit(name):
        return lambda module, _, output: emitted.append((output, name, module))

    def read(name):
        def hook(module, args):
            for output, lif_name, lif in emitted:
                if args[0] is output:
                    found.append(
                        Reading(name, module, lif_name, lif, (output.shape[2], output.shape[3]))
                    )

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, RealSpikeLIF):
            handles.append(module.register_forward_hook(emit(name)))
        elif isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and module.groups == 1:
            handles.append(module.register_forward_pre_hook(read(name)))
    try:
        network(example_input)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def unshared_kernels(
    reading: Reading, out_channel: int, in_channel: int
) -> tuple[Tensor, Tensor, Tensor]:  # [KH, KW], [H, W], [OH, OW, KH, KW]
    """Return the shared kernel, the amplitudes and the kernel of every output position (Eq. 11).

    Taps outside the map are 0.
    """
    kernel, amplitude, windows = _windows(reading, out_channel, in_channel)
    return kernel, amplitude, windows.nan_to_num(0.0) * kernel


@torch.no_grad()
def kernel_differences(
    reading: Reading, out_channel: int, in_channel: int
) -> tuple[Tensor, Tensor, Tensor]:  # [KH, KW], [H, W], [OH, OW, KH, KW]
    """Return the shared kernel, the amplitudes and by how much the kernel of every output position
    differs from the shared one.

    Taps outside the map are NaN: they read nothing.
    """
    kernel, amplitude, windows = _windows(reading, out_channel, in_channel)
    return kernel, amplitude, (windows - 1) * kernel


def _windows(reading: Reading, out_channel: int, in_channel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the kernel, the amplitudes, and those that each tap reads, NaN outside the map."""
    conv = reading.conv
    amplitude = torch.ones(conv.in_channels, *reading.input_size)
    if reading.lif.amplitude is not None:
        amplitude = amplitude * reading.lif.amplitude.float()
    amplitude = amplitude[in_channel]  # [H, W]
    # In numbers, also of padding="same".
    windows = F.pad(amplitude, conv._reversed_padding_repeated_twice, value=torch.nan)
    for dim in (0, 1):
        reach = (conv.kernel_size[dim] - 1) * conv.dilation[dim] + 1
        windows = windows.unfold(dim, reach, conv.stride[dim])
    windows = windows[..., :: conv.dilation[0], :: conv.dilation[1]]  # [OH, OW, KH, KW]
    return conv.weight[out_channel, in_channel], amplitude, windows
