"""Launches of the C++ LIF kernels (csrc/cpu/lif_cpu.cpp) on dense CPU tensors."""

import torch

from realspike_ops._native import DTYPES, extension, pointer
from realspike_ops.surrogate import NAMES

_SURROGATES = {name: index for index, name in enumerate(NAMES)}


def _params(x, flat_amplitude, v_init, saved, dtype, T, N, neuron, save, x_stride_t, inner, size):
    return extension().LifParams(
        *(pointer(x), pointer(flat_amplitude), pointer(v_init), pointer(saved), DTYPES[dtype]),
        *(save, T, N, x_stride_t, inner, size, neuron.decay, neuron.v_threshold),
        *(0.0 if neuron.v_reset is None else neuron.v_reset, neuron.v_reset is None),
        *(neuron.detach_reset, _SURROGATES[neuron.surrogate], neuron.surrogate_scale),
    )


def launch_fwd(x, flat_amplitude, v_init, y, v_last, saved, neuron, save, x_stride_t, inner, size):
    T, N = y.shape[0], v_last.numel()
    params = _params(
        x, flat_amplitude, v_init, saved, y.dtype, T, N, neuron, save, x_stride_t, inner, size
    )
    extension().lif_fwd_cpu(params, pointer(y), pointer(v_last), torch.get_num_threads())


def launch_bwd(
    grad_y,
    grad_v_last,
    x,
    flat_amplitude,
    v_init,
    saved,
    grad_x,
    grad_v_init,
    grad_amplitude_per_neuron,
    neuron,
    x_stride_t,
    inner,
    size,
):
    T, N = grad_x.shape[0], grad_v_init.numel()
    params = _params(
        *(x, flat_amplitude, v_init, saved, grad_x.dtype, T, N),
        *(neuron, neuron.save, x_stride_t, inner, size),
    )
    extension().lif_bwd_cpu(
        params,
        *(pointer(grad_y), pointer(grad_v_last), pointer(grad_x), pointer(grad_v_init)),
        pointer(grad_amplitude_per_neuron) if grad_amplitude_per_neuron.numel() > 0 else 0,
        torch.get_num_threads(),
    )
