"""Triton twins of csrc/cpu/lif_kernel.h: the same contract (csrc/core/lif.h), the same bits.

A program owns BLOCK neighbouring neurons for all T timesteps; their state stays in registers and
nothing is shared between programs. Time is walked in chunks of CHUNK steps that are unrolled, so
that the loads of a chunk are in flight together. Launch with enable_fp_fusion=False: a fused
multiply-add rounds once where the other backends round twice, and flips spikes.
"""

import triton
import triton.language as tl


@triton.jit
def _in_window(distance, width):
    return tl.abs(distance) <= 0.5 * width


# d spike / d h; distance = h - v_threshold (docs/lif.md).
@triton.jit
def _surrogate_derivative(distance, scale, SURROGATE: tl.constexpr):
    if SURROGATE == "rectangular":
        slope = tl.where(_in_window(distance, scale), 1.0 / scale, 0.0)
    elif SURROGATE == "triangle":
        inside = 1.0 - 2.0 * tl.abs(distance) / scale
        slope = tl.where(inside > 0.0, inside * 2.0 / scale, 0.0)
    elif SURROGATE == "atan":
        z = 1.5707963267948966 * scale * distance
        slope = 0.5 * scale / (1.0 + z * z)
    else:
        tl.static_assert(SURROGATE == "sigmoid")
        s = 1.0 / (1.0 + tl.exp(-scale * distance))
        slope = scale * s * (1.0 - s)
    return slope


# v[t] from h[t] (Eq. 6).
@triton.jit
def _reset(h, spike, v_threshold, v_reset, SOFT_RESET: tl.constexpr):
    if SOFT_RESET:
        v = tl.where(spike, h - v_threshold, h)
    else:
        v = tl.where(spike, v_reset, h)
    return v


