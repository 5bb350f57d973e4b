"""realspike::unshared_matmul_lif: currents that matrix units add up go straight into LIF neurons.

For inference; all sizes are checked by the functional layer.
"""

from typing import Any

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import empty_maps
from realspike_ops.ops.lif_contract import (
    NEURON_SCHEMA,
    Neuron,
    Neurons,
    neurons_in_memory_order,
    or_empty,
)
from realspike_ops.ops.pack_spikes import packed_words, words_of
from realspike_ops.ops.rounding_cuda import check_devices
from realspike_ops.ops.unshared_conv import Arguments, kernel_arguments
from realspike_ops.ops.unshared_matmul import constants_of, programs, sizes_of, tile_of

# As unshared_conv_lif, without an amplitude.
LIBRARY.define(
    "unshared_matmul_lif(Tensor spikes, Tensor weight, Tensor? bias, Tensor? scale, Tensor? decay,"
    " Tensor? v_threshold, Tensor? v_init, int timesteps, int[2] output_size,"
    " int[2] stride, int[2] padding, int[2] dilation, bool check_binary,"
    f" {NEURON_SCHEMA}, bool keep_state) -> (Tensor packed, Tensor v_last)"
)
# A tile holds all timesteps of its neurons, in at least 16 rows.
MOST_TIMESTEPS = 16


def fits(weight: Tensor, timesteps: int) -> bool:
    """Whether the kernel runs the neurons: words of one group each, and few timesteps."""
    groups, channels_per_group = weight.shape[2], weight.shape[6]
    return (groups == 1 or channels_per_group % 32 == 0) and timesteps <= MOST_TIMESTEPS


def launch(
    arguments: Arguments, neurons: Neurons, timesteps: int, packed: Tensor, v_last: Tensor | None
) -> None:
    # Triton is imported when the first call arrives, not with the package.
    from realspike_ops.kernels.unshared_matmul import unshared_matmul_lif_kernel

    check_devices()
    spikes, weight, bias, _, scale, _ = arguments.tensors.values()
    steps = 1 << (timesteps - 1).bit_length()
    sizes = sizes_of(arguments)
    rows = sizes._replace(samples=sizes.samples // timesteps * steps)
    tile = tile_of(rows)
    tile = tile._replace(columns=max(32, tile.columns))  # a word
    _, decay, v_threshold = neurons.parameters
    form = neurons.form
    given: list[Any] = [
        *(spikes, weight, bias, scale, decay.values, v_threshold.values, neurons.v_init),
        *(packed, v_last),
        *(n for name, n in arguments.sizes.items() if not name.startswith(("bias", "out"))),
        *(decay.inner, decay.size, v_threshold.inner, v_threshold.size),
        *(form.decay, form.v_threshold, form.v_reset),
    ]
    constants: dict[str, Any] = {
        **constants_of(arguments, tile),
        "HAS_DECAY": decay.values is not None,
        "HAS_THRESHOLD": v_threshold.values is not None,
        "HAS_V_INIT": neurons.v_init is not None,
        "KEEP_STATE": v_last is not None,
        "RESET": form.reset,
        "TERNARY": form.ternary,
        "T": timesteps,
        "STEPS": steps,
    }
    with torch.cuda.device_of(packed):
        unshared_matmul_lif_kernel[(programs(rows, tile.rows, tile.columns),)](*given, **constants)


def _allocate(spikes, weight, timesteps, output_size, ternary, keep_state):
    N, channels = spikes.shape[0], weight.shape[2] * weight.shape[6]
    planes = (2,) if ternary else ()
    packed = spikes.new_empty((*planes, N, *output_size, words_of(channels)), dtype=torch.int32)
    step = (N // timesteps, channels, *output_size)
    return packed, empty_maps(step, True, spikes.device) if keep_state else None


def run(
    spikes, weight, bias, scale, decay, v_threshold, v_init, timesteps, output_size,
    stride, padding, dilation, check_binary, neuron, keep_state,
):  # fmt: skip
    packed, v_last = _allocate(spikes, weight, timesteps, output_size, neuron.ternary, keep_state)
    if packed.numel() == 0:
        return packed, v_last
    words = packed_words(spikes, weight.shape[2] * weight.shape[5], check_binary)
    tensors = (words, weight, bias, None, scale, None)
    arguments = kernel_arguments(*tensors, output_size, (stride, padding, dilation))
    shape = (weight.shape[2] * weight.shape[6], *output_size)
    neurons = neurons_in_memory_order(None, decay, v_threshold, v_init, neuron, shape, True)
    launch(arguments, neurons, timesteps, packed, v_last)
    return packed, v_last


def _registered(*arguments):
    *fixed, keep_state = arguments
    own: Any = (*fixed[:13], Neuron(*fixed[13:]), keep_state)
    packed, v_last = run(*own)
    return packed, *or_empty(packed, v_last)


def _fake(spikes, weight, *rest):
    timesteps, output_size = rest[5:7]
    *_, ternary, _, _, keep_state = rest
    packed, v_last = _allocate(spikes, weight, timesteps, output_size, ternary, keep_state)
    return packed, *or_empty(packed, v_last)


LIBRARY.impl("unshared_matmul_lif", _registered, "CUDA")
torch.library.register_fake("realspike::unshared_matmul_lif", _fake, lib=LIBRARY)


def unshared_matmul_lif(*arguments: Any) -> Any:
    """Return the words, with `keep_state` (words, v_last); the arguments are those of `run`."""
    *fixed, neuron, keep_state = arguments
    if fixed[0].device.type == "cuda" and is_plain_eager(*fixed[:7]):
        packed, v_last = run(*arguments)
    else:
        packed, v_last = torch.ops.realspike.unshared_matmul_lif(*fixed, *neuron, keep_state)
    return (packed, v_last) if keep_state else packed
