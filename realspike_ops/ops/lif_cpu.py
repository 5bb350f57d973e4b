"""Launches of the C++ LIF kernels (csrc/cpu/lif_cpu.cpp) on dense CPU tensors."""

import torch

from realspike_ops._native import DTYPES, extension, pointer
from realspike_ops.surrogate import NAMES

_SURROGATES = {name: index for index, name in enumerate(NAMES)}
_RESETS = {"hard": 0, "soft": 1, "none": 2}


def _params(x, parameters, period, v_init, saved, dtype, T, N, neuron, save, x_stride_t):
    return extension().LifParams(
        *(pointer(x), pointer(v_init), pointer(saved)),
        *(item for p in parameters for item in (pointer(p.values), p.all, p.inner, p.size)),
        *(DTYPES[dtype], save, T, N, x_stride_t, period, neuron.v_reset, _RESETS[neuron.reset]),
        *(neuron.detach_reset, neuron.ternary),
        *(_SURROGATES[neuron.surrogate], neuron.surrogate_scale),
    )


def launch_fwd(x, parameters, period, v_init, y, v_last, saved, neuron, save, x_stride_t):
    T, N = y.shape[0], y.shape[1:].numel()
    params = _params(x, parameters, period, v_init, saved, y.dtype, T, N, neuron, save, x_stride_t)
    # The address of an empty tensor is 0.
    extension().lif_fwd_cpu(params, pointer(y), pointer(v_last), torch.get_num_threads())


def partial_shape(T, N, period, save, element_size) -> tuple[int, int]:
    chunks, row, *_ = extension().lif_tiling(T, N, period)
    return chunks, row


def launch_bwd(
    grad_y,
    grad_v_last,
    x,
    parameters,
    period,
    v_init,
    saved,
    grad_x,
    partials,
    grad_v_init,
    neuron,
    save,
    x_stride_t,
):
    T, N = grad_x.shape[0], grad_x.shape[1:].numel()
    params = _params(
        x, parameters, period, v_init, saved, grad_x.dtype, T, N, neuron, save, x_stride_t
    )
    extension().lif_bwd_cpu(
        params,
        *(pointer(grad_y), pointer(grad_v_last), pointer(grad_x), pointer(grad_v_init)),
        *map(pointer, partials),
        torch.get_num_threads(),
    )
