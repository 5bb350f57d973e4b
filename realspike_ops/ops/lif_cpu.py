"""Launches of the C++ LIF kernels (csrc/cpu/lif/launch.cpp) on dense CPU tensors."""

import functools

import torch

from realspike_ops._native import DTYPES, extension, pointer
from realspike_ops.ops.lif_parameters import PerNeuron
from realspike_ops.surrogate import NAMES

_SURROGATES = {name: index for index, name in enumerate(NAMES)}
_RESETS = {"hard": 0, "soft": 1, "none": 2, "soft_delayed": 3}


@functools.lru_cache(maxsize=1024)
def _form(neuron):
    return extension().LifForm(
        *(neuron.v_reset, _RESETS[neuron.reset], neuron.detach_reset, neuron.ternary),
        *(_SURROGATES[neuron.surrogate], neuron.surrogate_scale),
    )


@functools.lru_cache(maxsize=1024)
def _for_all(value: float):
    return extension().PerNeuron(0, value, 1, 1)


def _per_neuron(parameter: PerNeuron):
    if parameter.values is None:
        return _for_all(parameter.all)
    return extension().PerNeuron(parameter.values.data_ptr(), 0.0, parameter.inner, parameter.size)


def _params(x, parameters, period, v_init, saved, y, neuron, save, x_stride_t):
    amplitude, decay, v_threshold = parameters
    return extension().LifParams(
        *(_form(neuron), _per_neuron(amplitude), _per_neuron(decay), _per_neuron(v_threshold)),
        *(pointer(x), pointer(v_init), pointer(saved), DTYPES[y.dtype], save),
        *(y.shape[0], y.shape[1:].numel(), x_stride_t, period),
    )


def launch_fwd(x, parameters, period, v_init, y, v_last, saved, neuron, save, x_stride_t):
    params = _params(x, parameters, period, v_init, saved, y, neuron, save, x_stride_t)
    extension().lif_fwd_cpu(params, y.data_ptr(), pointer(v_last), torch.get_num_threads())


def launch_packed(x, parameters, period, v_init, packed, v_last, neuron, x_stride_t, channels_last):
    params = _params(x, parameters, period, v_init, None, x, neuron, 0, x_stride_t)
    extension().lif_packed_cpu(
        *(params, packed.data_ptr(), pointer(v_last), x.shape[2], x.shape[3:].numel()),
        *(channels_last, torch.get_num_threads()),
    )


def params_after_conv(parameters, v_init, neuron, T, N):
    """The parameters of N neurons on currents that are nowhere in memory; any device's."""
    amplitude, decay, v_threshold = map(_per_neuron, parameters)
    return extension().LifParams(
        *(_form(neuron), amplitude, decay, v_threshold),
        *(0, pointer(v_init), 0, DTYPES[torch.float32], 0, T, N, 0, 1),
    )


def launch_after_conv(conv, lif, packed, v_last):
    """Launch the convolution `conv` and the neurons `lif` that its currents go into."""
    extension().unshared_conv_lif_cpu(
        conv, lif, packed.data_ptr(), pointer(v_last), torch.get_num_threads()
    )


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
    params = _params(x, parameters, period, v_init, saved, grad_x, neuron, save, x_stride_t)
    extension().lif_bwd_cpu(
        params,
        *(pointer(grad_y), pointer(grad_v_last), pointer(grad_x), pointer(grad_v_init)),
        *map(pointer, partials),
        torch.get_num_threads(),
    )
