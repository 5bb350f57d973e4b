"""realspike::unshared_conv_lif: the currents of a convolution go straight into LIF neurons.

For inference; all sizes are checked by the functional layer.
"""

import math
from typing import Any

import torch
from torch import Tensor

from realspike_ops._native import cuda_extension, pointer
from realspike_ops.ops import LIBRARY, lif_cpu
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import empty_maps
from realspike_ops.ops.lif_contract import NEURON_SCHEMA, Neuron, neurons_in_memory_order, or_empty
from realspike_ops.ops.pack_spikes import packed_words, words_of
from realspike_ops.ops.unshared_conv import kernel_params

# Spikes, weight, bias, amplitude and scale as in unshared_conv, with a batch of timesteps * B; the
# neurons as in lif_packed. packed is [timesteps * B, OH, OW, words], of ternary neurons [2, ...].
LIBRARY.define(
    "unshared_conv_lif(Tensor spikes, Tensor weight, Tensor? bias, Tensor? amplitude,"
    " Tensor? scale, Tensor? decay, Tensor? v_threshold, Tensor? v_init, int timesteps,"
    " int[2] output_size,"
    " int[2] stride, int[2] padding, int[2] dilation, bool check_binary,"
    f" {NEURON_SCHEMA}, bool keep_state) -> (Tensor packed, Tensor v_last)"
)


def is_fused(spikes: Tensor, weight: Tensor, amplitude: Tensor | None, timesteps: int) -> bool:
    """Whether one op runs such a convolution and the neurons behind it."""
    if spikes.device.type == "cpu":
        return fits(weight, timesteps)
    return spikes.device.type == "cuda" and amplitude is None


def fits(weight: Tensor, timesteps: int) -> bool:
    """Whether the fused kernel of the CPU takes these weights and this number of timesteps."""
    groups, channels_per_group = weight.shape[2], weight.shape[6]
    return (groups == 1 or channels_per_group % 32 == 0) and timesteps <= 256


def _allocate(spikes, weight, timesteps, output_size, ternary, keep_state):
    N, channels = spikes.shape[0], weight.shape[2] * weight.shape[6]
    planes = (2,) if ternary else ()
    shape = (*planes, N, *output_size, words_of(channels))
    packed = spikes.new_empty(shape, dtype=torch.int32)
    step = (N // timesteps, channels, *output_size)
    v_last = empty_maps(step, True, spikes.device) if keep_state else None
    return packed, v_last


def _run(
    spikes, weight, bias, amplitude, scale, decay, v_threshold, v_init, timesteps, output_size,
    stride, padding, dilation, check_binary, neuron, keep_state,
):  # fmt: skip
    packed, v_last = _allocate(spikes, weight, timesteps, output_size, neuron.ternary, keep_state)
    if packed.numel() == 0:
        return packed, v_last
    words = packed_words(spikes, weight.shape[2] * weight.shape[5], check_binary)
    params, tensors = kernel_params(
        words, weight, bias, amplitude, scale, None, output_size, (stride, padding, dilation)
    )
    shape = (weight.shape[2] * weight.shape[6], *output_size)
    neurons = neurons_in_memory_order(None, decay, v_threshold, v_init, neuron, shape, True)
    N = spikes.shape[0] // timesteps * math.prod(shape)
    lif = lif_cpu.params_after_conv(neurons, timesteps, N)
    launch = _launch_cuda if spikes.device.type == "cuda" else lif_cpu.launch_after_conv
    launch(params, lif, packed, v_last)
    del tensors
    return packed, v_last


def _launch_cuda(params, lif, packed, v_last):
    native = cuda_extension()
    with torch.cuda.device(packed.device):
        size = native.unshared_conv_lif_workspace_cuda(params)
        workspace = torch.empty(size, dtype=torch.uint8, device=packed.device)
        stream = torch.cuda.current_stream().cuda_stream
        native.unshared_conv_lif_cuda(
            params, lif, pointer(packed), pointer(v_last), pointer(workspace), stream
        )


def _registered(*arguments):
    *fixed, keep_state = arguments
    own: Any = (*fixed[:14], Neuron(*fixed[14:]), keep_state)
    packed, v_last = _run(*own)
    return packed, *or_empty(packed, v_last)


def _fake(spikes, weight, *rest):
    timesteps, output_size = rest[6:8]
    *_, ternary, _, _, keep_state = rest
    packed, v_last = _allocate(spikes, weight, timesteps, output_size, ternary, keep_state)
    return packed, *or_empty(packed, v_last)


for device in ("CPU", "CUDA"):
    LIBRARY.impl("unshared_conv_lif", _registered, device)
torch.library.register_fake("realspike::unshared_conv_lif", _fake, lib=LIBRARY)


def unshared_conv_lif(*arguments: Any) -> Any:
    """Return the words, with `keep_state` (words, v_last); the arguments are those of `_run`."""
    *fixed, neuron, keep_state = arguments
    if is_plain_eager(*fixed[:8]):
        packed, v_last = _run(*arguments)
    else:
        packed, v_last = torch.ops.realspike.unshared_conv_lif(*fixed, *neuron, keep_state)
    return (packed, v_last) if keep_state else packed
