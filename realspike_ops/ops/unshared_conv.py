"""realspike::unshared_conv: gather-accumulate over binary spikes.

All sizes are checked by the functional layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realspike_ops._native import DTYPES, cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY
from realspike_ops.ops.eager import is_plain_eager
from realspike_ops.ops.kept import keep, kept
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
_SCHEMA = (
    "(Tensor spikes, Tensor weight, Tensor? bias, Tensor? amplitude, Tensor? scale,"
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


class Arguments(NamedTuple):
    """What a kernel takes, by the names of csrc/core/unshared_conv.h."""

    tensors: dict[str, Tensor | None]
    sizes: dict[str, int]
    weight_dtype: torch.dtype


def kernel_arguments(
    words, weight, bias, amplitude, scale, out, output_size, geometry
) -> Arguments:
    """Return the tensors in a kernel's order, and their sizes and strides."""
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
    tensors = {
        "spikes": words,
        "weight": kernels,
        "bias": bias,
        "amplitude": amplitude,
        "scale": scale,
        "out": out,
    }
    sizes = {
        **sizes_of(words, output_size, weight.shape, geometry),
        "weight_stride_p": weight_stride_p,
        "bias_stride_c": bias_stride_c,
        "bias_stride_p": bias_stride_p,
        "out_stride_n": out_stride_n,
        "out_stride_c": out_stride_c,
        "out_stride_p": out_stride_p,
    }
    return Arguments(tensors, sizes, weight.dtype)


def kernel_params(words, weight, bias, amplitude, scale, out, output_size, geometry):
    """Return the record of a compiled kernel, and the tensors that it points into."""
    tensors = (words, weight, bias, amplitude, scale, out)
    arguments = kernel_arguments(*tensors, output_size, geometry)
    return _record_of(arguments), arguments.tensors


def _record_of(arguments: Arguments):
    return extension().UnsharedConvParams(
        **{name: pointer(tensor) for name, tensor in arguments.tensors.items()},
        **arguments.sizes,
        weight_dtype=_DTYPES[arguments.weight_dtype],
    )


def forward_with(launch):
    """Make the forward pass out of `launch`, a function of the kernel's arguments.

    It returns the currents, and the packed spikes, None where the spikes were packed already.
    """

    def run(spikes, weight, bias, amplitude, scale, output_size, *geometry_and_switches):
        *geometry, channels_last, check_binary = geometry_and_switches
        out = _allocate_out(spikes, weight, output_size, channels_last)
        words = packed_words(spikes, weight.shape[2] * weight.shape[5], check_binary)
        packed = None if spikes.dtype == torch.int32 else words
        if out.numel() > 0:
            tensors = (words, weight, bias, amplitude, scale, out)
            launch(kernel_arguments(*tensors, output_size, geometry))
        return out, packed

    return run


def _registered(forward):
    def call(spikes, *arguments):
        out, packed = forward(spikes, *arguments)
        return out, _or_empty(packed, spikes)

    return call


def launch_cpu(arguments, products=False):
    """Launch the kernel of the CPU; with products it may multiply, to the same bits."""
    extension().unshared_conv_cpu(_record_of(arguments), torch.get_num_threads(), products)


def _launch_cuda(arguments):
    native, params, out = cuda_extension(), _record_of(arguments), arguments.tensors["out"]
    with torch.cuda.device(out.device):
        size = native.unshared_conv_workspace_cuda(params)
        workspace = torch.empty(size, dtype=torch.uint8, device=out.device) if size else None
        stream = torch.cuda.current_stream().cuda_stream
        native.unshared_conv_cuda(params, pointer(workspace), stream)


def _setup_context(ctx, inputs, output):
    spikes, weight, bias, amplitude, scale, ctx.output_size, *ctx.geometry, _, _ = inputs
    packed = output[1]
    ctx.is_packed = spikes.dtype == torch.int32
    ctx.spikes_dtype = spikes.dtype
    ctx.bias_dim = None if bias is None else bias.dim()
    bits = spikes if ctx.is_packed else packed
    keep(ctx, "realspike::unshared_conv", bits, weight, amplitude, scale)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _):
    if grad_out is None:
        return (None,) * 11
    packed, weight, amplitude, scale = kept(ctx)
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


def register(name: str, forward: dict[str, Callable[..., Any]]) -> Callable[..., Tensor]:
    """Define an op of such arguments, with the gradients of the convolution.

    Args:
        name: realspike::<name>.
        forward: By device, a function that `forward_with` returned.

    Returns:
        The call of the op, past the dispatcher where nothing could intercept it.
    """
    LIBRARY.define(name + _SCHEMA)
    for device, function in forward.items():
        LIBRARY.impl(name, _registered(function), device.upper())
    torch.library.register_fake(f"realspike::{name}", _fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"realspike::{name}", _backward, setup_context=_setup_context, lib=LIBRARY
    )
    op = getattr(torch.ops.realspike, name)

    def call(
        spikes: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        amplitude: Tensor | None,
        scale: Tensor | None,
        output_size: tuple[int, int],
        *geometry_and_switches: Any,
    ) -> Tensor:
        tensors = (spikes, weight, bias, amplitude, scale)
        needs_grad = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in tensors
        )
        if needs_grad or spikes.device.type not in forward or not is_plain_eager(*tensors):
            out, _ = op(*tensors, output_size, *geometry_and_switches)
        else:
            out, _ = forward[spikes.device.type](*tensors, output_size, *geometry_and_switches)
        return out

    return call


unshared_conv = register(
    "unshared_conv", {"cpu": forward_with(launch_cpu), "cuda": forward_with(_launch_cuda)}
)
