#include "core/lif.h"
#include "cpu/common/isa.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/lif/tile.h"

namespace realspike {
namespace {

// Neuron-timesteps that are worth a task, and tasks that are enough.
constexpr int64_t kMinimumWork = 32768;
constexpr int64_t kTiles = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Params>
struct Job {
  const Params& params;
  void (*kernel)(const Params&, const LifTile&);
  LifTiling tiling;
  int64_t columns;  // tiles side by side
  bool stream;
};

template <class Params>
void run_tile(void* context, int64_t task, int) {
  const auto& job = *static_cast<Job<Params>*>(context);
  const LifTiling& tiling = job.tiling;
  const int64_t chunk = task / job.columns;
  const int64_t column = task % job.columns * tiling.width;
  const int64_t rows = ceil_div(job.params.N, tiling.row);
  const int64_t row_begin = chunk * tiling.rows_per_chunk;
  const int64_t row_end = row_begin + tiling.rows_per_chunk;
  const int64_t width = tiling.row - column;
  job.kernel(job.params, {chunk, tiling.row, row_begin, row_end < rows ? row_end : rows, column,
                          width < tiling.width ? width : tiling.width, job.stream});
}

template <class Params>
void run(const Params& params, void (*kernel)(const Params&, const LifTile&), void* output,
         int num_threads) {
  if (params.N == 0 || params.T == 0) return;
  const LifTiling tiling = lif_tiling(params.T, params.N, params.period);
  const int64_t bytes = params.T * params.N * (params.dtype == DType::kFloat32 ? 4 : 2);
  prefer_huge_pages(output, bytes);
  Job<Params> job{params, kernel, tiling, ceil_div(tiling.row, tiling.width),
                  // As much is read as is written.
                  2 * bytes >= last_level_cache_bytes()};
  parallel_for(tiling.chunks * job.columns, num_threads, run_tile<Params>, &job);
}

}  // namespace

LifTiling lif_tiling(int64_t T, int64_t N, int64_t period) {
  LifTiling tiling;
  // Short periods are repeated to fill a tile; more neurons than there are is no use.
  const int64_t repeats = kLifTileWidth / period > 1 ? kLifTileWidth / period : 1;
  const int64_t periods = ceil_div(N, period);
  tiling.row = period * (repeats < periods ? repeats : periods);
  tiling.width = tiling.row < kLifTileWidth ? tiling.row : kLifTileWidth;
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

void lif_packed_cpu(const LifPacked& params, int num_threads) {
  if (params.N == 0 || params.T == 0) return;
  const int64_t pixels = params.N / params.C;
  const int64_t tasks = params.channels_last ? ceil_div(pixels, lif_packed_pixels_per_task(params))
                                             : pixels / params.P * params.words *
                                                   ceil_div(params.P, kLifPackedPixels);
  parallel_for(
      tasks, threads_worth(params.T * params.N, kMinimumWork, num_threads),
      [](void* context, int64_t task, int) {
        isa_kernels().lif_packed(*static_cast<const LifPacked*>(context), task);
      },
      const_cast<LifPacked*>(&params));
}

void lif_bwd_cpu(const LifBackward& params, int num_threads) {
  run(params, isa_kernels().lif_bwd, params.grad_x, num_threads);
}

}  // namespace realspike
