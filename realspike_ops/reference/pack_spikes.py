import torch
from torch import Tensor


def pack_spikes(spikes: Tensor) -> Tensor:  # [N, C, ...] -> [N, ..., ceil(C / 32)] int32
    """Store channel c of every pixel as bit c % 32 of word c // 32."""
    bits = spikes.movedim(1, -1).to(torch.int64)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    words = (bits << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_spikes(packed: Tensor, channels: int) -> Tensor:  # -> [N, C, ...] float32
    """Undo `pack_spikes`."""
    bits = packed.unsqueeze(-1) >> torch.arange(32, device=packed.device) & 1
    return bits.flatten(-2)[..., :channels].movedim(-1, 1).to(torch.float32)
