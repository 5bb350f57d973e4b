"""realspike::pack_spikes and realspike::unpack_spikes: one bit per channel, 32 to a word."""

import torch
from torch import Tensor

from realspike_ops._native import cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import empty_maps

LIBRARY.define("pack_spikes(Tensor spikes, bool check_binary) -> Tensor")
LIBRARY.define("unpack_spikes(Tensor packed, int channels, bool channels_last) -> Tensor")

# Bit patterns of 1 and of the sign.
_PATTERNS = {
    torch.float64: (0x3FF0_0000_0000_0000, 0x8000_0000_0000_0000),
    torch.float32: (0x3F80_0000, 0x8000_0000),
    torch.float16: (0x3C00, 0x8000),
    torch.bfloat16: (0x3F80, 0x8000),
    torch.bool: (1, 0),
    torch.uint8: (1, 0),
    torch.int8: (1, 0),
}
DTYPES = tuple(_PATTERNS)


def words_of(channels: int) -> int:
    return -(-channels // 32)


def _as_n_c_p(spikes: Tensor) -> Tensor:  # [N, C, ...] -> [N, C, P]
    """View (or else copy) the pixels as one dimension with one stride."""
    if spikes.dim() == 2:
        return spikes.unsqueeze(-1)
    try:
        return spikes.view(*spikes.shape[:2], -1) if spikes.numel() else spikes.flatten(2)
    except RuntimeError:
        return spikes.flatten(2)


def _has_spare_bits(packed: Tensor, channels: int) -> bool:  # [..., words]
    """Whether a bit beyond the last channel is set."""
    spare = -channels % 32
    if spare == 0:
        return False
    if packed.device.type == "cpu" and packed.is_contiguous():
        pixels = packed.numel() // packed.shape[-1]
        return extension().has_spare_bits_cpu(pointer(packed), pixels, channels)
    # A shift to the right of a negative int32 drags ones along.
    return bool(((packed[..., -1] >> (32 - spare)) & ((1 << spare) - 1)).any())


def check_spare_bits(packed: Tensor, channels: int) -> None:
    """Refuse bits beyond the last channel: they come from another number of channels."""
    if _has_spare_bits(packed, channels):
        raise ValueError(
            f"spikes must have no bits beyond {channels} channels; a last word has some"
        )


def packed_words(spikes: Tensor, channels: int, check_binary: bool) -> Tensor:
    """Return the words of spikes that are dense [N, C, ...], or words already."""
    if spikes.dtype != torch.int32:
        return pack_spikes(spikes, check_binary)
    if check_binary:
        check_spare_bits(spikes, channels)
    return spikes.contiguous()


def allocate_packed(spikes: Tensor) -> Tensor:
    N, C, *pixels = spikes.shape
    return spikes.new_empty((N, *pixels, words_of(C)), dtype=torch.int32)


def _allocate_spikes(packed: Tensor, channels: int, channels_last: bool) -> Tensor:
    N, *pixels, _ = packed.shape
    return empty_maps((N, channels, *pixels), channels_last, packed.device)


def _pack_params(spikes: Tensor, packed: Tensor, not_binary: Tensor | None):
    N, C, P = spikes.shape
    one, sign = _PATTERNS[spikes.dtype]
    return extension().PackSpikesParams(
        pointer(spikes), pointer(packed), N, C, P, *spikes.stride(), spikes.element_size(),
        one, sign, pointer(not_binary),
    )  # fmt: skip


def _raise_unless_binary(not_binary: Tensor) -> None:
    if not_binary.item():
        raise ValueError(
            "spikes must be 0 or 1; got other values. Real-valued spikes a * o are read as o, with "
            "the amplitude a folded into the weights (UnsharedSpikeConv.from_conv2d(conv, a, ...))"
        )


def _pack(spikes: Tensor, check_binary: bool, launch) -> Tensor:
    packed = allocate_packed(spikes)
    if packed.numel() == 0:
        return packed
    not_binary = torch.zeros(1, dtype=torch.int32, device=spikes.device) if check_binary else None
    spikes = _as_n_c_p(spikes)
    launch(_pack_params(spikes, packed, not_binary))
    if not_binary is not None:
        _raise_unless_binary(not_binary)
    return packed


def _unpack(packed: Tensor, channels: int, channels_last: bool, launch) -> Tensor:
    packed = packed.contiguous()
    spikes = _allocate_spikes(packed, channels, channels_last)
    if spikes.numel() > 0:
        N, C, P = (view := _as_n_c_p(spikes)).shape
        launch(
            extension().UnpackSpikesParams(pointer(packed), pointer(view), N, C, P, *view.stride())
        )
    return spikes


def _pack_cpu(spikes, check_binary):
    def launch(params):
        extension().pack_spikes_cpu(params, torch.get_num_threads())

    return _pack(spikes, check_binary, launch)


def _unpack_cpu(packed, channels, channels_last):
    def launch(params):
        extension().unpack_spikes_cpu(params, torch.get_num_threads())

    return _unpack(packed, channels, channels_last, launch)


def _pack_cuda(spikes, check_binary):
    with torch.cuda.device_of(spikes):
        stream = torch.cuda.current_stream().cuda_stream
        return _pack(spikes, check_binary, lambda p: cuda_extension().pack_spikes_cuda(p, stream))


def _unpack_cuda(packed, channels, channels_last):
    with torch.cuda.device_of(packed):
        stream = torch.cuda.current_stream().cuda_stream

        def launch(params):
            cuda_extension().unpack_spikes_cuda(params, stream)

        return _unpack(packed, channels, channels_last, launch)


def pack_spikes(spikes: Tensor, check_binary: bool) -> Tensor:
    """Call realspike::pack_spikes, past the dispatcher where nothing could intercept the call."""
    if spikes.device.type not in _PACK or not is_plain_eager(spikes):
        return torch.ops.realspike.pack_spikes(spikes, check_binary)
    return _PACK[spikes.device.type](spikes, check_binary)


_PACK = {"cpu": _pack_cpu, "cuda": _pack_cuda}
for device, pack in _PACK.items():
    LIBRARY.impl("pack_spikes", pack, device.upper())
LIBRARY.impl("unpack_spikes", _unpack_cpu, "CPU")
LIBRARY.impl("unpack_spikes", _unpack_cuda, "CUDA")
torch.library.register_fake(
    "realspike::pack_spikes", lambda spikes, check_binary: allocate_packed(spikes), lib=LIBRARY
)
torch.library.register_fake("realspike::unpack_spikes", _allocate_spikes, lib=LIBRARY)