@triton.jit
def _load_amplitude(amplitude_ptr, first, lane, mask, inner, size, HAS_AMPLITUDE: tl.constexpr):
    if HAS_AMPLITUDE:
        index = ((first + lane) // inner) % size
        amplitude = tl.load(amplitude_ptr + index, mask=mask, other=0.0)
    else:
        amplitude = tl.full(lane.shape, 1.0, tl.float32)
    return amplitude


@triton.jit
def _load_or_zero(ptr, first, lane, mask, HAS: tl.constexpr):
    if HAS:
        value = tl.load(ptr + first + lane, mask=mask, other=0.0)
    else:
        value = tl.zeros(lane.shape, tl.float32)
    return value


@triton.jit(do_not_specialize=["T", "amplitude_inner", "amplitude_size"])
def lif_fwd_kernel(
    x_ptr,  # [T, N], x_stride_t apart
    amplitude_ptr,  # [amplitude_size]
    v_init_ptr,  # [N]
    y_ptr,  # [T, N]
    v_last_ptr,  # [N]
    saved_ptr,  # SAVE 1: uint8 [ceil(T / 4), N]; SAVE 2: float32 [ceil(T / 8) - 1, N]
    T,
    N,
    x_stride_t,
    amplitude_inner,
    amplitude_size,
    decay,
    v_threshold,
    v_reset,
    width,  # of the rectangular surrogate
    HAS_AMPLITUDE: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    neurons = tl.minimum(N - first, BLOCK).to(tl.int32)
    mask = lane < neurons
    amplitude = _load_amplitude(
        amplitude_ptr, first, lane, mask, amplitude_inner, amplitude_size, HAS_AMPLITUDE
    ).to(y_ptr.dtype.element_ty)
    v = _load_or_zero(v_init_ptr, first, lane, mask, HAS_V_INIT)
    for t0 in range(0, T, CHUNK):
        if SAVE == 2:
            if t0 > 0:
                tl.store(
                    saved_ptr + (tl.cast(t0 // CHUNK - 1, tl.int64) * N + first) + lane,
                    v,
                    mask=mask,
                )
        bits = tl.zeros([BLOCK], tl.int32)
        for k in tl.static_range(CHUNK):
            t = tl.cast(t0 + k, tl.int64)
            live = lane < tl.where(t < T, neurons, 0)
            x = tl.load(x_ptr + (t * x_stride_t + first) + lane, mask=live, other=0.0)
            h = decay * v + x.to(tl.float32)
            spike = h >= v_threshold
            y = tl.where(spike, amplitude, 0.0).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + (t * N + first) + lane, y, mask=live)
            v = tl.where(t < T, _reset(h, spike, v_threshold, v_reset, SOFT_RESET), v)
            if SAVE == 1:
                one = tl.where(t < T, 1, 0)
                bits |= tl.where(spike, one << (2 * k), 0)
                bits |= tl.where(_in_window(h - v_threshold, width), one << (2 * k + 1), 0)
        if SAVE == 1:
            tl.store(
                saved_ptr + (tl.cast(t0 // CHUNK, tl.int64) * N + first) + lane,
                bits.to(tl.uint8),
                mask=mask,
            )
    tl.store(v_last_ptr + first + lane, v, mask=mask)


@triton.jit(do_not_specialize=["T", "amplitude_inner", "amplitude_size"])
def lif_bwd_kernel(
    grad_y_ptr,  # [T, N]
    grad_v_last_ptr,  # [N]
    x_ptr,  # [T, N], x_stride_t apart (SAVE 2 only)
    amplitude_ptr,  # [amplitude_size]
    v_init_ptr,  # [N]
    saved_ptr,  # as in lif_fwd_kernel
    grad_x_ptr,  # [T, N]
    grad_v_init_ptr,  # [N]
    grad_amplitude_ptr,  # [N]: sum over t of grad_y * o
    T,
    N,
    x_stride_t,
    amplitude_inner,
    amplitude_size,
    decay,
    v_threshold,
    v_reset,
    scale,
    HAS_AMPLITUDE: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    HAS_GRAD_V_LAST: tl.constexpr,
    SOFT_RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    SURROGATE: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    neurons = tl.minimum(N - first, BLOCK).to(tl.int32)
    mask = lane < neurons
    amplitude = _load_amplitude(
        amplitude_ptr, first, lane, mask, amplitude_inner, amplitude_size, HAS_AMPLITUDE
    )
    grad_amplitude = tl.zeros([BLOCK], tl.float32)
    # dL/dv[t] on entering a step; decay * grad_h[t], which is dL/dv[t-1], on leaving it.
    q = _load_or_zero(grad_v_last_ptr, first, lane, mask, HAS_GRAD_V_LAST)
    chunks = (T + CHUNK - 1) // CHUNK
    for reversed_chunk in range(0, chunks):
        chunk = chunks - 1 - reversed_chunk
        t0 = chunk * CHUNK
        h = ()
        bits = tl.zeros([BLOCK], tl.int32)
        if SAVE == 1:
            bits = tl.load(
                saved_ptr + (tl.cast(chunk, tl.int64) * N + first) + lane, mask=mask, other=0
            ).to(tl.int32)
        else:
            v = tl.zeros([BLOCK], tl.float32)
            if chunk > 0:
                v = tl.load(
                    saved_ptr + (tl.cast(chunk - 1, tl.int64) * N + first) + lane,
                    mask=mask,
                    other=0.0,
                )
            elif HAS_V_INIT:
                v = tl.load(v_init_ptr + first + lane, mask=mask, other=0.0)
            for k in tl.static_range(CHUNK):
                t = tl.cast(t0 + k, tl.int64)
                x = tl.load(
                    x_ptr + (t * x_stride_t + first) + lane,
                    mask=lane < tl.where(t < T, neurons, 0),
                    other=0.0,
                )
                h_k = decay * v + x.to(tl.float32)
                v = _reset(h_k, h_k >= v_threshold, v_threshold, v_reset, SOFT_RESET)
                h = h + (h_k,)
        for k in tl.static_range(CHUNK - 1, -1, -1):
            t = tl.cast(t0 + k, tl.int64)
            live = lane < tl.where(t < T, neurons, 0)
            g = tl.load(grad_y_ptr + (t * N + first) + lane, mask=live, other=0.0).to(tl.float32)
            grad_o = amplitude * g
            if SAVE == 1:
                spike = ((bits >> (2 * k)) & 1) != 0
                window = ((bits >> (2 * k + 1)) & 1) != 0
                slope = tl.where(window, 1.0 / scale, 0.0)
            else:
                spike = h[k] >= v_threshold
                slope = _surrogate_derivative(h[k] - v_threshold, scale, SURROGATE)
                if not DETACH_RESET:
                    if SOFT_RESET:
                        grad_o += -v_threshold * q
                    else:
                        grad_o += (v_reset - h[k]) * q
            through_spike = tl.where(slope == 0.0, 0.0, grad_o * slope)
            if SOFT_RESET:
                grad_h = through_spike + q
            else:
                grad_h = through_spike + tl.where(spike, 0.0, q)
            tl.store(
                grad_x_ptr + (t * N + first) + lane,
                grad_h.to(grad_x_ptr.dtype.element_ty),
                mask=live,
            )
            q = tl.where(t < T, decay * grad_h, q)
            grad_amplitude += tl.where(spike, g, 0.0)
    tl.store(grad_v_init_ptr + first + lane, q, mask=mask)
    if HAS_AMPLITUDE:
        tl.store(grad_amplitude_ptr + first + lane, grad_amplitude, mask=mask)
