"""The documented functions that pack spikes, one bit per channel, and unpack them."""

import torch
from torch import Tensor

import realspike_ops.ops.pack_spikes
from realspike_ops import _checks as checks


def pack_spikes(spikes: Tensor, *, check_binary: bool | None = None) -> Tensor:
    """Pack binary spikes into one bit per channel.

    Channel c of a pixel becomes bit ``c % 32`` (least significant first) of word ``c // 32``;
    the bits beyond the last channel are 0. Equal to ``realspike_ops.reference.pack_spikes``.

    Args:
        spikes: [N, C, ...], 0 or 1, of a floating dtype, bool, uint8 or int8; any strides
            (contiguous and channels_last are read without a copy).
        check_binary: Raise if an element is neither 0 nor 1. Default: on the CPU, where it costs
            nothing; on a GPU it makes the host wait for the result, so there it is on request.

    Returns:
        int32 words, [N, ..., ceil(C / 32)].

    Raises:
        TypeError: if the dtype is not accepted.
        ValueError: if there are fewer than 2 dimensions, or an element is not 0 or 1.
    """
    checks.check_tensor("spikes", spikes)
    checks.check_supported_device("spikes", spikes)
    checks.check_dtype("spikes", spikes, realspike_ops.ops.pack_spikes.DTYPES)
    if spikes.dim() < 2:
        raise ValueError(
            f"spikes must have at least 2 dimensions [N, C, ...]; got {checks.shape_text(spikes)}"
        )
    if check_binary is None:
        check_binary = spikes.device.type == "cpu"
    checks.check_flag("check_binary", check_binary)
    return realspike_ops.ops.pack_spikes.pack_spikes(spikes.detach(), check_binary)


def unpack_spikes(packed: Tensor, channels: int) -> Tensor:
    """Undo `pack_spikes`: [N, ..., words] int32 to [N, channels, ...] float32 of 0 and 1.

    Equal to ``realspike_ops.reference.unpack_spikes``.

    Args:
        packed: int32 words, [N, ..., ceil(channels / 32)].
        channels: Number of channels, at least 1.

    Raises:
        TypeError: if ``packed`` is not int32 or ``channels`` is not an int.
        ValueError: if the number of words does not fit the number of channels.
    """
    checks.check_tensor("packed", packed)
    checks.check_supported_device("packed", packed)
    checks.check_dtype("packed", packed, (torch.int32,))
    checks.check_positive_int("channels", channels)
    check_words("packed", packed, channels, low=2)
    return torch.ops.realspike.unpack_spikes(packed, channels, False)


def check_words(name: str, packed: Tensor, channels: int, low: int) -> None:
    words = realspike_ops.ops.pack_spikes.words_of(channels)
    if packed.dim() < low or packed.shape[-1] != words:
        raise ValueError(
            f"{name} must be packed words [N, ..., {words}] for {channels} channels; "
            f"got shape {checks.shape_text(packed)}"
        )
