"""realspike::unshared_conv: gather-accumulate over binary spikes, and its gradients.

All sizes are checked by the functional layer; a weight whose first two strides are 0 (an expanded
tensor) is one kernel shared by every position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops._native import DTYPES, cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.pack_spikes import allocate_packed, pack_spikes

# Spikes are dense [N, Cin, H, W] or packed [N, H, W, words] int32. Dense ones are packed on the way
# in, and the packed ones returned: backward keeps one bit per spike.
LIBRARY.define(
    "unshared_conv(Tensor spikes, Tensor weight, Tensor? bias, int[2] stride, int[2] padding,"
    " int[2] dilation, bool channels_last, bool check_binary) -> (Tensor out, Tensor packed)"
)


def _allocate_out(spikes: Tensor, weight: Tensor, channels_last: bool) -> Tensor:
    N = spikes.shape[0]
    OH, OW, G, _, _, _, Cout_g = weight.shape
    shape = (N, OH, OW, G * Cout_g) if channels_last else (N, G * Cout_g, OH, OW)
    out = spikes.new_empty(shape, dtype=torch.float32)
    return out.permute(0, 3, 1, 2) if channels_last else out


def _packed_with(spikes: Tensor, pack) -> Tensor:
    """Return pack(spikes) for dense spikes; nothing for packed ones, which backward has already."""
    if spikes.dtype == torch.int32:
        return spikes.new_empty((0,), dtype=torch.int32)
    return pack(spikes)


def _fake(spikes, weight, bias, stride, padding, dilation, channels_last, check_binary):
    return _allocate_out(spikes, weight, channels_last), _packed_with(spikes, allocate_packed)


def is_shared(weight: Tensor) -> bool:
    """Whether one kernel is expanded over all positions."""
    return all(weight.shape[d] == 1 or weight.stride(d) == 0 for d in (0, 1))


def _kernel_order(weight: Tensor) -> tuple[Tensor, int]:
    """Return the weight in kernel order and the stride from one position to the next."""
    if is_shared(weight):
        return weight[0, 0].contiguous(), 0
    weight = weight.contiguous()
    return weight, weight.shape[2:].numel()


def _implement(launch):
    """Implement the op by `launch`, a device's function of the kernel's parameters."""

    def run(spikes, weight, bias, stride, padding, dilation, channels_last, check_binary):
        out = _allocate_out(spikes, weight, channels_last)
        packed = _packed_with(spikes, lambda dense: pack_spikes(dense, check_binary))
        if out.numel() == 0:
            return out, packed
        words = spikes.contiguous() if spikes.dtype == torch.int32 else packed
        kernels, weight_stride_p = _kernel_order(weight)
        bias_strides = (0, 0)
        if bias is not None:
            bias = bias.contiguous()
            bias_strides = (1, 0) if bias.dim() == 1 else (bias[0].numel(), 1)
        out_stride_p = out.stride(3) if out.shape[3] > 1 else out.stride(2)
        launch(
            extension().UnsharedConvParams(
                *(pointer(words), pointer(kernels), pointer(bias), pointer(out)),
                *(DTYPES[weight.dtype], *words.shape, *weight.shape),
                *(*stride, *padding, *dilation, weight_stride_p, *bias_strides),
                *(out.stride(0), out.stride(1), out_stride_p),
            ),
            spikes.device,
        )
        return out, packed

    return run


def _launch_cpu(params, device):
    extension().unshared_conv_cpu(params, torch.get_num_threads())


def _launch_cuda(params, device):
    with torch.cuda.device(device):
        cuda_extension().unshared_conv_cuda(params, torch.cuda.current_stream().cuda_stream)


def _setup_context(ctx, inputs, output):
    spikes, weight, bias, ctx.stride, ctx.padding, ctx.dilation, *_ = inputs
    packed = output[1]
    ctx.is_packed = spikes.dtype == torch.int32
    ctx.spikes_shape, ctx.spikes_dtype = spikes.shape, spikes.dtype
    ctx.bias_dim = None if bias is None else bias.dim()
    ctx.save_for_backward(spikes if ctx.is_packed else packed, weight)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _):
    if grad_out is None:
        return (None,) * 8
    packed, weight = ctx.saved_tensors
    needs_spikes, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    OH, OW, G, KH, KW, Cin_g, Cout_g = weight.shape
    N, H, W, _ = packed.shape
    positions, taps = OH * OW, Cin_g * KH * KW
    grad = grad_out.reshape(N, G, Cout_g, positions).permute(3, 1, 0, 2)  # [P, G, N, Cout/G]
    padded, window = _window((H, W), weight.shape, ctx.stride, ctx.padding, ctx.dilation)
    grad_spikes = grad_weight = grad_bias = None
    if needs_weight:
        spikes = torch.ops.realspike.unpack_spikes(packed, G * Cin_g, False)
        patches = F.unfold(F.pad(spikes, padded), **window)  # [N, Cin * KH * KW, P]
        patches = patches.view(N, G, taps, positions).permute(3, 1, 2, 0)
        grad_weight = torch.matmul(patches, grad)  # [P, G, Cin/G * KH * KW, Cout/G]
        grad_weight = grad_weight.view(OH, OW, G, Cin_g, KH, KW, Cout_g)
        grad_weight = grad_weight.permute(0, 1, 2, 4, 5, 3, 6).contiguous()
    if needs_spikes and not ctx.is_packed:
        rows = weight.permute(0, 1, 2, 5, 3, 4, 6).reshape(positions, G, taps, Cout_g)
        patches = torch.matmul(grad, rows.transpose(2, 3))  # [P, G, N, Cin/G * KH * KW]
        patches = patches.permute(2, 1, 3, 0).reshape(N, G * taps, positions)
        left, right, top, bottom = padded
        folded = F.fold(patches, (H + top + bottom, W + left + right), **window)
        grad_spikes = F.pad(folded, [-p for p in padded]).to(ctx.spikes_dtype)
    if needs_bias:
        grad_bias = grad_out.sum((0, 2, 3) if ctx.bias_dim == 1 else 0)
    return grad_spikes, grad_weight, grad_bias, *(None,) * 5


def _window(size, weight_shape, stride, padding, dilation):
    """Return the padding (left, right, top, bottom; negative cuts) and the arguments of unfold."""
    before_after = []
    for n, out, k, s, p, d in zip(
        size, weight_shape[:2], weight_shape[3:5], stride, padding, dilation, strict=True
    ):
        before_after.append((p, (out - 1) * s + (k - 1) * d + 1 - n - p))
    (top, bottom), (left, right) = before_after
    window = {"kernel_size": tuple(weight_shape[3:5]), "dilation": dilation, "stride": stride}
    return (left, right, top, bottom), window


def unshared_conv(spikes, weight, bias, *rest) -> Tensor:
    """Call realspike::unshared_conv, past the dispatcher where nothing could intercept the call."""
    tensors = (spikes, weight, bias)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if needs_grad or spikes.device.type not in _FORWARD or not is_plain_eager(*tensors):
        out, _ = torch.ops.realspike.unshared_conv(*tensors, *rest)
    else:
        out, _ = _FORWARD[spikes.device.type](*tensors, *rest)
    return out


_FORWARD = {"cpu": _implement(_launch_cpu), "cuda": _implement(_launch_cuda)}
for device, forward in _FORWARD.items():
    LIBRARY.impl("unshared_conv", forward, device.upper())
torch.library.register_fake("realspike::unshared_conv", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "realspike::unshared_conv", _backward, setup_context=_setup_context, lib=LIBRARY
)
