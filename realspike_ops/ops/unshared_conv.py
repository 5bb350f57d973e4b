"""realspike::unshared_conv: gather-accumulate over packed spikes.

All sizes are checked by the functional layer; a weight whose first two strides are 0 (an expanded
tensor) is one kernel shared by every position.
"""

import torch
from torch import Tensor

from realspike_ops._native import DTYPES, cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY

LIBRARY.define(
    "unshared_conv(Tensor packed, Tensor weight, Tensor? bias, int[2] stride, int[2] padding,"
    " int[2] dilation, bool channels_last) -> Tensor"
)


def _allocate(packed, weight, bias, stride, padding, dilation, channels_last) -> Tensor:
    N = packed.shape[0]
    OH, OW, G, _, _, _, Cout_g = weight.shape
    if channels_last:
        return packed.new_empty((N, OH, OW, G * Cout_g), dtype=torch.float32).permute(0, 3, 1, 2)
    return packed.new_empty((N, G * Cout_g, OH, OW), dtype=torch.float32)


def is_shared(weight: Tensor) -> bool:
    """Whether one kernel is expanded over all positions."""
    return all(weight.shape[d] == 1 or weight.stride(d) == 0 for d in (0, 1))


def _kernel_order(weight: Tensor) -> tuple[Tensor, int]:
    """Return the weight in kernel order and the stride from one position to the next."""
    if is_shared(weight):
        return weight[0, 0].contiguous(), 0
    weight = weight.contiguous()
    return weight, weight.shape[2:].numel()


def _run(packed, weight, bias, stride, padding, dilation, channels_last, launch) -> Tensor:
    out = _allocate(packed, weight, bias, stride, padding, dilation, channels_last)
    if out.numel() == 0:
        return out
    N, H, W, words = packed.shape
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    packed = packed.contiguous()
    weight, weight_stride_p = _kernel_order(weight)
    bias_strides = (0, 0)
    if bias is not None:
        bias = bias.contiguous()
        bias_strides = (1, 0) if bias.dim() == 1 else (OH * OW, 1)
    out_stride_p = out.stride(3) if OW > 1 else out.stride(2)
    launch(
        extension().UnsharedConvParams(
            *(pointer(packed), pointer(weight), pointer(bias), pointer(out), DTYPES[weight.dtype]),
            *(N, H, W, words, OH, OW, G, KH, KW, Cin_g, Cout_g, *stride, *padding, *dilation),
            *(weight_stride_p, *bias_strides, out.stride(0), out.stride(1), out_stride_p),
        )
    )
    return out


def _cpu(*args):
    return _run(*args, lambda p: extension().unshared_conv_cpu(p, torch.get_num_threads()))


def _cuda(packed, *args):
    with torch.cuda.device_of(packed):
        stream = torch.cuda.current_stream().cuda_stream
        return _run(packed, *args, lambda p: cuda_extension().unshared_conv_cuda(p, stream))


LIBRARY.impl("unshared_conv", _cpu, "CPU")
LIBRARY.impl("unshared_conv", _cuda, "CUDA")
torch.library.register_fake("realspike::unshared_conv", _allocate, lib=LIBRARY)
