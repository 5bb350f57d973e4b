"""Launches of the Triton LIF kernels on dense CUDA tensors."""

import torch
import triton

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.ops.lif import BITS_INTERVAL, POTENTIAL_INTERVAL, SAVE_POTENTIALS

NUM_WARPS = 4
ACCESS_BYTES = 16


def _neuron_arguments(neuron):
    v_reset = 0.0 if neuron.v_reset is None else neuron.v_reset
    return neuron.decay, neuron.v_threshold, v_reset, neuron.surrogate_scale


def options(save, element_size):
    """Return the constants and options of a launch that do not depend on its sizes."""
    recompute = save == SAVE_POTENTIALS
    # A thread moves 16 bytes of x per timestep; in half precision that is 8 neurons, whose
    # recomputed potentials would not fit in registers.
    neurons = ACCESS_BYTES // (4 if recompute else element_size)
    return {
        "SAVE": save,
        "CHUNK": POTENTIAL_INTERVAL if recompute else BITS_INTERVAL,
        "BLOCK": 32 * NUM_WARPS * neurons,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
    }


def launch_fwd(x, flat_amplitude, v_init, y, v_last, saved, neuron, save, x_stride_t, inner, size):
    N = v_last.numel()
    constants = options(save, y.element_size())
    with torch.cuda.device_of(x):
        lif_fwd_kernel[(triton.cdiv(N, constants["BLOCK"]),)](
            *(x, flat_amplitude, v_init, y, v_last, saved, y.shape[0], N, x_stride_t, inner, size),
            *_neuron_arguments(neuron),
            HAS_AMPLITUDE=flat_amplitude is not None,
            HAS_V_INIT=v_init is not None,
            SOFT_RESET=neuron.v_reset is None,
            **constants,
        )


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
    N = grad_v_init.numel()
    constants = options(neuron.save, grad_x.element_size())
    with torch.cuda.device_of(grad_y):
        lif_bwd_kernel[(triton.cdiv(N, constants["BLOCK"]),)](
            *(grad_y, grad_v_last, x, flat_amplitude, v_init, saved),
            *(grad_x, grad_v_init, grad_amplitude_per_neuron),
            *(grad_x.shape[0], N, x_stride_t, inner, size),
            *_neuron_arguments(neuron),
            HAS_AMPLITUDE=flat_amplitude is not None,
            HAS_V_INIT=v_init is not None,
            HAS_GRAD_V_LAST=grad_v_last is not None,
            SOFT_RESET=neuron.v_reset is None,
            DETACH_RESET=neuron.detach_reset,
            SURROGATE=neuron.surrogate,
            **constants,
        )
