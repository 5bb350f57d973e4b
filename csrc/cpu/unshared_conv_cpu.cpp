#include <memory>

#include "core/unshared_conv.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/unshared_conv_tiles.h"

namespace realspike {
namespace {

// The spikes as lists, and what the samples of a tile have in common if rows are fetched ahead.
class DecodedSpikes {
 public:
  DecodedSpikes(const UnsharedConvParams& params, UnsharedConvTiles* tiles, int num_threads)
      : params_(params), tiles_(*tiles) {
    const int64_t rows = params.N * params.H;
    const int64_t words = tiles->prefetch ? params.H * params.W * params.words : 0;
    // Uninitialised on purpose: pages that no spike reaches are never touched.
    starts_.reset(new uint32_t[rows * (tiles->lists.per_row + 1)]);
    spikes_.reset(new uint8_t[rows * tiles->lists.row_capacity + kListPadding]);
    fired_.reset(new uint32_t[tiles->sample_tiles * words]);
    tiles->lists.starts = starts_.get();
    tiles->lists.spikes = spikes_.get();
    tiles->lists.fired = fired_.get();
    parallel_for(
        rows, num_threads,
        [](void* context, int64_t row) {
          const auto& self = *static_cast<const DecodedSpikes*>(context);
          isa_kernels().decode_spikes(self.params_, self.tiles_.lists, row, self.starts_.get(),
                                      self.spikes_.get());
        },
        this);
    if (!tiles->prefetch) return;
    parallel_for(
        tiles->sample_tiles * params.H, num_threads,
        [](void* context, int64_t row) {
          const auto& self = *static_cast<const DecodedSpikes*>(context);
          isa_kernels().unite_spikes(self.params_, self.tiles_.samples, row, self.fired_.get());
        },
        this);
  }

 private:
  const UnsharedConvParams& params_;
  const UnsharedConvTiles& tiles_;
  std::unique_ptr<uint32_t[]> starts_;
  std::unique_ptr<uint8_t[]> spikes_;
  std::unique_ptr<uint32_t[]> fired_;
};

template <class Params>
struct Job {
  const Params& params;
  const UnsharedConvTiles& tiles;
};

bool is_empty(const UnsharedConvParams& params) {
  return params.N == 0 || params.OH * params.OW == 0 || params.G * params.Cout_g == 0;
}

}  // namespace

void unshared_conv_cpu(const UnsharedConvParams& params, int num_threads) {
  if (is_empty(params)) return;
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, num_threads);
  const DecodedSpikes spikes(params, &tiles, num_threads);
  Job<UnsharedConvParams> job{params, tiles};
  parallel_for(
      tiles.tasks, num_threads,
      [](void* context, int64_t task) {
        const auto& job = *static_cast<Job<UnsharedConvParams>*>(context);
        isa_kernels().unshared_conv(job.params, job.tiles, task);
      },
      &job);
}

void unshared_conv_grad_weight_cpu(const UnsharedConvGradWeight& params, int num_threads) {
  if (is_empty(params)) return;
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, num_threads);
  tiles.prefetch = false;
  const DecodedSpikes spikes(params, &tiles, num_threads);
  Job<UnsharedConvGradWeight> job{params, tiles};
  // A task takes all samples: they add to the same rows.
  parallel_for(
      tiles.tasks / tiles.sample_tiles, num_threads,
      [](void* context, int64_t task) {
        const auto& job = *static_cast<Job<UnsharedConvGradWeight>*>(context);
        isa_kernels().unshared_conv_grad_weight(job.params, job.tiles, task);
      },
      &job);
}

}  // namespace realspike
