"""realspike::unshared_conv: gather-accumulate over binary spikes.

All sizes are checked by the functional layer.
"""

from typing import Any

import torch
from torch import Tensor

from realspike_ops._native import DTYPES, cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.layout import empty_maps
from realspike_ops.ops.ordered_sum import sum_in_one_order
from realspike_ops.ops.pack_spikes import allocate_packed, packed_words
from realspike_ops.ops.unshared_conv_grad import gradients, not_through_spikes
from realspike_ops.ops.unshared_conv_params import sizes_of, strides_of_out

# Spikes are dense [N, Cin, H, W] or packed [N, H, W, words] int32. Dense ones are packed on the way
# in, and the packed ones returned: backward keeps one bit per spike. A weight of one position
# serves all, and so does one that is expanded over its first two dimensions. An amplitude
# [Cin, H, W] multiplies the rows of such a weight (factored storage). uint8 weights are int8 ones
# plus 128; scale [Cout], if any, multiplies their sums.
LIBRARY.define(
    "unshared_conv(Tensor spikes, Tensor weight, Tensor? bias, Tensor? amplitude, Tensor? scale,"
    " int[2] output_size, int[2] stride, int[2] padding, int[2] dilation, bool channels_last,"
    " bool check_binary)"
    " -> (Tensor out, Tensor packed)"
)

_DTYPES = {dtype: number for dtype, number in DTYPES.items() if dtype != torch.int8}
_DTYPES[torch.uint8] = DTYPES[torch.int8]


def _allocate_out(spikes: Tensor, weight: Tensor, output_size, channels_last: bool) -> Tensor:
    shape = (spikes.shape[0], weight.shape[2] * weight.shape[6], *output_size)
    return empty_maps(shape, channels_last, spikes.device)


def _or_empty(packed: Tensor | None, spikes: Tensor) -> Tensor:
    """An op's schema has a tensor for every output; backward has packed spikes already."""
    return spikes.new_empty((0,), dtype=torch.int32) if packed is None else packed


def _fake(spikes, weight, bias, amplitude, scale, output_size, *others):
    channels_last = others[-2]
    out = _allocate_out(spikes, weight, output_size, channels_last)
    packed = None if spikes.dtype == torch.int32 else allocate_packed(spikes)
    return out, _or_empty(packed, spikes)


def is_shared(weight: Tensor) -> bool:
    """Whether one kernel is expanded over all positions."""
    return all(weight.shape[d] == 1 or weight.stride(d) == 0 for d in (0, 1))


def _kernel_order(weight: Tensor) -> tuple[Tensor, int]:
    """Return the weight in kernel order and the stride from one position to the next."""
    if is_shared(weight):
        return weight[0, 0].contiguous(), 0
    weight = weight.contiguous()
    return weight, weight.shape[2:].numel()


def kernel_params(words, weight, bias, amplitude, scale, out, output_size, geometry):
    """Return the kernel's parameters, and the tensors that they point into."""
    kernels, weight_stride_p = _kernel_order(weight)
    bias_stride_c = bias_stride_p = 0
    if bias is not None:
        bias = bias.contiguous()
        bias_stride_c, bias_stride_p = (1, 0) if bias.dim() == 1 else (bias[0].numel(), 1)
    if amplitude is not None:
        amplitude = amplitude.permute(1, 2, 0).contiguous()  # [H, W, Cin]
    if scale is not None:
        scale = scale.contiguous()
    out_stride_n, out_stride_c, out_stride_p = (0, 0, 0) if out is None else strides_of_out(out)
    params = extension().UnsharedConvParams(
        spikes=pointer(words),
        weight=pointer(kernels),
        bias=pointer(bias),
        amplitude=pointer(amplitude),
        scale=pointer(scale),
        out=pointer(out),
        weight_dtype=_DTYPES[weight.dtype],
        **sizes_of(words, output_size, weight.shape, geometry),
        weight_stride_p=weight_stride_p,
        bias_stride_c=bias_stride_c,
        bias_stride_p=bias_stride_p,
        out_stride_n=out_stride_n,
        out_stride_c=out_stride_c,
        out_stride_p=out_stride_p,
    )
    return params, (words, kernels, bias, amplitude, scale, out)


