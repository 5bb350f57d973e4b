"""realspike::unshared_conv_lif: the currents of a convolution go straight into LIF neurons.

For inference; all sizes are checked by the functional layer.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY, lif_cpu
from realspike_ops.ops.eager import is_plain_eager, is_transformed
from realspike_ops.ops.layout import empty_maps
from realspike_ops.ops.lif_contract import NEURON_SCHEMA, Neuron, neurons_in_memory_order, or_empty
from realspike_ops.ops.pack_spikes import packed_words, words_of
from realspike_ops.ops.unshared_conv import kernel_params

# Spikes, weight, bias, amplitude and scale as in unshared_conv, with a batch of maps * signs *
# timesteps * B (csrc/core/unshared_conv.h); the neurons as in lif_packed. added_values broadcast
# against [timesteps * B, Cout, OH, OW]; added_spikes are words [timesteps * B, OH, OW, words], of
# ternary spikes [2, ...]; an empty tensor is none, since torch.jit.trace takes no optional ones in
# a list. packed is [timesteps * B, OH, OW, words], of ternary neurons [2, ...]. With products a CPU
# may multiply int8 weights by spikes.
LIBRARY.define(
    "unshared_conv_lif(Tensor spikes, Tensor weight, Tensor? bias, Tensor? amplitude,"
    " Tensor? scale, Tensor? decay, Tensor? v_threshold, Tensor? v_init,"
    " Tensor[] added_values, Tensor[] added_spikes, int maps, int signs, int timesteps,"
    " int[2] output_size,"
    " int[2] stride, int[2] padding, int[2] dilation, bool check_binary,"
    f" {NEURON_SCHEMA}, bool keep_state, *, bool products=False) -> (Tensor packed, Tensor v_last)"
)
MOST_ADDED = 4  # csrc/core/unshared_conv.h


class Joined(NamedTuple):
    """What joins the current of a convolution before its neurons get it."""

    values: Sequence[Tensor] = ()
    spikes: Sequence[Tensor | None] = ()
    maps: int = 1
    signs: int = 1


def is_fused(
    spikes: Tensor, weight: Tensor, amplitude: Tensor | None, timesteps: int, joined: Joined
) -> bool:
    """Whether one op runs such a convolution and the neurons behind it."""
    if len(joined.values) > MOST_ADDED or is_transformed():
        return False
    if spikes.device.type == "cpu":
        return fits(weight, timesteps * joined.maps * joined.signs)
    return spikes.device.type == "cuda" and amplitude is None


def fits(weight: Tensor, timesteps: int) -> bool:
    """Whether the fused kernel of the CPU takes these weights and this number of timesteps."""
    groups, KH, KW, Cin_g, Cout_g = weight.shape[2:]
    depthwise = Cin_g == Cout_g == 1 and KH * KW <= 256
    return (groups == 1 or depthwise or Cout_g % 32 == 0) and timesteps <= 256


def _allocate(spikes, weight, samples, timesteps, output_size, ternary, keep_state):
    channels = weight.shape[2] * weight.shape[6]
    planes = (2,) if ternary else ()
    shape = (*planes, samples, *output_size, words_of(channels))
    packed = spikes.new_empty(shape, dtype=torch.int32)
    step = (samples // timesteps, channels, *output_size)
    v_last = empty_maps(step, True, spikes.device) if keep_state else None
    return packed, v_last


def added_current(values: Tensor, words: Tensor | None, shape: tuple[int, ...]):
    """Return one added current as the kernels take it, and the tensors that it points into.

    `shape` is [timesteps * B, Cout, OH, OW].
    """
    each = values.dim() == 4  # of the samples has its own
    values = values.expand(shape if each else shape[1:])
    stride_c, stride_h, stride_w = values.stride()[-3:]
    OH, OW = shape[2:]
    if OH > 1 and OW > 1 and stride_h != OW * stride_w:  # positions need one stride
        values = values.contiguous(
            memory_format=torch.channels_last if each else torch.contiguous_format
        )
        stride_c, stride_h, stride_w = values.stride()[-3:]
    negative = 0
    if words is not None:
        words = words.contiguous()
        negative = words[1].data_ptr() if words.dim() == 5 else 0
    added = extension().AddedCurrent(
        values.data_ptr(), values.stride(0) if each else 0, stride_c,
        stride_w if OW > 1 else stride_h, pointer(words), negative,
    )  # fmt: skip
    return added, (values, words)


def _run(
    spikes, weight, bias, amplitude, scale, decay, v_threshold, v_init, joined, timesteps,
    output_size, stride, padding, dilation, check_binary, neuron, keep_state, products,
):  # fmt: skip
    samples = spikes.shape[0] // (joined.maps * joined.signs)
    packed, v_last = _allocate(
        spikes, weight, samples, timesteps, output_size, neuron.ternary, keep_state
    )
    if packed.numel() == 0:
        return packed, v_last
    words = packed_words(spikes, weight.shape[2] * weight.shape[5], check_binary)
    params, tensors = kernel_params(
        words, weight, bias, amplitude, scale, None, output_size, (stride, padding, dilation)
    )
    shape = (weight.shape[2] * weight.shape[6], *output_size)
    neurons = neurons_in_memory_order(None, decay, v_threshold, v_init, neuron, shape, True)
    lif = lif_cpu.params_after_conv(neurons, timesteps, samples // timesteps * math.prod(shape))
    pairs = zip(joined.values, joined.spikes, strict=True)
    added = [added_current(value, words, (samples, *shape)) for value, words in pairs]
    drive = (params, lif, joined.maps, joined.signs, [current for current, _ in added])
    if spikes.device.type == "cuda":
        _launch_cuda(drive, packed, v_last)
    else:
        lif_cpu.launch_after_conv(drive, packed, v_last, products)
    del tensors
    return packed, v_last


def _launch_cuda(drive, packed, v_last):
    native = cuda_extension()
    with torch.cuda.device(packed.device):
        size = native.unshared_conv_lif_workspace_cuda(drive[0])
        workspace = torch.empty(size, dtype=torch.uint8, device=packed.device)
        stream = torch.cuda.current_stream().cuda_stream
        native.unshared_conv_lif_cuda(
            *drive, pointer(packed), pointer(v_last), pointer(workspace), stream
        )


def _registered(*arguments, products=False):
    *fixed, keep_state = arguments
    # AOTInductor gives None for a list without tensors.
    words = [words if words.dim() > 1 else None for words in fixed[9] or ()]
    own: Any = (
        *fixed[:8],
        Joined(fixed[8] or (), words, *fixed[10:12]),
        *fixed[12:18],
        Neuron(*fixed[18:]),
        keep_state,
        products,
    )
    packed, v_last = _run(*own)
    return packed, *or_empty(packed, v_last)


def _fake(spikes, weight, *rest, products=False):
    maps, signs, timesteps, output_size = rest[8:12]
    *_, ternary, _, _, keep_state = rest
    samples = spikes.shape[0] // (maps * signs)
    packed, v_last = _allocate(spikes, weight, samples, timesteps, output_size, ternary, keep_state)
    return packed, *or_empty(packed, v_last)


for device in ("CPU", "CUDA"):
    LIBRARY.impl("unshared_conv_lif", _registered, device)
torch.library.register_fake("realspike::unshared_conv_lif", _fake, lib=LIBRARY)


def unshared_conv_lif(*arguments: Any) -> Any:
    """Return the words, with `keep_state` (words, v_last); the arguments are those of `_run`."""
    *fixed, neuron, keep_state, products = arguments
    tensors, joined, settings = fixed[:8], fixed[8], fixed[9:]
    if is_plain_eager(*tensors, *joined.values, *joined.spikes):
        packed, v_last = _run(*arguments)
    else:
        none = fixed[0].new_empty((0,), dtype=torch.int32) if None in joined.spikes else None
        words = [none if words is None else words for words in joined.spikes]
        flat = (*tensors, list(joined.values), words, *joined[2:], *settings, *neuron)
        packed, v_last = torch.ops.realspike.unshared_conv_lif(*flat, keep_state, products=products)
    return (packed, v_last) if keep_state else packed
