#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/unshared_conv.h"
#include "cpu/common/isa.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

// All pixels of all tiles of samples.
std::vector<PixelRun> pixel_runs(const UnsharedConvParams& params, const UnsharedConvTiles& tiles) {
  constexpr int64_t kPixelsPerRun = 32;
  const int64_t pixels = params.H * params.W;
  const int64_t runs_per_tile = (pixels + kPixelsPerRun - 1) / kPixelsPerRun;
  std::vector<PixelRun> runs(tiles.sample_tiles * runs_per_tile);
  for (int64_t i = 0; i < static_cast<int64_t>(runs.size()); ++i) {
    PixelRun& run = runs[i];
    run.sample_tile = i / runs_per_tile;
    const int64_t per_tile = tiles.samples / tiles.timesteps;
    run.first_sequence = run.sample_tile * per_tile;
    run.sequences = std::min(params.N / tiles.timesteps - run.first_sequence, per_tile);
    run.begin = i % runs_per_tile * kPixelsPerRun;
    run.end = std::min(run.begin + kPixelsPerRun, pixels);
  }
  return runs;
}

// The spikes as lists, and what the samples of a tile have in common if rows are fetched ahead.
class DecodedSpikes {
 public:
  DecodedSpikes(const UnsharedConvParams& params, const UnsharedConvTiles& tiles, bool unite,
                int num_threads)
      : params_(params), tiles_(tiles), runs_(pixel_runs(params, tiles)) {
    const int64_t pixels = params.H * params.W;
    const int64_t lists = tiles.sample_tiles * pixels * params.G * tiles.blocks;
    for_each_run(num_threads, [](const DecodedSpikes& self, PixelRun* run) {
      run->at = isa_kernels().count_spikes(self.params_, self.tiles_, *run);
    });
    int64_t at = 0;
    for (PixelRun& run : runs_) at += std::exchange(run.at, at) + kListPadding;

    // Uninitialised: every byte that is read is written first.
    first_.reset(new int64_t[lists]);
    starts_.reset(new uint16_t[lists * (tiles.samples + 1)]);
    spikes_.reset(new uint8_t[at]);
    if (unite) fired_.reset(new uint32_t[tiles.sample_tiles * pixels * params.words]);
    for_each_run(num_threads, [](const DecodedSpikes& self, PixelRun* run) {
      isa_kernels().decode_pixels(
          self.params_, self.tiles_, *run,
          {self.first_.get(), self.starts_.get(), self.spikes_.get(), self.fired_.get()});
    });
  }

  SpikeLists lists() const { return {first_.get(), starts_.get(), spikes_.get(), fired_.get()}; }

 private:
  using Work = void (*)(const DecodedSpikes&, PixelRun*);
  void for_each_run(int num_threads, Work work) {
    std::pair<DecodedSpikes*, Work> context{this, work};
    parallel_for(
        static_cast<int64_t>(runs_.size()), num_threads,
        [](void* context, int64_t i, int) {
          const auto& [self, work] = *static_cast<std::pair<DecodedSpikes*, Work>*>(context);
          work(*self, &self->runs_[i]);
        },
        &context);
  }

  const UnsharedConvParams& params_;
  const UnsharedConvTiles& tiles_;
  std::vector<PixelRun> runs_;
  std::unique_ptr<int64_t[]> first_;
  std::unique_ptr<uint16_t[]> starts_;
  std::unique_ptr<uint8_t[]> spikes_;
  std::unique_ptr<uint32_t[]> fired_;
};

// What all tasks that run at the same time own. Uninitialised: a task writes what it reads.
class TaskMemories {
 public:
  TaskMemories(const UnsharedConvTiles& tiles, int64_t weights, int num_threads)
      : currents_per_thread_(tiles.kept * tiles.samples * tiles.channels),
        weights_per_thread_(weights),
        currents_(new float[num_threads * currents_per_thread_]),
        weights_(new uint32_t[num_threads * weights]) {}

  TaskMemory of(int thread) const {
    return {currents_.get() + thread * currents_per_thread_,
            weights_.get() + thread * weights_per_thread_};
  }

 private:
  const int64_t currents_per_thread_;
  const int64_t weights_per_thread_;
  const std::unique_ptr<float[]> currents_;
  const std::unique_ptr<uint32_t[]> weights_;
};

// The spikes as masks of the registers that hold the sums of four samples.
class MaskedSpikes {
 public:
  MaskedSpikes(const UnsharedConvParams& params, const UnsharedConvTiles& tiles, int num_threads)
      : params_(params), tiles_(tiles), runs_(pixel_runs(params, tiles)) {
    // Uninitialised: every mask that is read is written first.
    masks_.reset(new uint16_t[tiles.sample_tiles * params.H * params.W * params.G *
                              sample_quads(tiles) * params.Cin_g]);
    parallel_for(
        static_cast<int64_t>(runs_.size()), num_threads,
        [](void* context, int64_t i, int) {
          const auto& self = *static_cast<MaskedSpikes*>(context);
          isa_kernels().mask_pixels(self.params_, self.tiles_, self.runs_[i], self.masks_.get());
        },
        this);
  }

  const uint16_t* masks() const { return masks_.get(); }

 private:
  const UnsharedConvParams& params_;
  const UnsharedConvTiles& tiles_;
  const std::vector<PixelRun> runs_;
  std::unique_ptr<uint16_t[]> masks_;
};

bool is_empty(const UnsharedConvParams& params) {
  return params.N == 0 || params.OH * params.OW == 0 || params.G * params.Cout_g == 0;
}

