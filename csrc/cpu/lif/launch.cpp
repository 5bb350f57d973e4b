#include "core/lif.h"
#include "core/numbers.h"
#include "cpu/common/isa.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/lif/each_tile.h"
#include "cpu/lif/tile.h"

namespace realspike {
namespace {

// Neuron-timesteps that are worth a task, and tasks that are enough.
constexpr int64_t kMinimumWork = 32768;
constexpr int64_t kTiles = 64;

template <class Params>
void run(const Params& params, void (*kernel)(const Params&, const LifTile&), void* output,
         int num_threads) {
  if (params.N == 0 || params.T == 0) return;
  const LifTiling tiling = lif_tiling(params.T, params.N, params.period);
  const int64_t bytes = params.T * params.N * bytes_of(params.dtype);
  prefer_huge_pages(output, bytes);
  for_each_tile(tiling, params.N, bytes, true, num_threads,
                [&](int64_t, const LifTile& tile) { kernel(params, tile); });
}

}  // namespace

LifTiling lif_tiling(int64_t T, int64_t N, int64_t period) {
  LifTiling tiling;
  // Short periods are repeated to fill a tile; more neurons than there are is no use.
  const int64_t repeats = kLifTileWidth / period > 1 ? kLifTileWidth / period : 1;
  tiling.row = period * least(repeats, ceil_div(N, period));
  tiling.width = least(tiling.row, kLifTileWidth);
  const int64_t rows = ceil_div(N, tiling.row);
  const int64_t worthwhile = ceil_div(kMinimumWork, tiling.width * T);
  const int64_t shared_out = ceil_div(rows * ceil_div(tiling.row, tiling.width), kTiles);
  tiling.rows_per_chunk = worthwhile > shared_out ? worthwhile : shared_out;
  tiling.chunks = ceil_div(rows, tiling.rows_per_chunk);
  return tiling;
}

void lif_fwd_cpu(const LifForward& params, int num_threads) {
  run(params, isa_kernels().lif_fwd, params.y, num_threads);
}

void lif_spikes_cpu(const LifForward& params, int num_threads) {
  run(params, isa_kernels().lif_spikes, params.y, num_threads);
}

void lif_packed_cpu(const LifPacked& params, int num_threads) {
  if (params.N == 0 || params.T == 0) return;
  const int64_t pixels = params.N / params.C;
  const int64_t tasks = params.channels_last ? ceil_div(pixels, lif_packed_pixels_per_task(params))
                                             : pixels / params.P * params.words *
                                                   ceil_div(params.P, kLifPackedPixels);
  parallel_for(tasks, threads_worth(params.T * params.N, kMinimumWork, num_threads),
               [&](int64_t task, int) { isa_kernels().lif_packed(params, task); });
}

void lif_bwd_cpu(const LifBackward& params, int num_threads) {
  run(params, isa_kernels().lif_bwd, params.grad_x, num_threads);
}

}  // namespace realspike
