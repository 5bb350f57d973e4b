"""LIF inference that emits one bit per neuron; the layout of the words is core/pack_spikes.h's.

A program owns a tile of PIXELS pixels by the 32 channels of one word, and walks the timesteps with
the state in registers; it loads the next timestep before it stores the words of this one. A thread
loads 16 bytes of neighbours: of pixels, or in channels_last of channels. Launch with
enable_fp_fusion=False, as every LIF kernel.
"""

import triton
import triton.language as tl

from realspike_ops.kernels.lif import _charge, _is_negative, _reset, _with_sign


@triton.jit
def _load_tile(ptr, otherwise, index, mask, HAS: tl.constexpr):
    if HAS:
        value = tl.load(ptr + index, mask=mask, other=0.0)
    else:
        value = tl.zeros(index.shape, tl.float32) + otherwise
    return value


@triton.jit
def _pack(spike, channel):
    # Each bit occurs once in a word, so that a sum sets it.
    return tl.sum(tl.where(spike, 1 << channel, 0), axis=1)


# A kernel is compiled for whether 16 divides the sizes of a map: then neighbours are one load.
_SIZES = "T words decay_inner decay_size v_threshold_inner v_threshold_size".split()


@triton.jit
def _load_step(x_ptr, x_stride_t, t, T, index, mask):
    t = tl.cast(t, tl.int64)
    return tl.load(x_ptr + t * x_stride_t + index, mask=tl.where(t < T, mask, False), other=0.0)


@triton.jit(do_not_specialize=_SIZES)
def lif_packed_fwd_kernel(
    x_ptr,  # [T, B, C, P] by strides; a timestep is dense
    decay_ptr,  # [decay_size]
    v_threshold_ptr,  # [v_threshold_size]
    v_init_ptr,  # [B, C, P], laid out as a timestep
    packed_ptr,  # [T, B, P, words]; TERNARY: [2, T, B, P, words], negative spikes last
    v_last_ptr,  # [B, C, P], laid out as a timestep
    T,
    N,  # B * C * P
    x_stride_t,
    C,
    P,
    words,
    stride_c,
    stride_p,
    decay_inner,
    decay_size,
    v_threshold_inner,
    v_threshold_size,
    decay_value,
    v_threshold_value,
    v_reset,
    WIDE: tl.constexpr,  # a sample has about 2^31 neurons or more
    HAS_DECAY: tl.constexpr,
    HAS_V_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    KEEP_STATE: tl.constexpr,
    RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    PIXELS: tl.constexpr,
):
    tiles = tl.cdiv(P, PIXELS)
    w = tl.program_id(0) % words
    pixel = (tl.program_id(0) // words % tiles) * PIXELS + tl.arange(0, PIXELS)
    b = (tl.program_id(0) // words // tiles).to(tl.int64)
    channel = tl.arange(0, 32)
    live_pixels = pixel < P
    mask = live_pixels[:, None] & (w * 32 + channel < C)[None, :]
    within_c, within_p = (w * 32 + channel)[None, :], pixel[:, None]
    if WIDE:
        within_c, within_p = within_c.to(tl.int64), within_p.to(tl.int64)
    within = within_c * stride_c + within_p * stride_p  # the sample: parameters repeat with it
    index = b * (tl.cast(C, tl.int64) * P) + within
    decay = _load_tile(
        decay_ptr, decay_value, (within // decay_inner) % decay_size, mask, HAS_DECAY
    )
    v_threshold = _load_tile(
        v_threshold_ptr,
        v_threshold_value,
        (within // v_threshold_inner) % v_threshold_size,
        mask,
        HAS_V_THRESHOLD,
    )
    v = _load_tile(v_init_ptr, 0.0, index, mask, HAS_V_INIT)
    ahead = _load_step(x_ptr, x_stride_t, 0, T, index, mask)
    for t in range(0, T):
        x = ahead
        ahead = _load_step(x_ptr, x_stride_t, t + 1, T, index, mask)
        h = _charge(decay, v, x, v_threshold, RESET, TERNARY)
        spike = (_with_sign(h, h, TERNARY) >= v_threshold) & mask
        v = _reset(h, spike, v_threshold, v_reset, RESET, TERNARY)
        word = ((tl.cast(t, tl.int64) * (N // C) + b * P) + pixel) * words + w
        if TERNARY:
            negative = _is_negative(h)
            tl.store(packed_ptr + word, _pack(spike & ~negative, channel[None, :]), live_pixels)
            tl.store(
                packed_ptr + (tl.cast(T, tl.int64) * (N // C) * words + word),
                _pack(spike & negative, channel[None, :]),
                live_pixels,
            )
        else:
            tl.store(packed_ptr + word, _pack(spike, channel[None, :]), live_pixels)
    if KEEP_STATE:
        tl.store(v_last_ptr + index, v, mask=mask)