def _implement(launch):
    """Make the forward pass out of `launch`, a device's function of the kernel's parameters.

    It returns the currents, and the packed spikes, None where the spikes were packed already.
    """

    def run(spikes, weight, bias, amplitude, scale, output_size, *geometry_and_switches):
        *geometry, channels_last, check_binary = geometry_and_switches
        out = _allocate_out(spikes, weight, output_size, channels_last)
        words = packed_words(spikes, weight.shape[2] * weight.shape[5], check_binary)
        packed = None if spikes.dtype == torch.int32 else words
        if out.numel() == 0:
            return out, packed
        params, tensors = kernel_params(
            words, weight, bias, amplitude, scale, out, output_size, geometry
        )
        launch(params, spikes.device)
        del tensors
        return out, packed

    return run


def _registered(forward):
    def call(spikes, *arguments):
        out, packed = forward(spikes, *arguments)
        return out, _or_empty(packed, spikes)

    return call


def _launch_cpu(params, device):
    extension().unshared_conv_cpu(params, torch.get_num_threads())


def _launch_cuda(params, device):
    native = cuda_extension()
    with torch.cuda.device(device):
        size = native.unshared_conv_workspace_cuda(params)
        workspace = torch.empty(size, dtype=torch.uint8, device=device) if size else None
        stream = torch.cuda.current_stream().cuda_stream
        native.unshared_conv_cuda(params, pointer(workspace), stream)


def _setup_context(ctx, inputs, output):
    spikes, weight, bias, amplitude, scale, ctx.output_size, *ctx.geometry, _, _ = inputs
    packed = output[1]
    ctx.is_packed = spikes.dtype == torch.int32
    ctx.spikes_dtype = spikes.dtype
    ctx.bias_dim = None if bias is None else bias.dim()
    ctx.save_for_backward(spikes if ctx.is_packed else packed, weight, amplitude, scale)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _):
    if grad_out is None:
        return (None,) * 11
    packed, weight, amplitude, scale = ctx.saved_tensors
    spikes, kernel, bias, amplitudes, *_ = ctx.needs_input_grad
    wanted = (spikes and not ctx.is_packed, kernel, amplitudes)
    grad_spikes, grad_weight, grad_amplitude = gradients(
        grad_out, packed, weight, amplitude, scale, ctx.geometry, wanted
    )
    grad_bias = None
    if bias:
        grad_bias = sum_in_one_order(grad_out, [0, 2, 3] if ctx.bias_dim == 1 else [0])
    if grad_spikes is not None:
        grad_spikes = grad_spikes.to(ctx.spikes_dtype)
    if spikes and torch.is_grad_enabled():
        grads = grad_spikes, grad_weight, grad_amplitude
        grad_spikes, grad_weight, grad_amplitude = not_through_spikes(*grads)
    return grad_spikes, grad_weight, grad_bias, grad_amplitude, *(None,) * 7


def unshared_conv(
    spikes: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    amplitude: Tensor | None,
    scale: Tensor | None,
    output_size: tuple[int, int],
    *geometry_and_switches: Any,
) -> Tensor:
    """Call realspike::unshared_conv, past the dispatcher where nothing could intercept the call."""
    tensors = (spikes, weight, bias, amplitude, scale)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if needs_grad or spikes.device.type not in _FORWARD or not is_plain_eager(*tensors):
        out, _ = torch.ops.realspike.unshared_conv(*tensors, output_size, *geometry_and_switches)
    else:
        out, _ = _FORWARD[spikes.device.type](*tensors, output_size, *geometry_and_switches)
    return out


_FORWARD = {"cpu": _implement(_launch_cpu), "cuda": _implement(_launch_cuda)}
for device, forward in _FORWARD.items():
    LIBRARY.impl("unshared_conv", _registered(forward), device.upper())
torch.library.register_fake("realspike::unshared_conv", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "realspike::unshared_conv", _backward, setup_context=_setup_context, lib=LIBRARY
)
