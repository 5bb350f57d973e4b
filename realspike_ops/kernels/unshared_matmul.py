"""Unshared convolution on matrix units: one bit is one element of a matrix of ones and zeros.

A program owns a tile of ROWS rows by COLUMNS output channels of one group. A row is a sample at the
program's output position or, where all positions share a kernel (SHARED), a sample at a position
of its own. A step takes the 32 channels of one spike word at one tap: the word becomes 32 elements
in registers, and they are multiplied by 32 rows of weights. Products with 0 and 1 are exact, so
that float32 sums differ from the gather's in their order alone, and int32 sums not at all. A
float32 weight is the sum of three bfloat16 terms, to its last bit or to 2^-133.

Launch with enable_fp_fusion=False: the scale and the bias are rounded separately, as in the gather.
"""

import triton
import triton.language as tl

from realspike_ops.kernels.lif import _charge, _is_negative, _reset, _with_sign
from realspike_ops.kernels.lif_packed import _load_tile


@triton.jit
def _ones_and_zeros(words, lane, dtype: tl.constexpr):
    bits = (words[:, None] >> lane[None, :]) & 1
    if dtype == tl.int8:
        elements = bits.to(tl.int8)
    else:  # the pattern of 1.0
        one: tl.constexpr = 0x3C00 if dtype == tl.float16 else 0x3F80
        elements = (bits * one).to(tl.int16).to(dtype, bitcast=True)
    return elements


