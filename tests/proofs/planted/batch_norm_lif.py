"""Batch norm and LIF neurons in Triton, in the interpreter."""

from planted.bug import Bug

KERNELS = "realspike_ops/kernels/batch_norm_lif.py"
LIF_KERNELS = "realspike_ops/kernels/lif.py"
LAUNCHES = "realspike_ops/ops/batch_norm_lif_cuda.py"
TESTS = "tests/batch_norm_lif/test_batch_norm_lif_triton.py"

BUGS = [
    Bug(
        "norm-triton-residual-before-the-norm",
        LIF_KERNELS,
        "x = (x - mean) * scale + bias\n        if len(tiles) > CHUNK:\n"
        "            x = x + tiles[CHUNK + k].to(tl.float32)\n",
        "if len(tiles) > CHUNK:\n            x = x + tiles[CHUNK + k].to(tl.float32)\n"
        "        x = (x - mean) * scale + bias\n",
        TESTS,
        "currents_by_hand",
    ),
    Bug(
        "norm-triton-residual-of-another-step",
        LIF_KERNELS,
        "tiles[CHUNK + k]",
        "tiles[2 * CHUNK - 1 - k]",
        TESTS,
        "every_neuron",
    ),
    Bug(
        "norm-triton-scale-without-weight",
        LIF_KERNELS,
        'WEIGHT: tl.constexpr = "none" if weight_ptr is None else NORM',
        'WEIGHT: tl.constexpr = "none"',
        TESTS,
        "every_neuron",
    ),
    Bug(
        "norm-triton-sums-beyond-the-last-step",
        LIF_KERNELS,
        "of_step = tl.where(t < T, grad_h, 0.0)",
        "of_step = grad_h",
        TESTS,
        "every_neuron",
    ),
    Bug(
        "norm-triton-moment-about-zero",
        LIF_KERNELS,
        "of_step * (currents[k].to(tl.float32) - mean)",
        "of_step * currents[k].to(tl.float32)",
        TESTS,
        "every_neuron",
    ),
    Bug(
        "norm-triton-variance-without-the-means",
        KERNELS,
        "        squares += n * distance * distance\n",
        "        squares += 0.0 * distance\n",
        TESTS,
        "moments",
    ),
    Bug(
        "norm-triton-runs-combined-without-their-means",
        KERNELS,
        "squares += new_squares + distance * distance * (count * share)",
        "squares += new_squares",
        TESTS,
        "moments",
    ),
    Bug(
        "norm-triton-values-without-their-offset",
        KERNELS,
        "offset = tl.load(x_ptr + first + lane, mask=lane < neurons, other=0.0).to(tl.float32)",
        "offset = tl.zeros([BLOCK], tl.float32)",
        TESTS,
        "moments",
    ),
    Bug(
        "norm-triton-running-variance-is-biased",
        KERNELS,
        "unbiased = var * (count / tl.maximum(count - 1.0, 1.0))",
        "unbiased = var",
        TESTS,
        "statistics_by_hand",
    ),
    Bug(
        "norm-triton-empty-batches-move-running-statistics",
        KERNELS,
        "mask = channel < tl.where(count > 0.0, C, 0)",
        "mask = channel < C",
        TESTS,
        "no_value",
    ),
    Bug(
        "norm-triton-momentum-of-the-old",
        KERNELS,
        "(old + momentum * (new - old))",
        "(new + momentum * (old - new))",
        TESTS,
        "statistics_by_hand",
    ),
    Bug(
        "norm-triton-equal-timesteps-count-once",
        LAUNCHES,
        "copies = T if stride_t == 0 else 1",
        "copies = 1",
        TESTS,
        "equal_timesteps",
    ),
    Bug(
        "norm-triton-gradient-without-the-mean",
        KERNELS,
        "+ linear * (x[k].to(tl.float32) - mean) + constant",
        "+ linear * (x[k].to(tl.float32) - mean)",
        TESTS,
        "gradient_of_x",
    ),
    Bug(
        "norm-triton-gradient-of-a-constant-x-walks-on",
        LAUNCHES,
        "T = grad_x.shape[0] if stride_t == 0 else 1",
        "T = 1",
        TESTS,
        "gradient_of_x",
    ),
]
