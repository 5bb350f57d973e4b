"""Triton twins of csrc/cpu/lif: the same contract (csrc/core/lif.h), the same bits.

A program owns a tile: BLOCK neighbouring columns of some rows of neurons, which share the columns'
parameters. It walks the rows, and for each the T timesteps; state stays in registers and nothing is
shared between programs. Time is walked in chunks of CHUNK steps. All loads of a chunk come before
its first store, since no load may move above a store to memory that might be the same; with
PREFETCH those of the next chunk do too, whether it is of this row or of the next one.

With NORM the current is a batch norm of x, and a residual behind it (csrc/core/batch_norm_lif.h).
Launch with enable_fp_fusion=False: a fused multiply-add rounds once where the other backends round
twice, and flips spikes.
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


# KIND of a parameter: "none" (one value for all), "dense" (a column of the row has a value of its
# own), "tile" (all columns of a tile have the same value), "gather" (anything else).
@triton.jit
def _load_parameter(
    ptr, otherwise, column, lane, mask, inner, size, KIND: tl.constexpr, WIDE: tl.constexpr
):
    if KIND == "dense":
        value = tl.load(ptr + column + lane, mask=mask, other=0.0)
    elif KIND == "tile":
        if not WIDE:
            column = column.to(tl.int32)
        value = tl.load(ptr + (column // inner) % size) + tl.zeros(lane.shape, ptr.dtype.element_ty)
    elif KIND == "gather":
        # Lanes divide in 32 bits, unless a sample has more neurons than that.
        column = column % (tl.cast(inner, tl.int64) * size)
        if not WIDE:
            column = column.to(tl.int32)
        index = ((column + lane) // inner) % size
        value = tl.load(ptr + index, mask=mask, other=0.0)
    else:
        tl.static_assert(KIND == "none")
        value = tl.zeros(lane.shape, tl.float32) + otherwise
    return value


@triton.jit
def _load_or_zero(ptr, first, lane, mask, HAS: tl.constexpr):
    if HAS:
        value = tl.load(ptr + first + lane, mask=mask, other=0.0)
    else:
        value = tl.zeros(lane.shape, tl.float32)
    return value


# The mean of a column's channel, its weight / sqrt(var + eps), and its bias.
@triton.jit
def _load_norm(
    mean_ptr, inv_std_ptr, weight_ptr, bias_ptr, column, lane, mask, inner, size,
    NORM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    WEIGHT: tl.constexpr = "none" if weight_ptr is None else NORM
    BIAS: tl.constexpr = "none" if bias_ptr is None else NORM
    mean = _load_parameter(mean_ptr, 0.0, column, lane, mask, inner, size, NORM, WIDE)
    scale = _load_parameter(inv_std_ptr, 1.0, column, lane, mask, inner, size, NORM, WIDE)
    scale *= _load_parameter(weight_ptr, 1.0, column, lane, mask, inner, size, WEIGHT, WIDE)
    bias = _load_parameter(bias_ptr, 0.0, column, lane, mask, inner, size, BIAS, WIDE)
    return mean, scale, bias


# How many rows, the last of them perhaps short, hold `size` > 0 neurons. tl.cdiv adds first, beyond
# 32 bits where the neurons of all rows are just within them.
@triton.jit
def _count(size, row):
    return (size - 1) // row + 1


# Where a tile's columns lie in row r, and how many of them there are.
@triton.jit
def _place(r, row_end, row, column, N, BLOCK: tl.constexpr):
    first = r * row + column
    neurons = tl.minimum(tl.minimum(N - first, row - column), BLOCK)
    return first, tl.where(r < row_end, neurons, 0).to(tl.int32)


@triton.jit
def _load_steps(ptr, t0, T, stride_t, first, neurons, lane, CHUNK: tl.constexpr):
    tiles = ()
    for k in tl.static_range(CHUNK):
        t = tl.cast(t0 + k, tl.int64)
        live = lane < tl.where(t < T, neurons, 0)
        tiles = tiles + (tl.load(ptr + (t * stride_t + first) + lane, mask=live, other=0.0),)
    return tiles


# What a chunk's currents are made of: CHUNK tiles of x and, where there is one, of the residual.
@triton.jit
def _load_currents(
    x_ptr, x_stride_t, residual_ptr, residual_stride_t, t0, T, first, neurons, lane,
    CHUNK: tl.constexpr,
):  # fmt: skip
    tiles = _load_steps(x_ptr, t0, T, x_stride_t, first, neurons, lane, CHUNK)
    if residual_ptr is not None:
        tiles = tiles + _load_steps(
            residual_ptr, t0, T, residual_stride_t, first, neurons, lane, CHUNK
        )
    return tiles


@triton.jit
def _current(tiles, k: tl.constexpr, mean, scale, bias, CHUNK: tl.constexpr, NORM: tl.constexpr):
    x = tiles[k].to(tl.float32)
    if NORM != "none":
        x = (x - mean) * scale + bias
        if len(tiles) > CHUNK:
            x = x + tiles[CHUNK + k].to(tl.float32)
    return x


# Adds up the values of a tile that belong to one value of a parameter, to KEEP sums. BLOCK is
# GROUPS groups of KEEP runs of RUN neighbouring columns. A run has one value, and so have
# equal runs of all groups.
@triton.jit
def _fold(values, RUN: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    GROUPS: tl.constexpr = BLOCK // (RUN * KEEP)
    if RUN > 1:
        values = tl.sum(tl.reshape(values, (GROUPS * KEEP, RUN)), axis=1)
    if GROUPS > 1:
        values = tl.sum(tl.reshape(values, (GROUPS, KEEP)), axis=0)
    return tl.reshape(values, (KEEP,))


# Where a tile's sums lie among those of a chunk of rows, and how many these are.
@triton.jit
def _place_of_sums(tile, columns, row, RUN: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr):
    width = columns * KEEP if BLOCK > RUN * KEEP else _count(row, RUN).to(tl.int32)
    return tile * KEEP + tl.arange(0, KEEP), width


@triton.jit
def _store_sums(
    ptr, values, part, tile, columns, row,
    RUN: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    values = _fold(values, RUN, KEEP, BLOCK)
    index, width = _place_of_sums(tile, columns, row, RUN, KEEP, BLOCK)
    tl.store(ptr + part * width + index, values, mask=index < width)


# Sizes that vary from layer to layer: one kernel is compiled for all of them. Of the sizes of a
# parameter it is compiled for whether they are 1, and whether 16 divides them: neighbours in
# channels_last have neighbouring values, four of which are one load.
_SIZES = ["T", "rows_per_chunk", "columns"]


@triton.jit(do_not_specialize=_SIZES)
def lif_fwd_kernel(
    x_ptr,  # [T, N], x_stride_t apart
    residual_ptr,  # [T, N], residual_stride_t apart, or None
    mean_ptr,  # [norm_size]
    inv_std_ptr,  # [norm_size]
    weight_ptr,  # [norm_size], or None
    bias_ptr,  # [norm_size], or None
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
    residual_stride_t,
    row,  # neurons of a row
    rows_per_chunk,
    columns,  # tiles side by side
    norm_inner,
    norm_size,
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
    NORM: tl.constexpr,
    AMPLITUDE: tl.constexpr,
    DECAY: tl.constexpr,
    V_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    KEEP_STATE: tl.constexpr,
    RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    PREFETCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    column = (tl.program_id(0) % columns).to(tl.int64) * BLOCK
    row_begin = (tl.program_id(0) // columns).to(tl.int64) * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, _count(N, row))
    lane = tl.arange(0, BLOCK)
    live_columns = lane < tl.minimum(row - column, BLOCK).to(tl.int32)
    mean, scale, bias = _load_norm(
        mean_ptr, inv_std_ptr, weight_ptr, bias_ptr, column, lane, live_columns,
        norm_inner, norm_size, NORM, WIDE,
    )  # fmt: skip
    amplitude = _load_parameter(
        amplitude_ptr, 1.0, column, lane, live_columns,
        amplitude_inner, amplitude_size, AMPLITUDE, WIDE,
    )  # fmt: skip
    decay = _load_parameter(
        decay_ptr, decay_value, column, lane, live_columns, decay_inner, decay_size, DECAY, WIDE
    )
    v_threshold = _load_parameter(
        v_threshold_ptr, v_threshold_value, column, lane, live_columns,
        v_threshold_inner, v_threshold_size, V_THRESHOLD, WIDE,
    )  # fmt: skip
    BITS: tl.constexpr = 4 if TERNARY else 2
    chunks = tl.cdiv(T, CHUNK)
    if PREFETCH:
        first, neurons = _place(row_begin, row_end, row, column, N, BLOCK)
        ahead = _load_currents(
            x_ptr, x_stride_t, residual_ptr, residual_stride_t, 0, T, first, neurons, lane, CHUNK
        )
    for r in range(row_begin, row_end):
        first, neurons = _place(r, row_end, row, column, N, BLOCK)
        mask = lane < neurons
        v = _load_or_zero(v_init_ptr, first, lane, mask, HAS_V_INIT)
        for chunk in range(0, chunks):
            t0 = chunk * CHUNK
            if PREFETCH:
                tiles = ahead
                same_row = chunk + 1 < chunks
                next_first, next_neurons = _place(
                    tl.where(same_row, r, r + 1), row_end, row, column, N, BLOCK
                )
                ahead = _load_currents(
                    x_ptr, x_stride_t, residual_ptr, residual_stride_t,
                    tl.where(same_row, t0 + CHUNK, 0), T, next_first, next_neurons, lane, CHUNK,
                )  # fmt: skip
            else:
                tiles = _load_currents(
                    x_ptr, x_stride_t, residual_ptr, residual_stride_t, t0, T, first, neurons, lane,
                    CHUNK,
                )  # fmt: skip
            if SAVE == 2:
                if chunk > 0:
                    kept = tl.cast(chunk - 1, tl.int64) * N + first
                    tl.store(saved_ptr + kept + lane, v, mask=mask)
            bits = tl.zeros([BLOCK], tl.int32)
            for k in tl.static_range(CHUNK):
                t = tl.cast(t0 + k, tl.int64)
                live = lane < tl.where(t < T, neurons, 0)
                x = _current(tiles, k, mean, scale, bias, CHUNK, NORM)
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
                    saved_ptr + (tl.cast(chunk, tl.int64) * N + first) + lane,
                    bits.to(saved_ptr.dtype.element_ty),
                    mask=mask,
                )
        if KEEP_STATE:
            tl.store(v_last_ptr + first + lane, v, mask=mask)


# What backward reads of a chunk: CHUNK tiles of the gradient, those of the currents where they are
# needed, and the word of bits (SAVE 1) or the potential before the chunk (SAVE 2).
@triton.jit
def _load_kept(
    grad_y_ptr, x_ptr, x_stride_t, residual_ptr, residual_stride_t, v_init_ptr, saved_ptr,
    chunk, T, N, first, neurons, lane,
    HAS_V_INIT: tl.constexpr, SAVE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    currents = ()
    if x_ptr is not None:
        currents = _load_currents(
            x_ptr, x_stride_t, residual_ptr, residual_stride_t,
            chunk * CHUNK, T, first, neurons, lane, CHUNK,
        )  # fmt: skip
    gradients = _load_steps(grad_y_ptr, chunk * CHUNK, T, N, first, neurons, lane, CHUNK)
    if SAVE == 1:
        word = tl.cast(chunk, tl.int64) * N + first
        kept = tl.load(saved_ptr + word + lane, mask=lane < neurons, other=0)
    else:
        # The first chunk has none: it begins with v_init.
        saved = tl.cast(chunk - 1, tl.int64) * N + first
        later = lane < tl.where(chunk > 0, neurons, 0)
        kept = tl.load(saved_ptr + saved + lane, mask=later, other=0.0)
        if HAS_V_INIT:
            is_first = lane < tl.where(chunk > 0, 0, neurons)
            v_init = tl.load(v_init_ptr + first + lane, mask=is_first, other=0.0)
            kept = tl.where(chunk > 0, kept, v_init)
    return currents, gradients, kept


@triton.jit(do_not_specialize=_SIZES)
def lif_bwd_kernel(
    grad_y_ptr,  # [T, N]
    grad_v_last_ptr,  # [N]
    x_ptr,  # [T, N], x_stride_t apart, or None (SAVE 1 without a norm)
    residual_ptr,  # [T, N], residual_stride_t apart, or None (SAVE 1)
    mean_ptr,  # [norm_size]
    inv_std_ptr,  # [norm_size]
    weight_ptr,  # [norm_size], or None
    bias_ptr,  # [norm_size], or None
    amplitude_ptr,  # [amplitude_size]
    decay_ptr,  # [decay_size]
    v_threshold_ptr,  # [v_threshold_size]
    v_init_ptr,  # [N]
    saved_ptr,  # as in lif_fwd_kernel
    grad_x_ptr,  # [T, N]; with a norm the gradient of the current
    grad_amplitude_ptr,  # [chunks, width]: sums over time and the rows of a tile (_fold)
    grad_decay_ptr,  # [chunks, width]
    grad_v_threshold_ptr,  # [chunks, width]
    grad_v_init_ptr,  # [N]
    grad_sum_ptr,  # [chunks, width]: of the gradient of the current (norm only)
    grad_moment_ptr,  # [chunks, width]: of it times x - mean (norm only)
    T,
    N,
    x_stride_t,
    residual_stride_t,
    row,  # neurons of a row
    rows_per_chunk,
    columns,  # tiles side by side
    norm_inner,
    norm_size,
    amplitude_inner,
    amplitude_size,
    decay_inner,
    decay_size,
    v_threshold_inner,
    v_threshold_size,
    decay_value,
    v_threshold_value,
    v_reset,
    scale_of_surrogate,
    inverse_scale,
    WIDE: tl.constexpr,  # a sample has about 2^31 neurons or more
    NORM: tl.constexpr,
    AMPLITUDE: tl.constexpr,
    DECAY: tl.constexpr,
    V_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    HAS_GRAD_V_LAST: tl.constexpr,
    # (RUN, KEEP) of _fold; a RUN of 0: not wanted.
    AMPLITUDE_RUN: tl.constexpr,
    AMPLITUDE_KEEP: tl.constexpr,
    DECAY_RUN: tl.constexpr,
    DECAY_KEEP: tl.constexpr,
    V_THRESHOLD_RUN: tl.constexpr,
    V_THRESHOLD_KEEP: tl.constexpr,
    NORM_RUN: tl.constexpr,
    NORM_KEEP: tl.constexpr,
    WANT_V_INIT: tl.constexpr,
    RESET: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    SURROGATE: tl.constexpr,
    SAVE: tl.constexpr,
    CHUNK: tl.constexpr,
    PREFETCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # 64-bit arithmetic on scalars, 32-bit on lanes.
    tile = tl.program_id(0) % columns
    column = tile.to(tl.int64) * BLOCK
    part = (tl.program_id(0) // columns).to(tl.int64)
    row_begin = part * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, _count(N, row))
    lane = tl.arange(0, BLOCK)
    live_columns = lane < tl.minimum(row - column, BLOCK).to(tl.int32)
    mean, scale, bias = _load_norm(
        mean_ptr, inv_std_ptr, weight_ptr, bias_ptr, column, lane, live_columns,
        norm_inner, norm_size, NORM, WIDE,
    )  # fmt: skip
    amplitude = _load_parameter(
        amplitude_ptr, 1.0, column, lane, live_columns,
        amplitude_inner, amplitude_size, AMPLITUDE, WIDE,
    )  # fmt: skip
    decay = _load_parameter(
        decay_ptr, decay_value, column, lane, live_columns, decay_inner, decay_size, DECAY, WIDE
    )
    v_threshold = _load_parameter(
        v_threshold_ptr, v_threshold_value, column, lane, live_columns,
        v_threshold_inner, v_threshold_size, V_THRESHOLD, WIDE,
    )  # fmt: skip
    BITS: tl.constexpr = 4 if TERNARY else 2
    LEARN: tl.constexpr = DECAY_RUN > 0 or V_THRESHOLD_RUN > 0
    grad_amplitude = tl.zeros([BLOCK], tl.float32)
    grad_decay = tl.zeros([BLOCK], tl.float32)
    grad_v_threshold = tl.zeros([BLOCK], tl.float32)
    grad_sum = tl.zeros([BLOCK], tl.float32)
    grad_moment = tl.zeros([BLOCK], tl.float32)
    chunks = tl.cdiv(T, CHUNK)
    if PREFETCH:
        first, neurons = _place(row_begin, row_end, row, column, N, BLOCK)
        currents_ahead, gradients_ahead, kept_ahead = _load_kept(
            grad_y_ptr, x_ptr, x_stride_t, residual_ptr, residual_stride_t, v_init_ptr, saved_ptr,
            chunks - 1, T, N, first, neurons, lane, HAS_V_INIT, SAVE, CHUNK,
        )  # fmt: skip
    for r in range(row_begin, row_end):
        first, neurons = _place(r, row_end, row, column, N, BLOCK)
        mask = lane < neurons
        # dL/dv[t] on entering a step; decay * grad_h[t], which is dL/dv[t-1], on leaving it.
        q = _load_or_zero(grad_v_last_ptr, first, lane, mask, HAS_GRAD_V_LAST)
        for reversed_chunk in range(0, chunks):
            chunk = chunks - 1 - reversed_chunk
            t0 = chunk * CHUNK
            if PREFETCH:
                currents, gradients, kept = currents_ahead, gradients_ahead, kept_ahead
                next_first, next_neurons = _place(
                    tl.where(chunk > 0, r, r + 1), row_end, row, column, N, BLOCK
                )
                currents_ahead, gradients_ahead, kept_ahead = _load_kept(
                    grad_y_ptr, x_ptr, x_stride_t, residual_ptr, residual_stride_t, v_init_ptr,
                    saved_ptr, tl.where(chunk > 0, chunk, chunks) - 1, T, N, next_first,
                    next_neurons, lane, HAS_V_INIT, SAVE, CHUNK,
                )  # fmt: skip
            else:
                currents, gradients, kept = _load_kept(
                    grad_y_ptr, x_ptr, x_stride_t, residual_ptr, residual_stride_t, v_init_ptr,
                    saved_ptr, chunk, T, N, first, neurons, lane, HAS_V_INIT, SAVE, CHUNK,
                )  # fmt: skip
            h = ()
            v_before = ()
            if SAVE == 1:
                bits = kept.to(tl.int32)
            else:
                v = kept
                for k in tl.static_range(CHUNK):
                    x = _current(currents, k, mean, scale, bias, CHUNK, NORM)
                    h_k = _charge(decay, v, x, v_threshold, RESET, TERNARY)
                    spike = _with_sign(h_k, h_k, TERNARY) >= v_threshold
                    v_before = v_before + (v,)
                    v = _reset(h_k, spike, v_threshold, v_reset, RESET, TERNARY)
                    h = h + (h_k,)
            # Sums of the chunk: one addition of many small ones keeps their precision.
            chunk_decay = tl.zeros([BLOCK], tl.float32)
            chunk_v_threshold = tl.zeros([BLOCK], tl.float32)
            chunk_sum = tl.zeros([BLOCK], tl.float32)
            chunk_moment = tl.zeros([BLOCK], tl.float32)
            for k in tl.static_range(CHUNK - 1, -1, -1):
                t = tl.cast(t0 + k, tl.int64)
                live = lane < tl.where(t < T, neurons, 0)
                g = gradients[k].to(tl.float32)
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
                        magnitude - v_threshold, scale_of_surrogate, inverse_scale, SURROGATE
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
                if NORM != "none":
                    of_step = tl.where(t < T, grad_h, 0.0)
                    chunk_sum += of_step
                    chunk_moment += of_step * (currents[k].to(tl.float32) - mean)
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
                            magnitude - v_threshold, scale_of_surrogate, inverse_scale, SURROGATE
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
            grad_sum += chunk_sum
            grad_moment += chunk_moment
        if WANT_V_INIT:
            tl.store(grad_v_init_ptr + first + lane, q, mask=mask)
    if AMPLITUDE_RUN > 0:
        _store_sums(
            grad_amplitude_ptr, grad_amplitude, part, tile, columns, row,
            AMPLITUDE_RUN, AMPLITUDE_KEEP, BLOCK,
        )  # fmt: skip
    if DECAY_RUN > 0:
        _store_sums(
            grad_decay_ptr, grad_decay, part, tile, columns, row, DECAY_RUN, DECAY_KEEP, BLOCK
        )
    if V_THRESHOLD_RUN > 0:
        _store_sums(
            grad_v_threshold_ptr, grad_v_threshold, part, tile, columns, row,
            V_THRESHOLD_RUN, V_THRESHOLD_KEEP, BLOCK,
        )  # fmt: skip
    if NORM_RUN > 0:
        _store_sums(grad_sum_ptr, grad_sum, part, tile, columns, row, NORM_RUN, NORM_KEEP, BLOCK)
        _store_sums(
            grad_moment_ptr, grad_moment, part, tile, columns, row, NORM_RUN, NORM_KEEP, BLOCK
        )
