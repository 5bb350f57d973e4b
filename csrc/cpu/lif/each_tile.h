#pragma once

#include <cstdint>

#include "core/lif.h"
#include "core/numbers.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/lif/tile.h"

namespace realspike {

// Calls run(task number, tile) for the tiles that make up N neurons, on num_threads threads. The
// output and each of the inputs are of `bytes` bytes. may_stream: the output is not read.
template <class Run>
void for_each_tile(const LifTiling& tiling, int64_t N, int64_t bytes, bool may_stream,
                   int num_threads, const Run& run) {
  const int64_t rows = ceil_div(N, tiling.row);
  const int64_t columns = ceil_div(tiling.row, tiling.width);  // tiles side by side
  const int64_t cache = last_level_cache_bytes();
  const bool stream = may_stream && 2 * bytes > cache;  // as much is read as is written
  parallel_for(tiling.chunks * columns, num_threads, [&](int64_t task, int) {
    const int64_t chunk = task / columns, column = task % columns * tiling.width;
    const int64_t row_begin = chunk * tiling.rows_per_chunk;
    run(task, LifTile{chunk, tiling.row, row_begin, least(row_begin + tiling.rows_per_chunk, rows),
                      column, least(tiling.row - column, tiling.width), stream});
  });
}

}  // namespace realspike