@triton.jit
def _leading(x):
    """Return the float32 that has the sign, the exponent and the first 8 bits of x, or fewer."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _bfloat16(x):
    """Return a float32 whose lower half is 0 as what it is."""
    return (x.to(tl.int32, bitcast=True) >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _add_products(sums, words, lane, weight):
    if weight.dtype == tl.uint8:  # int8 + 128: to take 128 away modulo 256 is to flip a bit
        steps = (weight ^ 128).to(tl.int8, bitcast=True)
        sums = tl.dot(_ones_and_zeros(words, lane, tl.int8), steps, sums, out_dtype=tl.int32)
    elif weight.dtype == tl.float32:
        bits = _ones_and_zeros(words, lane, tl.bfloat16)
        high = _leading(weight)
        middle = _leading(weight - high)
        low = weight - high - middle
        sums = tl.dot(bits, _bfloat16(low), sums)
        sums = tl.dot(bits, _bfloat16(middle), sums)
        sums = tl.dot(bits, _bfloat16(high), sums)
    else:
        sums = tl.dot(_ones_and_zeros(words, lane, weight.dtype), weight, sums)
    return sums


@triton.jit
def _currents(
    words_ptr,
    weight_ptr,
    bias_ptr,
    scale_ptr,
    key,  # [ROWS]; a row exists where it is below `limit`
    limit,
    n,  # [ROWS] int64: sample of a row
    p,  # its position: [ROWS] int64 if SHARED, else one for all
    g,  # group
    co,  # [COLUMNS] output channel of the group
    H,
    W,
    words,
    OH,
    OW,
    KH,
    KW,
    Cin_g,
    Cout_g,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    weight_stride_p,
    SHARED: tl.constexpr,
    BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return the currents [ROWS, COLUMNS] of a tile in float32."""
    live_rows, live_columns = key < limit, co < Cout_g
    y = (p // OW).to(tl.int32) * stride_h - padding_h
    x = (p % OW).to(tl.int32) * stride_w - padding_w
    lane = tl.arange(0, 32)
    first = g * Cin_g  # channel of the group
    first_word = first // 32
    words_g = (first + Cin_g + 31) // 32 - first_word
    pixel_ptr = words_ptr + ((n * H + y) * W + x) * words + first_word
    group_ptr = weight_ptr + tl.cast(g, tl.int64) * (KH * KW) * Cin_g * Cout_g
    if not SHARED:
        group_ptr += p * weight_stride_p
    if weight_ptr.dtype.element_ty == tl.uint8:
        sums = tl.zeros((ROWS, COLUMNS), tl.int32)
        nothing = 128
    else:
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        nothing = 0.0
    kh, kw, w = tl.cast(0, tl.int32), tl.cast(0, tl.int32), tl.cast(0, tl.int32)
    for _ in range(0, KH * KW * words_g):
        at_y, at_x = y + kh * dilation_h, x + kw * dilation_w
        inside = (at_y >= 0) & (at_y < H) & (at_x >= 0) & (at_x < W)
        if SHARED:
            seen, channels = live_rows & inside, Cin_g
        else:  # outside the map there are neither bits nor weights
            seen, channels = key < tl.where(inside, limit, 0), tl.where(inside, Cin_g, 0)
        tap = tl.cast(kh * dilation_h, tl.int64) * W + kw * dilation_w
        word = tl.load(pixel_ptr + (tap * words + w), mask=seen, other=0)
        m = (first_word + w) * 32 - first  # channel of the group that is lane 0
        live_lanes = (lane >= -m) & (lane < channels - m)
        weight = tl.load(
            group_ptr
            + ((tl.cast(kh * KW + kw, tl.int64) * Cin_g + m) * Cout_g)
            + (lane[:, None] * Cout_g + co[None, :]),
            mask=live_lanes[:, None] & live_columns[None, :],
            other=nothing,
        )
        sums = _add_products(sums, word, lane, weight)
        w = tl.where(w + 1 == words_g, 0, w + 1)
        kw += tl.where(w == 0, 1, 0)
        kh += tl.where(kw == KW, 1, 0)
        kw = tl.where(kw == KW, 0, kw)

    current = sums.to(tl.float32)
    channel = g * Cout_g + co
    if HAS_SCALE:
        current *= tl.load(scale_ptr + channel, mask=live_columns, other=0.0)[None, :]
    P = tl.cast(OH, tl.int64) * OW
    if BIAS == "channel":
        current += tl.load(bias_ptr + channel, mask=live_columns, other=0.0)[None, :]
    elif BIAS == "element" and SHARED:
        at = channel[None, :] * P + p[:, None]
        mask = live_rows[:, None] & live_columns[None, :]
        current += tl.load(bias_ptr + at, mask=mask, other=0.0)
    elif BIAS == "element":
        at = channel * P + p
        current += tl.load(bias_ptr + at, mask=live_columns, other=0.0)[None, :]
    return current


# Sizes that vary from layer to layer: one kernel is compiled for all of them.
_SIZES = (
    "N H W words OH OW G KH KW Cin_g stride_h stride_w padding_h padding_w dilation_h dilation_w"
).split()


@triton.jit(do_not_specialize=_SIZES)
def unshared_matmul_kernel(
    words_ptr,  # [N, H, W, words]
    weight_ptr,  # [OH, OW, G, KH, KW, Cin_g, Cout_g]; SHARED: [G, KH, KW, Cin_g, Cout_g]
    bias_ptr,  # [Cout], or [Cout, OH, OW]
    scale_ptr,  # [Cout]
    out_ptr,  # [N, Cout, OH, OW] by strides
    N,
    H,
    W,
    words,
    OH,
    OW,
    G,
    KH,
    KW,
    Cin_g,
    Cout_g,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    weight_stride_p,
    out_stride_n,
    out_stride_c,
    out_stride_p,
    SHARED: tl.constexpr,
    BIAS: tl.constexpr,  # "", "channel" or "element"
    HAS_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    P = tl.cast(OH, tl.int64) * OW
    if SHARED:
        rows = N * P
    else:
        rows = tl.cast(N, tl.int64)
    # Programs side by side read the same weights.
    row_tiles = tl.cdiv(rows, ROWS).to(tl.int32)
    column_tiles = tl.cdiv(Cout_g, COLUMNS)
    tile = tl.program_id(0) // row_tiles
    row = (tl.program_id(0) % row_tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    co = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    g = tile // column_tiles % G
    if SHARED:
        n, p = row // P, row % P
    else:
        n, p = row, (tile // column_tiles // G).to(tl.int64)
    current = _currents(
        words_ptr, weight_ptr, bias_ptr, scale_ptr, row, rows, n, p, g, co,
        H, W, words, OH, OW, KH, KW, Cin_g, Cout_g, stride_h, stride_w, padding_h, padding_w,
        dilation_h, dilation_w, weight_stride_p, SHARED, BIAS, HAS_SCALE, ROWS, COLUMNS,
    )  # fmt: skip
    row_ptr = out_ptr + (n * out_stride_n + p * out_stride_p)
    column = tl.cast(g * Cout_g + co, tl.int64) * out_stride_c
    mask = (row < rows)[:, None] & (co < Cout_g)[None, :]
    tl.store(row_ptr[:, None] + column[None, :], current, mask=mask)


_NEURON_SIZES = [*_SIZES, *"decay_inner decay_size threshold_inner threshold_size".split()]


@triton.jit(do_not_specialize=_NEURON_SIZES)
def unshared_matmul_lif_kernel(
    words_ptr,  # [T * B, H, W, words]
    weight_ptr,  # as above
    bias_ptr,
    scale_ptr,
    decay_ptr,  # [decay_size]
    threshold_ptr,  # [threshold_size]
    v_init_ptr,  # [B, OH, OW, Cout]
    packed_ptr,  # [T * B, OH, OW, words_out]; TERNARY: [2, ...], negative spikes last
    v_last_ptr,  # [B, OH, OW, Cout]
    N,  # T * B
    H,
    W,
    words,
    OH,
    OW,
    G,
    KH,
    KW,
    Cin_g,
    Cout_g,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    weight_stride_p,
    decay_inner,
    decay_size,
    threshold_inner,
    threshold_size,
    decay_value,
    threshold_value,
    v_reset,
    SHARED: tl.constexpr,
    BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr,
    HAS_V_INIT: tl.constexpr,
    KEEP_STATE: tl.constexpr,
    RESET: tl.constexpr,
    TERNARY: tl.constexpr,
    T: tl.constexpr,
    STEPS: tl.constexpr,  # T, or the next power of two
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Run the neurons behind the currents of a tile, which holds all timesteps of its neurons."""
    MAPS: tl.constexpr = ROWS // STEPS
    P = tl.cast(OH, tl.int64) * OW
    B = N // T
    if SHARED:
        maps = B * P
    else:
        maps = tl.cast(B, tl.int64)
    map_tiles = tl.cdiv(maps, MAPS).to(tl.int32)
    column_tiles = tl.cdiv(Cout_g, COLUMNS)
    tile = tl.program_id(0) // map_tiles
    first = (tl.program_id(0) % map_tiles).to(tl.int64) * MAPS
    co = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    g = tile // column_tiles % G
    # Row i is timestep i % STEPS of map i / STEPS; one beyond T does not exist.
    t_of_row = tl.arange(0, ROWS) % STEPS
    map_of_row = first + tl.arange(0, ROWS) // STEPS
    own = first + tl.arange(0, MAPS)
    if SHARED:
        b_of_row, p_of_row = map_of_row // P, map_of_row % P
        pixel = own  # b * P + p
    else:
        b_of_row, p_of_row = map_of_row, (tile // column_tiles // G).to(tl.int64)
        pixel = own * P + p_of_row
    key = tl.where(t_of_row < T, map_of_row, maps)
    current = _currents(
        words_ptr, weight_ptr, bias_ptr, scale_ptr, key, maps,
        t_of_row.to(tl.int64) * B + b_of_row, p_of_row, g, co,
        H, W, words, OH, OW, KH, KW, Cin_g, Cout_g, stride_h, stride_w, padding_h, padding_w,
        dilation_h, dilation_w, weight_stride_p, SHARED, BIAS, HAS_SCALE, ROWS, COLUMNS,
    )  # fmt: skip
    current = tl.reshape(current, (MAPS, STEPS, COLUMNS))
    step = tl.arange(0, STEPS)[None, :, None]
    C = G * Cout_g
    mask = (own < maps)[:, None] & (co < Cout_g)[None, :]
    neuron = pixel[:, None] * C + (g * Cout_g + co)[None, :]
    decay_at = (neuron // decay_inner) % decay_size
    decay = _load_tile(decay_ptr, decay_value, decay_at, mask, HAS_DECAY)
    threshold_at = (neuron // threshold_inner) % threshold_size
    v_threshold = _load_tile(threshold_ptr, threshold_value, threshold_at, mask, HAS_THRESHOLD)
    v = _load_tile(v_init_ptr, 0.0, neuron, mask, HAS_V_INIT)

    words_out = (C + 31) // 32
    word = (g * Cout_g + tile % column_tiles * COLUMNS) // 32 + tl.arange(0, COLUMNS // 32)
    live_words = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS // 32) * 32 < Cout_g
    live = (own < maps)[:, None] & live_words[None, :]
    bit = tl.arange(0, 32)[None, None, :]
    for t in tl.range(0, T, num_stages=1):
        x = tl.sum(tl.where(step == t, current, 0.0), axis=1)
        h = _charge(decay, v, x, v_threshold, RESET, TERNARY)
        spike = (_with_sign(h, h, TERNARY) >= v_threshold) & mask
        v = _reset(h, spike, v_threshold, v_reset, RESET, TERNARY)
        at = (tl.cast(t, tl.int64) * B * P + pixel)[:, None] * words_out + word[None, :]
        if TERNARY:
            negative = _is_negative(h)
            words_of = _words(spike & ~negative, bit, MAPS, COLUMNS)
            tl.store(packed_ptr + at, words_of, mask=live)
            words_of = _words(spike & negative, bit, MAPS, COLUMNS)
            tl.store(packed_ptr + (N * P * words_out + at), words_of, mask=live)
        else:
            tl.store(packed_ptr + at, _words(spike, bit, MAPS, COLUMNS), mask=live)
    if KEEP_STATE:
        tl.store(v_last_ptr + neuron, v, mask=mask)


@triton.jit
def _words(spike, bit, MAPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pack the spikes [MAPS, COLUMNS] of neighbouring channels into [MAPS, COLUMNS / 32]."""
    by_word = tl.reshape(spike.to(tl.int32), (MAPS, COLUMNS // 32, 32))
    return tl.sum(by_word << bit, axis=2)
