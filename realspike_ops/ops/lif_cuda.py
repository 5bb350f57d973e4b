"""Launches of the Triton LIF kernels on dense CUDA tensors."""

import torch
import triton

from realspike_ops.kernels.lif import lif_bwd_kernel, lif_fwd_kernel
from realspike_ops.ops.lif import BITS_INTERVAL, POTENTIAL_INTERVAL, SAVE_POTENTIALS

# Four elements a thread at four warps: 16-byte accesses in float32, and registers for a chunk.
BLOCK = 512
NUM_WARPS = 4


def _neuron_arguments(neuron):
    v_reset = 0.0 if neuron.v_reset is None else neuron.v_reset
    return neuron.decay, neuron.v_threshold, v_reset, neuron.surrogate_scale


def options(save):
    return {
        "SAVE": save,
        "CHUNK": POTENTIAL_INTERVAL if save == SAVE_POTENTIALS else BITS_INTERVAL,
        "BLOCK": BLOCK,
        "num_warps": NUM_WARPS,
        "enable_fp_fusion": False,
    }


def launch_fwd(x, flat_amplitude, v_init, y, v_last, saved, neuron, save, x_stride_t, inner, size):
    N = v_last.numel()
    with torch.cuda.device_of(x):
        lif_fwd_kernel[(triton.cdiv(N, BLOCK),)](
            *(x, flat_amplitude, v_init, y, v_last, saved, y.shape[0], N, x_stride_t, inner, size),
            *_neuron_arguments(neuron),
            HAS_AMPLITUDE=flat_amplitude is not None,
            HAS_V_INIT=v_init is not None,
            SOFT_RESET=neuron.v_reset is None,
            **options(save),
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
    with torch.cuda.device_of(grad_y):
        lif_bwd_kernel[(triton.cdiv(N, BLOCK),)](
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
            **options(neuron.save),
        )
