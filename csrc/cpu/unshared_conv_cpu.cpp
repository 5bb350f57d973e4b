#include <memory>

#include "core/unshared_conv.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/unshared_conv_tiles.h"

namespace realspike {

void unshared_conv_cpu(const UnsharedConvParams& params, int num_threads) {
  const IsaKernels& kernels = isa_kernels();
  if (params.N == 0 || params.OH * params.OW == 0 || params.G * params.Cout_g == 0) return;
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, num_threads);

  const int64_t rows = params.N * params.H;
  // Uninitialised on purpose: pages that no spike reaches are never touched.
  const std::unique_ptr<uint32_t[]> starts(new uint32_t[rows * (tiles.lists.per_row + 1)]);
  const std::unique_ptr<uint8_t[]> spikes(
      new uint8_t[rows * tiles.lists.row_capacity + kListPadding]);
  const std::unique_ptr<uint32_t[]> fired(
      new uint32_t[tiles.prefetch ? tiles.sample_tiles * params.H * params.W * params.words : 0]);
  tiles.lists.fired = fired.get();
  tiles.lists.starts = starts.get();
  tiles.lists.spikes = spikes.get();

  struct Job {
    const UnsharedConvParams& params;
    const UnsharedConvTiles& tiles;
    const IsaKernels& kernels;
    uint32_t* starts;
    uint8_t* spikes;
    uint32_t* fired;
  } job{params, tiles, kernels, starts.get(), spikes.get(), fired.get()};
  parallel_for(
      rows, num_threads,
      [](void* context, int64_t row) {
        const Job& job = *static_cast<Job*>(context);
        job.kernels.decode_spikes(job.params, job.tiles.lists, row, job.starts, job.spikes);
      },
      &job);
  if (tiles.prefetch) {
    parallel_for(
        tiles.sample_tiles * params.H, num_threads,
        [](void* context, int64_t row) {
          const Job& job = *static_cast<Job*>(context);
          job.kernels.unite_spikes(job.params, job.tiles.samples, row, job.fired);
        },
        &job);
  }
  parallel_for(
      tiles.tasks, num_threads,
      [](void* context, int64_t task) {
        const Job& job = *static_cast<Job*>(context);
        job.kernels.unshared_conv(job.params, job.tiles, task);
      },
      &job);
}

}  // namespace realspike
