#include <memory>
#include <utility>
#include <vector>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/isa.h"
#include "cpu/common/matrix_unit.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

// Runs that together are all pixels of all tiles of samples.
std::vector<PixelRun> pixel_runs(const UnsharedConvParams& params, const UnsharedConvTiles& tiles) {
  constexpr int64_t kPixelsPerRun = 32;
  const int64_t pixels = params.H * params.W;
  const int64_t runs_per_tile = ceil_div(pixels, kPixelsPerRun);
  const int64_t per_tile = tiles.samples / tiles.timesteps;
  std::vector<PixelRun> runs;
  for (int64_t i = 0; i < tiles.sample_tiles * runs_per_tile; ++i) {
    const int64_t sample_tile = i / runs_per_tile, begin = i % runs_per_tile * kPixelsPerRun;
    const int64_t first = sample_tile * per_tile;
    runs.push_back({sample_tile, first, least(params.N / tiles.timesteps - first, per_tile), begin,
                    least(begin + kPixelsPerRun, pixels), 0});
  }
  return runs;
}

// The spikes as lists. `unite`: also what any sample of a tile fired, which tells the rows that are
// to be fetched ahead.
class DecodedSpikes {
 public:
  DecodedSpikes(const UnsharedConvParams& params, const UnsharedConvTiles& tiles, bool unite,
                int num_threads) {
    std::vector<PixelRun> runs = pixel_runs(params, tiles);
    const auto for_each_run = [&](auto work) {
      parallel_for(static_cast<int64_t>(runs.size()), num_threads,
                   [&](int64_t i, int) { work(runs[i]); });
    };
    for_each_run([&](PixelRun& run) { run.at = isa_kernels().count_spikes(params, tiles, run); });
    int64_t at = 0;
    for (PixelRun& run : runs) at += std::exchange(run.at, at) + kListPadding;

    // Uninitialised: every byte that is read is written first.
    const int64_t pixels = params.H * params.W;
    const int64_t lists = tiles.sample_tiles * pixels * params.G * tiles.blocks;
    first_.reset(new int64_t[lists]);
    starts_.reset(new uint16_t[lists * (tiles.samples + 1)]);
    spikes_.reset(new uint8_t[at]);
    if (unite) fired_.reset(new uint32_t[tiles.sample_tiles * pixels * params.words]);
    for_each_run(
        [&](PixelRun& run) { isa_kernels().decode_pixels(params, tiles, run, this->lists()); });
  }

  SpikeLists lists() const { return {first_.get(), starts_.get(), spikes_.get(), fired_.get()}; }

 private:
  std::unique_ptr<int64_t[]> first_;
  std::unique_ptr<uint16_t[]> starts_;
  std::unique_ptr<uint8_t[]> spikes_;
  std::unique_ptr<uint32_t[]> fired_;
};

// The spikes as masks of the registers that hold the sums.
std::unique_ptr<uint16_t[]> masks_of_spikes(const UnsharedConvParams& params,
                                            const UnsharedConvTiles& tiles, int num_threads) {
  // Uninitialised: every mask that counts is written first. A mask of int8 rows fills half of the
  // room of one, and a register of masks may reach beyond the last.
  constexpr int64_t kPadding = kRegisterBytes;
  std::unique_ptr<uint16_t[]> masks(new uint16_t[tiles.sample_tiles * params.H * params.W *
                                                     params.G * masks_per_group(params, tiles) +
                                                 kPadding]);
  const std::vector<PixelRun> runs = pixel_runs(params, tiles);
  parallel_for(static_cast<int64_t>(runs.size()), num_threads, [&](int64_t i, int) {
    isa_kernels().mask_pixels(params, tiles, runs[i], masks.get());
  });
  return masks;
}

// The memory of all tasks that run at the same time. Uninitialised: a task writes what it reads.
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

bool is_empty(const UnsharedConvParams& params) {
  return params.N == 0 || params.OH * params.OW == 0 || params.G * params.Cout_g == 0;
}

// Threads that have enough to do to be worth waiting for.
int threads_for(const UnsharedConvParams& p, int num_threads) {
  constexpr int64_t kMinimumWork = int64_t{1} << 18;  // sums x the rows that each may select
  const int64_t sums = p.N * p.OH * p.OW * p.G * p.Cout_g;
  return threads_worth(sums * p.KH * p.KW * p.Cin_g, kMinimumWork, num_threads);
}

// What a task keeps of its weights, each of 4 bytes.
int64_t weights_of_task(const UnsharedConvParams& conv, const UnsharedConvTiles& tiles,
                        UnsharedConvKernel kernel) {
  const int64_t taps = conv.KH * conv.KW;
  switch (kernel) {
    case UnsharedConvKernel::kDepthwise:
      return taps * ceil_div(tiles.channels, 32) * 32;
    case UnsharedConvKernel::kMatrix:  // from a cache line on
      return (taps * MatrixShape(conv, tiles, tiles.samples).tap_bytes + kRegisterBytes) / 4;
    default:
      return 0;
  }
}

