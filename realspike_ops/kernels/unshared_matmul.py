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
    live_rows, live_columns = row < rows, co < Cout_g
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
            seen, channels = row < tl.where(inside, rows, 0), tl.where(inside, Cin_g, 0)
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
    mask = live_rows[:, None] & live_columns[None, :]
    if BIAS == "channel":
        current += tl.load(bias_ptr + channel, mask=live_columns, other=0.0)[None, :]
    elif BIAS == "element" and SHARED:
        at = channel[None, :] * P + p[:, None]
        current += tl.load(bias_ptr + at, mask=mask, other=0.0)
    elif BIAS == "element":
        at = channel * P + p
        current += tl.load(bias_ptr + at, mask=live_columns, other=0.0)[None, :]
    row_ptr = out_ptr + (n * out_stride_n + p * out_stride_p)
    column = tl.cast(channel, tl.int64) * out_stride_c
    tl.store(row_ptr[:, None] + column[None, :], current, mask=mask)
