"""Triton twins of csrc/cpu/lif: the same contract (csrc/core/lif.h), the same bits.

A program owns a tile: BLOCK neighbouring columns of some rows of neurons, which share the columns'
parameters. It walks the rows, and for each the T timesteps; state stays in registers and nothing is
shared between programs. Time is walked in chunks of CHUNK steps that are unrolled, so that the
loads of a chunk are in flight together. Launch with enable_fp_fusion=False: a fused multiply-add
rounds once where the other backends round twice, and flips spikes.
"""

import triton
import triton.language as tl


@triton.jit
def _in_window(distance, width):
    return tl.abs(distance) <= 0.5 * width


# alpha * e / (1 + e)^2 with e = exp(-abs(alpha * d)), which is the square of
# h = exp(-abs(alpha * d) / 2): h is no denormal where the slope is none. The error of tl.exp grows
# with its argument, so whole powers of two are taken out of the argument first.
@triton.jit
def _sigmoid_slope(distance, alpha):
    z = tl.abs(alpha * distance)
    lost = tl.fma(tl.zeros_like(distance) + alpha, tl.abs(distance), -z)  # in rounding z
    lost = tl.where(z < 400.0, lost, 0.0)
    half = 0.5 * tl.where(z > 400.0, 400.0, z)
    n = tl.floor(half * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, so that the first product is exact.
    h = tl.exp((n * 0.693145751953125 - half) + n * 1.428606765330187e-06) * tl.exp2(-n)
    return (alpha - alpha * lost) * h * h / ((1.0 + h * h) * (1.0 + h * h))


# d spike / d h (docs/lif.md). distance is h - v_threshold; for ternary spikes |h| - v_threshold.
# A division here is an approximation on a card, so 1 / width comes from the host.
@triton.jit
def _surrogate_derivative(distance, scale, inverse_scale, SURROGATE: tl.constexpr):
    if SURROGATE == "rectangular":
        slope = tl.where(_in_window(distance, scale), inverse_scale, 0.0)
    elif SURROGATE == "triangle":
        inside = scale - 2.0 * tl.abs(distance)
        slope = tl.where(inside > 0.0, inside / scale * 2.0 / scale, 0.0)
    elif SURROGATE == "atan":
        z = 1.5707963267948966 * (scale * distance)
        square = z * z
        # The square may overflow where the quotient does not, which is 1 / (2 (pi/2)^2 alpha d^2).
        far = 0.202642367284675 / distance / scale / distance
        slope = tl.where(square < float("inf"), 0.5 * scale / (1.0 + square), far)
    else:
        tl.static_assert(SURROGATE == "sigmoid")
        slope = _sigmoid_slope(distance, scale)
    return slope


# The sign bit: only ternary spikes look at it.
@triton.jit
def _is_negative(h):
    return h.to(tl.int32, bitcast=True) < 0


@triton.jit
def _with_sign(x, h, TERNARY: tl.constexpr):
    if TERNARY:
        x = tl.where(_is_negative(h), -x, x)
    return x


# h - v_threshold, with the sign of the spike, where a potential v fires.
@triton.jit
def _subtract(h, v, v_threshold, TERNARY: tl.constexpr):
    fires = _with_sign(v, v, TERNARY) >= v_threshold
    return tl.where(fires, h - _with_sign(v_threshold, v, TERNARY), h)


# h[t] from v[t-1] and x[t]. With the delayed soft reset, v[t-1] is h[t-1].
@triton.jit
def _charge(decay, v, x, v_threshold, RESET: tl.constexpr, TERNARY: tl.constexpr):
    h = decay * v + x.to(tl.float32)
    if RESET == "soft_delayed":
        h = _subtract(h, v, v_threshold, TERNARY)
    return h


# v[t] from h[t] (Eq. 6).
@triton.jit
def _reset(h, spike, v_threshold, v_reset, RESET: tl.constexpr, TERNARY: tl.constexpr):
    if RESET == "hard":
        v = tl.where(spike, v_reset, h)
    elif RESET == "soft":
        v = _subtract(h, h, v_threshold, TERNARY)
    else:
        tl.static_assert(RESET == "none" or RESET == "soft_delayed")
        v = h
    return v


@triton.jit
def _load_parameter(
    ptr, otherwise, column, lane, mask, inner, size, HAS: tl.constexpr, WIDE: tl.constexpr
):
    if HAS:
        # Lanes divide in 32 bits, unless a sample has more neurons than that.
        column = column % (tl.cast(inner, tl.int64) * size)
        if not WIDE:
            column = column.to(tl.int32)
        index = ((column + lane) // inner) % size
        value = tl.load(ptr + index, mask=mask, other=0.0)
    else:
        value = tl.zeros(lane.shape, tl.float32) + otherwise
    return value


@triton.jit
def _load_or_zero(ptr, first, lane, mask, HAS: tl.constexpr):
    if HAS:
        value = tl.load(ptr + first + lane, mask=mask, other=0.0)
    else:
        value = tl.zeros(lane.shape, tl.float32)
    return value


# Sizes that vary from layer to layer: one kernel is compiled for all of them.
_SIZES = (
    "T rows_per_chunk columns amplitude_inner amplitude_size decay_inner decay_size "
    "v_threshold_inner v_threshold_size"
).split()


@triton.jit(do_not_specialize=_SIZES)
def lif_fwd_kernel(
    x_ptr,  # [T, N], x_stride_t apart
    amplitude_ptr,  # [amplitude_size]
    decay_ptr,  # [decay_size]
    v_threshold_ptr,  # [v_threshold_size]
    v_init_ptr,  # [N]
    y_ptr,  # [T, N]
    v_last_ptr,  # [N]
    saved_ptr,  # SAVE 1: [ceil(T / 4), N] words of bits; SAVE 2: float32 [ceil(T / 8) - 1, N]
    T,
    N,
    x_stride_t,
    row,  # neurons of a row
    rows_per_chunk,
    columns,  # tiles side by side
    amplitude_inner,
    amplitude_size,
    decay_inner,
    decay_size,
    v_threshold_inner,
    v_threshold_size,
    decay_value,
    v_threshold_value,
    v_reset,
    width,  # of the rectangular surrogate
    WIDE: tl.constexpr,  # a sample has about 2^31 neurons or more
    HAS_AMPLITUDE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    HAS_V_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    KEEP_STATE: tl.constexpr,
    RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    column = (tl.program_id(0) % columns).to(tl.int64) * BLOCK
    row_begin = (tl.program_id(0) // columns).to(tl.int64) * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, tl.cdiv(N, row))
    lane = tl.arange(0, BLOCK)
    live_columns = lane < tl.minimum(row - column, BLOCK).to(tl.int32)
    amplitude = _load_parameter(
        amplitude_ptr, 1.0, column, lane, live_columns,
        amplitude_inner, amplitude_size, HAS_AMPLITUDE, WIDE,
    )  # fmt: skip
    decay = _load_parameter(
        decay_ptr, decay_value, column, lane, live_columns,
        decay_inner, decay_size, HAS_DECAY, WIDE,
    )  # fmt: skip
    v_threshold = _load_parameter(
        v_threshold_ptr, v_threshold_value, column, lane, live_columns,
        v_threshold_inner, v_threshold_size, HAS_V_THRESHOLD, WIDE,
    )  # fmt: skip
    BITS: tl.constexpr = 4 if TERNARY else 2
    for r in range(row_begin, row_end):
        first = r * row + column
        neurons = tl.minimum(tl.minimum(N - first, row - column), BLOCK).to(tl.int32)
        mask = lane < neurons
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
                h = _charge(decay, v, x, v_threshold, RESET, TERNARY)
                distance = _with_sign(h, h, TERNARY) - v_threshold
                spike = _with_sign(h, h, TERNARY) >= v_threshold
                y = tl.where(spike, _with_sign(amplitude, h, TERNARY), 0.0)
                tl.store(y_ptr + (t * N + first) + lane, y.to(y_ptr.dtype.element_ty), mask=live)
                v = tl.where(t < T, _reset(h, spike, v_threshold, v_reset, RESET, TERNARY), v)
                if SAVE == 1:
                    one = tl.where(t < T, 1, 0)
                    bits |= tl.where(spike, one << (BITS * k), 0)
                    bits |= tl.where(_in_window(distance, width), one << (BITS * k + 1), 0)
                    if TERNARY:
                        bits |= tl.where(_is_negative(h), one << (BITS * k + 2), 0)
            if SAVE == 1:
                tl.store(
                    saved_ptr + (tl.cast(t0 // CHUNK, tl.int64) * N + first) + lane,
                    bits.to(saved_ptr.dtype.element_ty),
                    mask=mask,
                )
        if KEEP_STATE:
            tl.store(v_last_ptr + first + lane, v, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def lif_bwd_kernel(
    grad_y_ptr,  # [T, N]
    grad_v_last_ptr,  # [N]
    x_ptr,  # [T, N], x_stride_t apart (SAVE 2 only)
    amplitude_ptr,  # [amplitude_size]
    decay_ptr,  # [decay_size]
    v_threshold_ptr,  # [v_threshold_size]
    v_init_ptr,  # [N]
    saved_ptr,  # as in lif_fwd_kernel
    grad_x_ptr,  # [T, N]
    grad_amplitude_ptr,  # [chunks, row]: sums over time and the rows of a tile
    grad_decay_ptr,  # [chunks, row]
    grad_v_threshold_ptr,  # [chunks, row]
    grad_v_init_ptr,  # [N]
    T,
    N,
    x_stride_t,
    row,  # neurons of a row
    rows_per_chunk,
    columns,  # tiles side by side
    amplitude_inner,
    amplitude_size,
    decay_inner,
    decay_size,
    v_threshold_inner,
    v_threshold_size,
    decay_value,
    v_threshold_value,
    v_reset,
    scale,
    inverse_scale,
    WIDE: tl.constexpr,  # a sample has about 2^31 neurons or more
    HAS_AMPLITUDE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    HAS_V_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    HAS_GRAD_V_LAST: tl.constexpr,
    WANT_AMPLITUDE: tl.constexpr,
    WANT_DECAY: tl.constexpr,
    WANT_V_THRESHOLD: tl.constexpr,
    WANT_V_INIT: tl.constexpr,
    RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    SURROGATE: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    column = (tl.program_id(0) % columns).to(tl.int64) * BLOCK
    chunk_of_rows = (tl.program_id(0) // columns).to(tl.int64)
    row_begin = chunk_of_rows * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, tl.cdiv(N, row))
    lane = tl.arange(0, BLOCK)
    live_columns = lane < tl.minimum(row - column, BLOCK).to(tl.int32)
    amplitude = _load_parameter(
        amplitude_ptr, 1.0, column, lane, live_columns,
        amplitude_inner, amplitude_size, HAS_AMPLITUDE, WIDE,
    )  # fmt: skip
    decay = _load_parameter(
        decay_ptr, decay_value, column, lane, live_columns,
        decay_inner, decay_size, HAS_DECAY, WIDE,
    )  # fmt: skip
    v_threshold = _load_parameter(
        v_threshold_ptr, v_threshold_value, column, lane, live_columns,
        v_threshold_inner, v_threshold_size, HAS_V_THRESHOLD, WIDE,
    )  # fmt: skip
    BITS: tl.constexpr = 4 if TERNARY else 2
    LEARN: tl.constexpr = WANT_DECAY or WANT_V_THRESHOLD
    grad_amplitude = tl.zeros([BLOCK], tl.float32)
    grad_decay = tl.zeros([BLOCK], tl.float32)
    grad_v_threshold = tl.zeros([BLOCK], tl.float32)
    chunks = (T + CHUNK - 1) // CHUNK
    for r in range(row_begin, row_end):
        first = r * row + column
        neurons = tl.minimum(tl.minimum(N - first, row - column), BLOCK).to(tl.int32)
        mask = lane < neurons
        # dL/dv[t] on entering a step; decay * grad_h[t], which is dL/dv[t-1], on leaving it.
        q = _load_or_zero(grad_v_last_ptr, first, lane, mask, HAS_GRAD_V_LAST)
        for reversed_chunk in range(0, chunks):
            chunk = chunks - 1 - reversed_chunk
            t0 = chunk * CHUNK
            h = ()
            v_before = ()
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
                    h_k = _charge(decay, v, x, v_threshold, RESET, TERNARY)
                    spike = _with_sign(h_k, h_k, TERNARY) >= v_threshold
                    v_before = v_before + (v,)
                    v = _reset(h_k, spike, v_threshold, v_reset, RESET, TERNARY)
                    h = h + (h_k,)
            # Sums of the chunk: one addition of many small ones keeps their precision.
            chunk_decay = tl.zeros([BLOCK], tl.float32)
            chunk_v_threshold = tl.zeros([BLOCK], tl.float32)
            for k in tl.static_range(CHUNK - 1, -1, -1):
                t = tl.cast(t0 + k, tl.int64)
                live = lane < tl.where(t < T, neurons, 0)
                g = tl.load(grad_y_ptr + (t * N + first) + lane, mask=live, other=0.0).to(
                    tl.float32
                )
                if SAVE == 1:
                    spike = ((bits >> (BITS * k)) & 1) != 0
                    window = ((bits >> (BITS * k + 1)) & 1) != 0
                    slope = tl.where(window, inverse_scale, 0.0)
                    through_spike = tl.where(window, amplitude * g * slope, 0.0)
                    grad_h = through_spike
                    if TERNARY:
                        g = tl.where(((bits >> (BITS * k + 2)) & 1) != 0, -g, g)
                else:
                    h_k = h[k]
                    magnitude = _with_sign(h_k, h_k, TERNARY)
                    spike = magnitude >= v_threshold
                    slope = _surrogate_derivative(
                        magnitude - v_threshold, scale, inverse_scale, SURROGATE
                    )
                    g = _with_sign(g, h_k, TERNARY)
                    # Gradient that reaches whether the neuron fires.
                    grad_fires = amplitude * g
                    if not DETACH_RESET:
                        if RESET == "soft":
                            grad_fires += _with_sign(-v_threshold, h_k, TERNARY) * q
                        elif RESET == "hard":
                            grad_fires += (v_reset - h_k) * q
                    through_spike = tl.where(slope == 0.0, 0.0, grad_fires * slope)
                    grad_h = _with_sign(through_spike, h_k, TERNARY)
                if RESET == "hard":
                    grad_h += tl.where(spike, 0.0, q)
                else:
                    grad_h += q
                tl.store(
                    grad_x_ptr + (t * N + first) + lane,
                    grad_h.to(grad_x_ptr.dtype.element_ty),
                    mask=live,
                )
                if LEARN:
                    learned = through_spike
                    if RESET == "soft":
                        learned += tl.where(spike, _with_sign(q, h_k, TERNARY), 0.0)
                    chunk_decay += tl.where(t < T, grad_h * v_before[k], 0.0)
                    chunk_v_threshold -= tl.where(t < T, learned, 0.0)
                grad_v = decay * grad_h
                if RESET == "soft_delayed" and SAVE == 2:
                    # The timestep began with the reset of the spike before it.
                    v_k = v_before[k]
                    magnitude = _with_sign(v_k, v_k, TERNARY)
                    g_before = _with_sign(grad_h, v_k, TERNARY)
                    through_reset = tl.zeros([BLOCK], tl.float32)
                    if not DETACH_RESET:
                        slope = _surrogate_derivative(
                            magnitude - v_threshold, scale, inverse_scale, SURROGATE
                        )
                        through_reset = tl.where(slope == 0.0, 0.0, -v_threshold * g_before * slope)
                        grad_v += _with_sign(through_reset, v_k, TERNARY)
                    if LEARN:
                        learned = through_reset + tl.where(magnitude >= v_threshold, g_before, 0.0)
                        chunk_v_threshold -= tl.where(t < T, learned, 0.0)
                q = tl.where(t < T, grad_v, q)
                grad_amplitude += tl.where(spike, g, 0.0)
            grad_decay += chunk_decay
            grad_v_threshold += chunk_v_threshold
        if WANT_V_INIT:
            tl.store(grad_v_init_ptr + first + lane, q, mask=mask)
    partial = chunk_of_rows * row + column
    if WANT_AMPLITUDE:
        tl.store(grad_amplitude_ptr + partial + lane, grad_amplitude, mask=live_columns)
    if WANT_DECAY:
        tl.store(grad_decay_ptr + partial + lane, grad_decay, mask=live_columns)
    if WANT_V_THRESHOLD:
        tl.store(grad_v_threshold_ptr + partial + lane, grad_v_threshold, mask=live_columns)