// neurons: those behind the convolution, or nullptr.
void run(const UnsharedConvParams& conv, const UnsharedConvLif* neurons,
         const UnsharedConvTiles& tiles, UnsharedConvKernel kernel, int num_threads) {
  const IsaKernels& isa = isa_kernels();
  const auto for_each_task = [&](auto task) { parallel_for(tiles.tasks, num_threads, task); };
  const TaskMemories memories(tiles, weights_of_task(conv, tiles, kernel), num_threads);
  switch (kernel) {
    case UnsharedConvKernel::kDepthwise:
      return for_each_task([&](int64_t task, int thread) {
        isa.unshared_conv_depthwise(conv, neurons, tiles, task, memories.of(thread));
      });
    case UnsharedConvKernel::kMasked: {
      const auto masks = masks_of_spikes(conv, tiles, num_threads);
      return for_each_task([&](int64_t task, int thread) {
        isa.unshared_conv_masked(conv, neurons, tiles, masks.get(), task,
                                 memories.of(thread).currents);
      });
    }
    case UnsharedConvKernel::kMatrix: {
      const auto masks = masks_of_spikes(conv, tiles, num_threads);
      return for_each_task([&](int64_t task, int thread) {
        isa.unshared_conv_matrix(conv, neurons, tiles, masks.get(), task, memories.of(thread));
      });
    }
    case UnsharedConvKernel::kListed: {
      const DecodedSpikes spikes(conv, tiles, tiles.prefetch, num_threads);
      return for_each_task([&](int64_t task, int thread) {
        isa.unshared_conv_listed(conv, neurons, tiles, spikes.lists(), task, memories.of(thread));
      });
    }
  }
}

UnsharedConvKernel choose(const UnsharedConvParams& params, bool products) {
  const IsaKernels& isa = isa_kernels();
  const bool multiplies = products && isa.unshared_conv_matrix != nullptr && has_matrix_unit();
  return choose_unshared_conv_kernel(params, isa.unshared_conv_masked != nullptr, multiplies);
}

// As the kernel takes it: of a depthwise convolution the groups are the channels of one.
UnsharedConvParams taken_by(UnsharedConvKernel kernel, const UnsharedConvParams& params) {
  UnsharedConvParams conv = params;
  if (kernel == UnsharedConvKernel::kDepthwise) {
    conv.G = 1;
    conv.Cin_g = conv.Cout_g = params.G;
  }
  return conv;
}

}  // namespace

void unshared_conv_cpu(const UnsharedConvParams& params, int num_threads, bool products) {
  if (is_empty(params)) return;
  num_threads = threads_for(params, num_threads);
  const UnsharedConvKernel kernel = choose(params, products);
  const UnsharedConvParams conv = taken_by(kernel, params);
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(conv, 1, num_threads);
  const int64_t bytes =
      params.N * params.G * params.Cout_g * params.OH * params.OW * int64_t{sizeof(float)};
  prefer_huge_pages(params.out, bytes);
  tiles.stream = 2 * bytes >= last_level_cache_bytes();
  run(conv, nullptr, tiles, kernel, num_threads);
}

void unshared_conv_lif_cpu(const UnsharedConvLif& params, int num_threads, bool products) {
  if (is_empty(params.conv)) return;
  num_threads = threads_for(params.conv, num_threads);
  const UnsharedConvKernel kernel = choose(params.conv, products);
  UnsharedConvLif neurons = params;
  neurons.conv = taken_by(kernel, params.conv);
  const int64_t timesteps = params.maps * params.signs * params.lif.T;
  UnsharedConvTiles tiles = choose_unshared_conv_tiles(neurons.conv, timesteps, num_threads);
  tiles.kept = choose_emitted_positions(tiles);
  run(neurons.conv, &neurons, tiles, kernel, num_threads);
}

bool multiplies_cpu(const UnsharedConvParams& params) {
  return choose(params, true) == UnsharedConvKernel::kMatrix;
}

void unshared_conv_grad_weight_cpu(const UnsharedConvGradWeight& params, int num_threads) {
  if (is_empty(params)) return;
  num_threads = threads_for(params, num_threads);
  const UnsharedConvTiles tiles = choose_unshared_conv_tiles(params, 1, num_threads);
  const DecodedSpikes spikes(params, tiles, false, num_threads);
  // A task takes all samples: they add to the same rows.
  parallel_for(tiles.tasks / tiles.sample_tiles, num_threads, [&](int64_t task, int) {
    isa_kernels().unshared_conv_grad_weight(params, tiles, spikes.lists(), task);
  });
}

}  // namespace realspike
