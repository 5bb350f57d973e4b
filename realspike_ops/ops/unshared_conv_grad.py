"""Gradients of realspike::unshared_conv.

The gradient of unshared weights is gathered like the forward pass
(realspike::unshared_conv_grad_weight); the others are dense products.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from realspike_ops._checks import same_sizes
from realspike_ops._native import DTYPES, cuda_extension, extension, pointer
from realspike_ops.ops import LIBRARY
from realspike_ops.ops.huge_pages import zeros_in_huge_pages
from realspike_ops.ops.kept import keep, kept
from realspike_ops.ops.unshared_conv_params import sizes_of, strides_of_out

# grad_out [N, Cout, OH, OW], packed [N, H, W, words] -> weight_shape: float32 sums over the samples
# that fired, in ascending n, rounded once to `dtype`
LIBRARY.define(
    "unshared_conv_grad_weight(Tensor grad_out, Tensor packed, int[7] weight_shape, int[2] stride,"
    " int[2] padding, int[2] dilation, ScalarType dtype) -> Tensor"
)


def gradients(
    grad_out: Tensor,  # [N, Cout, OH, OW]
    packed: Tensor,  # [N, H, W, words]
    weight: Tensor,  # [OH, OW, G, KH, KW, Cin/G, Cout/G], or of one position for all
    amplitude: Tensor | None,  # [Cin, H, W]
    scale: Tensor | None,  # [Cout]
    geometry,  # (stride, padding, dilation)
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the spikes, the weight and the amplitude, those that are wanted."""
    if not any(wanted):
        return None, None, None
    needs_spikes, needs_weight, _ = wanted
    if scale is not None:
        grad_out = grad_out * scale[:, None, None]
    if amplitude is not None or not same_sizes(weight.shape[:2], grad_out.shape[2:]):
        return _of_one_kernel(grad_out, packed, weight, amplitude, geometry, wanted)
    grad_spikes = grad_weight = None
    if needs_weight:
        grad_weight = torch.ops.realspike.unshared_conv_grad_weight(
            grad_out, packed, weight.shape, *geometry, weight.dtype
        )
    if needs_spikes:
        grad_spikes = _of_spikes(grad_out, packed.shape[1:3], weight, geometry)
    return grad_spikes, grad_weight, None


def _implement_grad_weight(launch):
    """Implement the op by `launch`, a device's function of the kernel's arguments."""

    def run(grad_out, packed, weight_shape, stride, padding, dilation, dtype):
        grad_out = grad_out.float()
        if grad_out.device.type == "cpu":  # every row reads the channels of one position
            grad_out = grad_out.contiguous(memory_format=torch.channels_last)
        if 0 in grad_out.stride():  # the kernel has one stride for the positions
            grad_out = grad_out.contiguous()
        OH, OW = weight_shape[:2]
        if OH > 1 and OW > 1 and grad_out.stride(2) != OW * grad_out.stride(3):
            grad_out = grad_out.contiguous()
        packed = packed.contiguous()
        out_stride_n, out_stride_c, out_stride_p = strides_of_out(grad_out)
        geometry = (stride, padding, dilation)

        def params(stored):
            return extension().UnsharedConvParams(
                spikes=pointer(packed),
                weight_dtype=DTYPES[stored],
                **sizes_of(packed, (OH, OW), weight_shape, geometry),
                weight_stride_p=math.prod(weight_shape[2:]),
                bias_stride_c=0,
                bias_stride_p=0,
                out_stride_n=out_stride_n,
                out_stride_c=out_stride_c,
                out_stride_p=out_stride_p,
            )

        return launch(params, grad_out, packed.shape[0], weight_shape, dtype).to(dtype)

    return run


def _grad_weight_cpu(params, grad_out, samples, shape, dtype) -> Tensor:
    grad_weight = zeros_in_huge_pages(shape)
    extension().unshared_conv_grad_weight_cpu(
        params(torch.float32), pointer(grad_out), pointer(grad_weight), torch.get_num_threads()
    )
    return grad_weight


def _grad_weight_cuda(params, grad_out, samples, shape, dtype) -> Tensor:
    native = cuda_extension()
    if samples > native.unshared_conv_grad_samples:
        dtype = torch.float32  # a sum that goes on must not have been rounded
    grad_weight = grad_out.new_empty(shape, dtype=dtype)
    with torch.cuda.device(grad_out.device):
        stream = torch.cuda.current_stream().cuda_stream
        native.unshared_conv_grad_weight_cuda(
            params(dtype), pointer(grad_out), pointer(grad_weight), stream
        )
    return grad_weight


def _of_spikes(grad_out, size, weight, geometry) -> Tensor:
    """Return [N, G * Cin/G, H, W]: tap by tap, what every position sends back through its rows."""
    (H, W), (OH, OW, G, KH, KW, Cin_g, Cout_g), N = size, weight.shape, grad_out.shape[0]
    (stride_h, stride_w), _, (dilation_h, dilation_w) = geometry
    left, right, top, bottom = padding_of(size, weight.shape, *geometry)
    # Two transpositions are three times as fast as one: the second moves whole rows of channels.
    by_position = grad_out.permute(0, 2, 3, 1).contiguous().permute(1, 2, 0, 3)
    by_position = by_position.reshape(OH, OW, N, G, Cout_g).transpose(2, 3).contiguous()
    grad = by_position.new_zeros(H + top + bottom, W + left + right, G, N, Cin_g)
    for kh in range(KH):
        lines = _every(stride_h, OH, grad, 0, kh * dilation_h)
        for kw in range(KW):
            read = _every(stride_w, OW, lines, 1, kw * dilation_w)
            read += by_position @ as_float(weight[:, :, :, kh, kw]).mT
    maps = grad.permute(3, 2, 4, 0, 1).reshape(N, G * Cin_g, H + top + bottom, W + left + right)
    return F.pad(maps, [-left, -right, -top, -bottom])


