"""Triton kernels around those of kernels/lif.py, which normalise x as they read it: the moments of
x, the statistics that they give, and the gradient of x.

Sums have an order that depends on sizes alone. A program owns a tile, as in kernels/lif.py, whose
columns are added up per channel (`_fold` there says how columns share a channel).
"""

import triton
import triton.language as tl

from realspike_ops.kernels.lif import (
    _count,
    _fold,
    _load_norm,
    _load_parameter,
    _place,
    _place_of_sums,
)


# A tile's columns of CHUNK rows from r on.
@triton.jit
def _load_rows(ptr, r, row_end, row, column, size, lane, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    tiles = ()
    for k in tl.static_range(CHUNK):
        first, neurons = _place(r + k, row_end, row, column, size, BLOCK)
        tiles = tiles + (tl.load(ptr + first + lane, mask=lane < neurons, other=0.0),)
    return tiles


# The count, the mean and the sum of squared distances from it, in float64, of the columns of a tile
# by channel. A column's values are taken relative to its first one, so that an offset of the data
# costs no digits, and the moments of CHUNK rows are combined with those of the rows before as Chan
# does; columns are combined in float64.
@triton.jit(do_not_specialize=["rows_per_chunk", "columns", "chunks"])
def batch_norm_moments_kernel(
    x_ptr,  # [size], rows; the last may be short
    partial_ptr,  # float64 [3, chunks, width]
    size,
    row,
    rows_per_chunk,
    columns,  # tiles side by side
    chunks,
    CHUNK: tl.constexpr,
    RUN: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    tile = tl.program_id(0) % columns
    column = tile.to(tl.int64) * BLOCK
    part = (tl.program_id(0) // columns).to(tl.int64)
    row_begin = part * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, _count(size, row))
    lane = tl.arange(0, BLOCK)
    first, neurons = _place(row_begin, row_end, row, column, size, BLOCK)
    offset = tl.load(x_ptr + first + lane, mask=lane < neurons, other=0.0).to(tl.float32)
    count = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for r in range(row_begin, row_end, CHUNK):
        values = _load_rows(x_ptr, r, row_end, row, column, size, lane, CHUNK, BLOCK)
        live = ()
        for k in tl.static_range(CHUNK):
            _, neurons = _place(r + k, row_end, row, column, size, BLOCK)
            live = live + (lane < neurons,)
        new_count = tl.zeros([BLOCK], tl.float32)
        new_sum = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(CHUNK):
            new_count += tl.where(live[k], 1.0, 0.0)
            new_sum += tl.where(live[k], values[k].to(tl.float32) - offset, 0.0)
        new_mean = new_sum / tl.maximum(new_count, 1.0)
        new_squares = tl.zeros([BLOCK], tl.float32)
        for k in tl.static_range(CHUNK):
            distance = tl.where(live[k], (values[k].to(tl.float32) - offset) - new_mean, 0.0)
            new_squares += distance * distance
        total = count + new_count
        share = new_count / tl.maximum(total, 1.0)
        distance = new_mean - mean
        mean += distance * share
        squares += new_squares + distance * distance * (count * share)
        count = total
    n = count.to(tl.float64)
    column_mean = mean.to(tl.float64) + offset.to(tl.float64)
    # A column without a value has the count 0.
    column_sum = tl.where(n > 0.0, column_mean * n, 0.0)
    kept_n = _fold(n, RUN, KEEP, BLOCK)
    kept_sum = _fold(column_sum, RUN, KEEP, BLOCK)
    kept_mean = kept_sum / tl.maximum(kept_n, 1.0)
    GROUPS: tl.constexpr = BLOCK // (RUN * KEEP)
    spread = tl.reshape(
        tl.broadcast_to(tl.reshape(kept_mean, (1, KEEP, 1)), (GROUPS, KEEP, RUN)), (BLOCK,)
    )
    distance = column_mean - spread
    column_squares = tl.where(n > 0.0, squares.to(tl.float64) + n * distance * distance, 0.0)
    kept_squares = _fold(column_squares, RUN, KEEP, BLOCK)
    kept, width = _place_of_sums(tile, columns, row, RUN, KEEP, BLOCK)
    place = part * width + kept
    stride = tl.cast(chunks, tl.int64) * width
    tl.store(partial_ptr + place, kept_n, mask=kept < width)
    tl.store(partial_ptr + stride + place, kept_mean, mask=kept < width)
    tl.store(partial_ptr + 2 * stride + place, kept_squares, mask=kept < width)


# Where piece i of channel c lies in [pieces, C, runs].
@triton.jit
def _piece(i, c, C, runs):
    return ((i // runs).to(tl.int64) * C + c) * runs + i % runs


# A program adds up one channel.
@triton.jit(do_not_specialize=["C", "pieces", "runs", "copies"])
def batch_norm_combine_kernel(
    partial_ptr,  # float64 [3, pieces, C, runs]
    moments_ptr,  # float64 [2 * C + 1]
    C,
    pieces,
    runs,
    copies,  # timesteps that are the same memory
    BLOCK: tl.constexpr,
):
    c = tl.program_id(0)
    stride = tl.cast(pieces, tl.int64) * C * runs
    lane = tl.arange(0, BLOCK)
    count = tl.zeros([BLOCK], tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, pieces * runs, BLOCK):
        mask = begin + lane < pieces * runs
        place = _piece(begin + lane, c, C, runs)
        n = tl.load(partial_ptr + place, mask=mask, other=0.0)
        count += n
        total += n * tl.load(partial_ptr + stride + place, mask=mask, other=0.0)
    n_all = tl.sum(count, axis=0)
    mean = tl.sum(total, axis=0) / n_all
    squares = tl.zeros([BLOCK], tl.float64)
    for begin in range(0, pieces * runs, BLOCK):
        mask = begin + lane < pieces * runs
        place = _piece(begin + lane, c, C, runs)
        n = tl.load(partial_ptr + place, mask=mask, other=0.0)
        distance = tl.load(partial_ptr + stride + place, mask=mask, other=0.0) - mean
        squares += tl.load(partial_ptr + 2 * stride + place, mask=mask, other=0.0)
        squares += n * distance * distance
    tl.store(moments_ptr + c, mean)
    tl.store(moments_ptr + C + c, tl.sum(squares, axis=0) / n_all)
    if c == 0:
        tl.store(moments_ptr + 2 * C, n_all * copies)


@triton.jit
def _moved(old, new, momentum):
    return (old + momentum * (new - old)).to(tl.float32)


@triton.jit(do_not_specialize=["C"])
def batch_norm_statistics_kernel(
    moments_ptr,  # float64 [2 * C + 1]
    mean_ptr,  # [C]
    inv_std_ptr,  # [C]
    running_mean_ptr,  # [C], or None
    running_var_ptr,  # [C], or None
    # A number of Python is float32 to a kernel, unless it is said otherwise.
    momentum: "fp64",  # noqa: F821
    eps: "fp64",  # noqa: F821
    C,
    BLOCK: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < C
    mean = tl.load(moments_ptr + channel, mask=mask, other=0.0)
    var = tl.load(moments_ptr + C + channel, mask=mask, other=1.0)
    tl.store(mean_ptr + channel, mean.to(tl.float32), mask=mask)
    inv_std = 1.0 / tl.sqrt(var.to(tl.float32).to(tl.float64) + eps)
    tl.store(inv_std_ptr + channel, inv_std.to(tl.float32), mask=mask)
    if running_mean_ptr is not None:
        count = tl.load(moments_ptr + 2 * C)
        mask = channel < tl.where(count > 0.0, C, 0)  # an empty batch has no moments
        old_mean = tl.load(running_mean_ptr + channel, mask=mask, other=0.0)
        old_var = tl.load(running_var_ptr + channel, mask=mask, other=0.0)
        unbiased = var * (count / tl.maximum(count - 1.0, 1.0))
        tl.store(running_mean_ptr + channel, _moved(old_mean, mean, momentum), mask=mask)
        tl.store(running_var_ptr + channel, _moved(old_var, unbiased, momentum), mask=mask)


# grad_x = scale * (grad_current - sums[0] / count - (x - mean) * inv_std^2 * sums[1] / count); what
# is the same for all values of a channel is computed in float64 and rounded once. Without a count
# the statistics are constants, and x is not read.
@triton.jit(do_not_specialize=["T", "rows_per_chunk", "columns"])
def batch_norm_bwd_kernel(
    grad_current_ptr,  # [T, size]
    x_ptr,  # [size], the same for all T, or None
    mean_ptr,  # [norm_size]
    inv_std_ptr,  # [norm_size]
    weight_ptr,  # [norm_size], or None
    sums_ptr,  # float64 [2, norm_size], or None
    count_ptr,  # float64 [1], or None
    grad_x_ptr,  # [T, size]; may be grad_current
    T,
    size,
    row,
    rows_per_chunk,
    columns,  # tiles side by side
    norm_inner,
    norm_size,
    WIDE: tl.constexpr,
    NORM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = (tl.program_id(0) % columns).to(tl.int64) * BLOCK
    row_begin = (tl.program_id(0) // columns).to(tl.int64) * rows_per_chunk
    row_end = tl.minimum(row_begin + rows_per_chunk, _count(size, row))
    lane = tl.arange(0, BLOCK)
    live_columns = lane < tl.minimum(row - column, BLOCK).to(tl.int32)
    mean, scale, _ = _load_norm(
        mean_ptr, inv_std_ptr, weight_ptr, None, column, lane, live_columns,
        norm_inner, norm_size, NORM, WIDE,
    )  # fmt: skip
    if count_ptr is not None:
        inv_std = _load_parameter(
            inv_std_ptr, 1.0, column, lane, live_columns, norm_inner, norm_size, NORM, WIDE
        )
        sum_0 = _load_parameter(
            sums_ptr, 0.0, column, lane, live_columns, norm_inner, norm_size, NORM, WIDE
        )
        sum_1 = _load_parameter(
            sums_ptr + norm_size, 0.0, column, lane, live_columns, norm_inner, norm_size, NORM, WIDE
        )
        wide = -scale.to(tl.float64) / tl.load(count_ptr)
        inv_std = inv_std.to(tl.float64)
        linear = (wide * (inv_std * inv_std) * sum_1).to(tl.float32)
        constant = (wide * sum_0).to(tl.float32)
    for r in range(row_begin, row_end, CHUNK):
        if count_ptr is not None:
            x = _load_rows(x_ptr, r, row_end, row, column, size, lane, CHUNK, BLOCK)
        for t in range(0, T):
            step = tl.cast(t, tl.int64) * size
            grad_current = _load_rows(
                grad_current_ptr + step, r, row_end, row, column, size, lane, CHUNK, BLOCK
            )
            for k in tl.static_range(CHUNK):
                first, neurons = _place(r + k, row_end, row, column, size, BLOCK)
                grad_x = scale * grad_current[k].to(tl.float32)
                if count_ptr is not None:
                    grad_x = grad_x + linear * (x[k].to(tl.float32) - mean) + constant
                tl.store(
                    grad_x_ptr + (step + first) + lane,
                    grad_x.to(grad_x_ptr.dtype.element_ty),
                    mask=lane < neurons,
                )
