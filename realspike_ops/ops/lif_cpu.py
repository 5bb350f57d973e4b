"""Launches of the C++ LIF kernels (csrc/cpu/lif/launch.cpp) on dense CPU tensors."""

import functools

import torch
from torch import Tensor

from realspike_ops._native import DTYPES, extension, pointer
from realspike_ops.ops.lif_contract import SAVE_BITS, SAVE_NOTHING, Currents, Gradients, Neurons
from realspike_ops.surrogate import NAMES

_SURROGATES = {name: index for index, name in enumerate(NAMES)}
_RESETS = {"hard": 0, "soft": 1, "none": 2, "soft_delayed": 3}


@functools.lru_cache(maxsize=1024)
def _form(neuron):
    reset, surrogate = _RESETS[neuron.reset], _SURROGATES[neuron.surrogate]
    return extension().LifForm(
        neuron.v_reset, reset, neuron.detach_reset, neuron.ternary, surrogate,
        neuron.surrogate_scale,
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _params_without_tensors(form, sizes, dtype, save, T, N, stride_t, period):
    """Return the parameters of a launch; `sizes` are (all, inner, size) of each `PerNeuron`."""
    parameters = (extension().PerNeuron(0, *size) for size in sizes)
    return extension().LifParams(_form(form), *parameters, dtype, save, T, N, stride_t, period)


def _params(neurons: Neurons, x: int, saved: int, dtype: torch.dtype, *sizes: int):
    """Return the parameters of neurons on x; `sizes` are save, T, N, stride_t and period."""
    amplitude, decay, v_threshold = neurons.parameters
    per_neuron = (amplitude[1:], decay[1:], v_threshold[1:])
    params = _params_without_tensors(neurons.form, per_neuron, DTYPES[dtype], *sizes)
    return params.at(
        x, pointer(neurons.v_init), saved, pointer(amplitude.values), pointer(decay.values),
        pointer(v_threshold.values),
    )  # fmt: skip


def lif_params(currents: Currents, neurons: Neurons, saved, save: int, like: Tensor):
    """Return the parameters of T timesteps of N neurons, of the shape and dtype of `like`."""
    T = like.shape[0]
    return _params(
        neurons, pointer(currents.x), pointer(saved), like.dtype, save, T, like.numel() // T,
        currents.stride_t, neurons.period,
    )  # fmt: skip


def launch_fwd(currents: Currents, neurons: Neurons, y, v_last, saved, save: int) -> None:
    params = lif_params(currents, neurons, saved, save, y)
    extension().lif_fwd_cpu(params, y.data_ptr(), pointer(v_last), torch.get_num_threads())


def launch_spikes(neurons: Neurons, words: Tensor, y: Tensor) -> None:
    """Write the spikes y [T, B, ...] whose bits a forward pass saved."""
    params = lif_params(Currents(None, 0), neurons, words, SAVE_BITS, y)
    extension().lif_spikes_cpu(params, y.data_ptr(), torch.get_num_threads())


def launch_packed(currents: Currents, neurons: Neurons, packed, v_last, channels_last) -> None:
    x = currents.x
    assert x is not None
    C, pixels = x.shape[2], x.shape[3:].numel()
    extension().lif_packed_cpu(
        lif_params(currents, neurons, None, SAVE_NOTHING, x), packed.data_ptr(), pointer(v_last),
        C, pixels, channels_last, torch.get_num_threads(),
    )  # fmt: skip


def params_after_conv(neurons: Neurons, T: int, N: int):
    """Return the parameters of N neurons whose currents are nowhere in memory; for any device."""
    return _params(neurons, 0, 0, torch.float32, SAVE_NOTHING, T, N, 0, 1)


def params_of(neurons: Neurons, T: int, N: int, stride_t: int, dtype: torch.dtype):
    """Return the parameters of N neurons whose currents lie where a program says."""
    return _params(neurons, 0, 0, dtype, SAVE_NOTHING, T, N, stride_t, neurons.period)


def launch_after_conv(drive, packed, v_last, products: bool) -> None:
    """Launch a convolution, whatever joins its currents, and the neurons that these go into."""
    extension().unshared_conv_lif_cpu(
        *drive, packed.data_ptr(), pointer(v_last), torch.get_num_threads(), products
    )


def partial_shapes(T, N, neurons: Neurons, *how) -> list[tuple[int, int]]:
    chunks, row, *_ = extension().lif_tiling(T, N, neurons.period)
    return [(chunks, row)] * 3


def launch_bwd(currents: Currents, neurons: Neurons, saved, save: int, grads: Gradients) -> None:
    params = lif_params(currents, neurons, saved, save, grads.x)
    written = (grads.y, grads.v_last, grads.x, grads.v_init, *grads.partials)
    extension().lif_bwd_cpu(params, *map(pointer, written), torch.get_num_threads())