bool is_depthwise(const UnsharedConvParams& params) {
  return params.Cin_g == 1 && params.Cout_g == 1 && params.KH * params.KW <= kMostDepthwiseTaps;
}

// Threads that have enough to do to be worth waiting for.
int threads_for(const UnsharedConvParams& p, int num_threads) {
  constexpr int64_t kMinimumWork = int64_t{1} << 18;  // sums x the rows that each may select
  const int64_t sums = p.N * p.OH * p.OW * p.G * p.Cout_g;
  return threads_worth(sums * p.KH * p.KW * p.Cin_g, kMinimumWork, num_threads);
}

void run_masked(const UnsharedConvParams& conv, const LifPacked* lif,
                const UnsharedConvTiles& tiles, int num_threads) {
  const MaskedSpikes spikes(conv, tiles, num_threads);
  const TaskMemories memories(tiles, 0, num_threads);
  struct Job {
    const UnsharedConvParams& conv;
    const LifPacked* lif;
    const UnsharedConvTiles& tiles;
    const uint16_t* masks;
    const TaskMemories& memories;
  } job{conv, lif, tiles, spikes.masks(), memories};
  parallel_for(
      tiles.tasks, num_threads,
      [](void* context, int64_t task, int thread) {
        const auto& job = *static_cast<Job*>(context);
        isa_kernels().unshared_conv_masked(job.conv, job.lif, job.tiles, job.masks, task,
                                           job.memories.of(thread).currents);
      },
      &job);
}

void run(const UnsharedConvParams& conv, const LifPacked* lif, const UnsharedConvTiles& tiles,
         int num_threads) {
  if (isa_kernels().unshared_conv_masked != nullptr && adds_all_rows(conv)) {
    return run_masked(conv, lif, tiles, num_threads);
  }
  const DecodedSpikes spikes(conv, tiles, tiles.prefetch, num_threads);
  const TaskMemories memories(tiles, 0, num_threads);
  struct Job {
    const UnsharedConvParams& conv;
    const LifPacked* lif;
    const UnsharedConvTiles& tiles;
    const SpikeLists lists;
    const TaskMemories& memories;
  } job{conv, lif, tiles, spikes.lists(), memories};
  parallel_for(
      tiles.tasks, num_threads,
      [](void* context, int64_t task, int thread) {
        const auto& job = *static_cast<Job*>(context);
        isa_kernels().unshared_conv(job.conv, job.lif, job.tiles, job.lists, task,
                                    job.memories.of(thread));
      },
      &job);
}

void run_depthwise(const UnsharedConvParams& conv, const UnsharedConvTiles& tiles,
                   int num_threads) {
  const int64_t words = (tiles.channels + 31) / 32;
  const TaskMemories memories(tiles, conv.KH * conv.KW * words * 32, num_threads);
  struct Job {
    const UnsharedConvParams& conv;
    const UnsharedConvTiles& tiles;
    const TaskMemories& memories;
  } job{conv, tiles, memories};
  parallel_for(
      tiles.tasks, num_threads,
      [](void* context, int64_t task, int thread) {
        const auto& job = *static_cast<Job*>(context);
        isa_kernels().unshared_conv_depthwise(job.conv, job.tiles, task, job.memories.of(thread));
      },
      &job);
}

}  // namespace

void unshared_conv_cpu(const UnsharedConvParams& params, int num_threads) {
  if (is_empty(params)) return;
  num_threads = threads_for(params, num_threads);
  UnsharedConvParams conv = params;
  const bool depthwise = is_depthwise(params);
  if (depthwise) {  // the groups are the channels of one
    conv.G = 1;
    conv.Cin_g = conv.Cout_g = params.G;
  }
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(conv, 1, num_threads);
  const int64_t bytes =
      params.N * params.G * params.Cout_g * params.OH * params.OW * int64_t{sizeof(float)};
  prefer_huge_pages(params.out, bytes);
  tiles.stream = 2 * bytes >= last_level_cache_bytes();
  if (depthwise) {
    run_depthwise(conv, tiles, num_threads);
  } else {
    run(conv, nullptr, tiles, num_threads);
  }
}

bool unshared_conv_lif_fits(int64_t groups, int64_t channels_per_group, int64_t timesteps) {
  return (groups == 1 || channels_per_group % 32 == 0) && timesteps <= kMostSamples;
}

void unshared_conv_lif_cpu(const UnsharedConvLif& params, int num_threads) {
  if (is_empty(params.conv)) return;
  num_threads = threads_for(params.conv, num_threads);
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(params.conv, params.lif.T, num_threads);
  tiles.kept = 1;
  run(params.conv, &params.lif, tiles, num_threads);
}

void unshared_conv_grad_weight_cpu(const UnsharedConvGradWeight& params, int num_threads) {
  if (is_empty(params)) return;
  num_threads = threads_for(params, num_threads);
  const UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, 1, num_threads);
  const DecodedSpikes spikes(params, tiles, false, num_threads);
  struct GradJob {
    const UnsharedConvGradWeight& params;
    const UnsharedConvTiles& tiles;
    const SpikeLists lists;
  } job{params, tiles, spikes.lists()};
  // A task takes all samples: they add to the same rows.
  parallel_for(
      tiles.tasks / tiles.sample_tiles, num_threads,
      [](void* context, int64_t task, int) {
        const auto& job = *static_cast<GradJob*>(context);
        isa_kernels().unshared_conv_grad_weight(job.params, job.tiles, job.lists, task);
      },
      &job);
}

}  // namespace realspike
