"""realspike::lif_fwd and realspike::lif_bwd: allocation, memory formats, and the device's launch.

Shapes and memory formats become the view of the kernels (`lif_contract`), the same for all devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from realspike_ops.ops import LIBRARY, lif_cpu, lif_vmap
from realspike_ops.ops.layout import (
    as_dense_over_time,
    as_step,
    dense_over_time,
    empty_like_over_time,
    empty_maps,
    empty_over_time,
)
from realspike_ops.ops.lif_contract import (
    NEURON_SCHEMA,
    Currents,
    Gradients,
    Neuron,
    allocate_saved,
    neurons_in_memory_order,
    or_empty,
)
from realspike_ops.ops.ordered_sum import sum_to_parameter

# A decay or a threshold that is a tensor takes the place of its value. `save` (SAVE_...) says what
# backward needs, `keep_state` whether v_last is wanted. An output that is not wanted is empty.
LIBRARY.define(
    "lif_fwd(Tensor x, Tensor? amplitude, Tensor? decay, Tensor? v_threshold, Tensor? v_init,"
    f" {NEURON_SCHEMA}, int save, bool keep_state) -> (Tensor y, Tensor v_last, Tensor saved)"
)
LIBRARY.define(
    "lif_bwd(Tensor grad_y, Tensor? grad_v_last, Tensor? x, Tensor? amplitude, Tensor? decay,"
    " Tensor? v_threshold, Tensor? v_init, Tensor saved, bool channels_last, bool[4] wanted,"
    f" {NEURON_SCHEMA}, int save)"
    " -> (Tensor grad_x, Tensor grad_amplitude, Tensor grad_decay, Tensor grad_v_threshold,"
    " Tensor grad_v_init)"
)


def forward_with(launch):
    """Make the forward pass of a device out of `launch`, its function of dense tensors.

    The pass returns (y, v_last, saved); an output that is not wanted is None. The launch gets what
    else the pass is given.
    """

    def fwd(x, amplitude, decay, v_threshold, v_init, neuron, save, keep_state, *beside):
        x, channels_last, stride_t = dense_over_time(x)
        y = empty_like_over_time(x, channels_last)
        v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
        saved = allocate_saved(x, neuron.ternary, save)
        if x.numel() > 0:
            neurons = neurons_in_memory_order(
                amplitude, decay, v_threshold, v_init, neuron, x.shape[2:], channels_last
            )
            launch(Currents(x, stride_t), neurons, y, v_last, saved, save, *beside)
        return y, v_last, saved

    return fwd


def fwd_fake(x, amplitude, decay, v_threshold, v_init, *form):
    *neuron, save, keep_state = form
    x, channels_last, _ = dense_over_time(x)
    y = empty_over_time(x.shape, channels_last, x.dtype, x.device)
    v_last = empty_maps(x.shape[1:], channels_last, x.device) if keep_state else None
    return y, *or_empty(x, v_last, allocate_saved(x, Neuron(*neuron).ternary, save))


def backward_with(launch, partial_shapes):
    """Make the backward pass of a device out of `launch`, its function of dense tensors.

    `partial_shapes` tells the shapes of the partial sums that `launch` writes. The
    pass returns the gradients of (x, amplitude, decay, v_threshold, v_init); a gradient that is not
    wanted is None. Both get what else the pass is given.
    """

    def bwd(
        grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, saved, channels_last, wanted,
        neuron, save, *beside,
    ):  # fmt: skip
        stride_t = 0
        if x is not None:
            x, lies_channels_last, stride_t = dense_over_time(x)
            if lies_channels_last != channels_last:  # a hook on saved tensors has copied it
                x, stride_t = as_dense_over_time(x, channels_last), x.shape[1:].numel()
        # The saved state lies in the memory format of x. An incoming gradient may lie in any other;
        # that of a sum is expanded.
        grad_y = as_dense_over_time(grad_y, channels_last)
        shape = grad_y.shape[2:]
        grad_x = empty_like_over_time(grad_y, channels_last)
        grad_v_init = (
            empty_maps(grad_y.shape[1:], channels_last, grad_y.device) if wanted[3] else None
        )
        tensors = (amplitude, decay, v_threshold)
        if grad_y.numel() == 0:
            grads = (
                torch.zeros_like(tensor) if want else None
                for tensor, want in zip(tensors, wanted, strict=False)
            )
            return grad_x, *grads, grad_v_init
        neurons = neurons_in_memory_order(*tensors, v_init, neuron, shape, channels_last)
        partials: list[Tensor | None] = [None, None, None]
        if any(wanted[:3]):
            T, N = grad_y.shape[0], grad_y.shape[1:].numel()
            shapes = partial_shapes(T, N, neurons, wanted, save, grad_y.element_size(), *beside)
            partials = [
                torch.empty(size, dtype=torch.float32, device=grad_y.device) if want else None
                for size, want in zip(shapes, wanted, strict=False)
            ]
        if grad_v_last is not None:
            grad_v_last = as_step(grad_v_last, channels_last)
        gradients = Gradients(grad_y, grad_v_last, grad_x, partials, grad_v_init)
        launch(Currents(x, stride_t), neurons, saved, save, gradients, *beside)
        grads = (
            None
            if partial is None
            else sum_to_parameter(partial, neurons.period, tensor, shape, channels_last)
            for partial, tensor in zip(partials, tensors, strict=True)
        )
        return grad_x, *grads, grad_v_init

    return bwd


def bwd_fake(grad_y, grad_v_last, x, amplitude, decay, v_threshold, v_init, *rest):
    _, channels_last, wanted, *_ = rest
    grads = (
        torch.empty(parameter.shape, dtype=torch.float32, device=grad_y.device) if want else None
        for parameter, want in zip((amplitude, decay, v_threshold), wanted, strict=False)
    )
    grad_v_init = empty_maps(grad_y.shape[1:], channels_last, grad_y.device) if wanted[3] else None
    grad_x = empty_over_time(grad_y.shape, channels_last, grad_y.dtype, grad_y.device)
    return grad_x, *or_empty(grad_y, *grads, grad_v_init)


def _registered_fwd(fwd):
    def call(x, amplitude, decay, v_threshold, v_init, *form):
        *neuron, save, keep_state = form
        y, v_last, saved = fwd(
            x, amplitude, decay, v_threshold, v_init, Neuron(*neuron), save, keep_state
        )
        return y, *or_empty(y, v_last, saved)

    return call


def _registered_bwd(bwd):
    def call(*args):
        *tensors_and_layout, save = args
        fixed, neuron = tensors_and_layout[:10], Neuron(*tensors_and_layout[10:])
        grad_x, *grads = bwd(*fixed, neuron, save)
        return grad_x, *or_empty(grad_x, *grads)

    return call


def on_cuda(name):
    # Triton is imported when the first CUDA tensor arrives, not with the package.
    @functools.cache
    def function():
        from realspike_ops.ops import lif_cuda

        return getattr(lif_cuda, name)

    return lambda *args: function()(*args)


FORWARD: dict[str, Callable[..., Any]] = {
    "cpu": forward_with(lif_cpu.launch_fwd),
    "cuda": forward_with(on_cuda("launch_fwd")),
}
BACKWARD: dict[str, Callable[..., Any]] = {
    "cpu": backward_with(lif_cpu.launch_bwd, lif_cpu.partial_shapes),
    "cuda": backward_with(on_cuda("launch_bwd"), on_cuda("partial_shapes")),
}
for device in FORWARD:
    LIBRARY.impl("lif_fwd", _registered_fwd(FORWARD[device]), device.upper())
    LIBRARY.impl("lif_bwd", _registered_bwd(BACKWARD[device]), device.upper())
torch.library.register_fake("realspike::lif_fwd", fwd_fake, lib=LIBRARY)
torch.library.register_fake("realspike::lif_bwd", bwd_fake, lib=LIBRARY)
torch.library.register_vmap("realspike::lif_fwd", lif_vmap.lif_fwd, lib=LIBRARY)