def _every(stride: int, count: int, tensor: Tensor, dim: int, first: int) -> Tensor:
    """Return a view of `count` slices. Indexing makes an alias where it takes all of them, and the
    vmap of batched gradients has no rule for that."""
    end = first + (count - 1) * stride + 1
    return torch.ops.aten.slice.Tensor(tensor, dim, first, end, stride)


def _of_one_kernel(grad_out, packed, weight, amplitude, geometry, wanted):
    """The gradients of a shared convolution of the spikes, or of amplitude * spikes."""
    needs_spikes, needs_weight, needs_amplitude = wanted
    _, _, G, KH, KW, Cin_g, Cout_g = weight.shape
    stride, _, dilation = geometry
    kernel = as_float(weight)[0, 0].permute(0, 4, 3, 1, 2).reshape(-1, Cin_g, KH, KW)
    spikes = torch.ops.realspike.unpack_spikes(packed, G * Cin_g, False)
    shape = (*grad_out.shape[2:], *weight.shape[2:])
    padded = padding_of(packed.shape[1:3], shape, *geometry)
    x = F.pad(spikes if amplitude is None else amplitude * spikes, padded)
    grad_x, grad_kernel, _ = torch.ops.aten.convolution_backward(
        grad_out, x, kernel, None, stride, (0, 0), dilation, False, (0, 0), G,
        [needs_spikes or needs_amplitude, needs_weight, False],
    )  # fmt: skip
    grad_spikes = grad_weight = grad_amplitude = None
    if grad_x is not None:
        grad_x = F.pad(grad_x, [-p for p in padded])
    if needs_spikes:
        grad_spikes = grad_x if amplitude is None else amplitude * grad_x
    if needs_amplitude:
        grad_amplitude = (spikes * grad_x).sum(0)
    if needs_weight:
        by_row = grad_kernel.view(G, Cout_g, Cin_g, KH, KW).permute(0, 3, 4, 2, 1)
        # Through one dimension: contiguous() leaves odd strides where a size is 1.
        grad_weight = by_row.reshape(-1).view(1, 1, *by_row.shape).to(weight.dtype)
    return grad_spikes, grad_weight, grad_amplitude


def as_float(weight: Tensor) -> Tensor:
    return weight.float() - 128 if weight.dtype == torch.uint8 else weight.float()


def padding_of(size, weight_shape, stride, padding, dilation):
    """Return the padding (left, right, top, bottom) that windows read, cuts where negative."""
    before_after = []
    for n, out, k, s, p, d in zip(
        size, weight_shape[:2], weight_shape[3:5], stride, padding, dilation, strict=True
    ):
        before_after.append((p, (out - 1) * s + (k - 1) * d + 1 - n - p))
    (top, bottom), (left, right) = before_after
    return left, right, top, bottom


for device, launch in (("CPU", _grad_weight_cpu), ("CUDA", _grad_weight_cuda)):
    LIBRARY.impl("unshared_conv_grad_weight", _implement_grad_weight(launch), device)
torch.library.register_fake(
    "realspike::unshared_conv_grad_weight",
    lambda grad_out, packed, shape, stride, padding, dilation, dtype: grad_out.new_empty(
        shape, dtype=dtype
    ),
    lib=LIBRARY,
)


def _setup_grad_weight(ctx, inputs, output):
    grad_out, packed, ctx.shape, *ctx.geometry, _ = inputs
    ctx.dtype = grad_out.dtype
    keep(ctx, "realspike::unshared_conv_grad_weight", packed)


def _backward_grad_weight(ctx, grad):
    """The op is linear in grad_out: its derivative is the forward pass, with `grad` for weights."""
    (packed,) = kept(ctx)
    out, _ = torch.ops.realspike.unshared_conv(
        packed, grad, None, None, None, ctx.shape[:2], *ctx.geometry, True, False
    )
    return out.to(ctx.dtype), *(None,) * 6


torch.library.register_autograd(
    "realspike::unshared_conv_grad_weight", _backward_grad_weight,
    setup_context=_setup_grad_weight, lib=LIBRARY,
)  # fmt: skip


class _NotThroughSpikes(torch.autograd.Function):
    """Refuses to differentiate gradients that depend on spikes: backward kept their bits alone."""

    @staticmethod
    def forward(ctx, *grads):
        return grads

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "unshared_spike_conv has no second derivative through spikes that require a gradient: "
            "backward keeps one bit of each; detach the spikes, or use realspike_ops.reference"
        )


def not_through_spikes(*grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients, from a backward pass whose own graph is recorded."""
    marked = iter(_NotThroughSpikes.apply(*(g for g in grads if g is not None)))
    return tuple(None if g is None else next(marked) for g in grads)
