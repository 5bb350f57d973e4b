#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/field.cuh"
#include "cuda/unshared_conv/output.cuh"
#include "cuda/unshared_conv/rows.cuh"
#include "cuda/unshared_conv/staged_config.h"

namespace realspike {

// Blocks that a multiprocessor is to hold at once: while some wait at barriers, others add. Before
// Hopper three blocks would not leave enough registers for each.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kStagedBlocks = 2;
#else
constexpr int kStagedBlocks = 3;
#endif

// Rows of a stage that a thread brings to shared memory if the block has eight streams.
constexpr int kStageVectors = kStageRows / 8;

// How blocks are numbered: sample tiles fastest, so that blocks which read the same weights run
// together, then channel tiles, groups and output positions.
struct StagedGrid {
  int64_t blocks;
  int lanes;
  int lanes_log2;
  bool wide_out;  // writes_vectors
  Divisor sample_tiles;
  Divisor channel_tiles;
  Divisor groups;
  Divisor out_width;
};

inline StagedGrid make_staged_grid(const UnsharedConvParams& p, const StagedConfig& config) {
  return {config.blocks,
          config.lanes,
          log2_of(config.lanes),
          writes_vectors(p),
          make_divisor(config.sample_tiles),
          make_divisor(config.channel_tiles),
          make_divisor(p.G),
          make_divisor(p.OW)};
}

// The first sample and channel of a thread.
template <int S_TILE>
struct OwnedByThread {
  int n_0;
  int co;
  int64_t g;
  int64_t position;

  __device__ OwnedByThread(const StagedGrid& grid, int64_t block, int stream, int streams, int lane)
      : position(block) {
    n_0 =
        (static_cast<int>(take_remainder(position, grid.sample_tiles)) * streams + stream) * S_TILE;
    co = (static_cast<int>(take_remainder(position, grid.channel_tiles)) * grid.lanes + lane) *
         kUnsharedConvVec;
    g = take_remainder(position, grid.groups);
  }
};

// For many samples. A block owns streams * S_TILE samples x lanes * 4 channels of one output
// position and group. The 32 rows of a spike word are a stage: all threads bring them to shared
// memory, each once, while the rows of the stage before are added; a stream of `lanes` threads adds
// them to its S_TILE samples, whose sums it alone holds, in ascending (kh, kw, ci). Rows beyond the
// group are neither read nor added.
//
// Uniform over a block: the position, the stages and all barriers. Uniform over a stream: the
// samples, their spike words and the loops over their bits. Lane s of a stream has the word of its
// sample s, so there are at least S_TILE lanes.
template <typename Weight, int S_TILE>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, kStagedBlocks)
    unshared_conv_staged_fwd_kernel(const UnsharedConvParams p, const StagedGrid grid) {
  constexpr int VEC = kUnsharedConvVec;
  using Owned = OwnedByThread<S_TILE>;
  using Prepared = typename Sums<Weight, VEC, S_TILE>::Prepared;
  using Total = typename Sums<Weight, VEC, S_TILE>::Total;
  constexpr int kMostRows = Sums<Weight, VEC, S_TILE>::kMostRows;
  // [2, 1 + kStageRows, lanes]: before the rows of a stage lies one of zeros.
  Prepared* const zeros = dynamic_shared<Prepared>();

  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int stream = thread >> grid.lanes_log2;
  const int lane = thread & (grid.lanes - 1);
  const int streams = threads >> grid.lanes_log2;
  const int stage_size = kStageRows << grid.lanes_log2;
  const int stage_step = stage_size + grid.lanes;
  const int row_bytes = grid.lanes * static_cast<int>(sizeof(Prepared));
  const int Cout_g = static_cast<int>(p.Cout_g);
  Prepared* const stages = zeros + grid.lanes;

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    const Owned own(grid, block, stream, streams, lane);
    const ReceptiveField field(p, grid.out_width, own.position, own.g);
    const FieldWords words(p, field);
    const uint32_t* spikes =
        p.spikes + int64_t{own.n_0 + lane} * p.H * p.W * p.words + field.first_word;
    const Weight* weight = static_cast<const Weight*>(p.weight) + own.position * p.weight_stride_p +
                           (own.g * p.KH * p.KW * p.Cin_g + stream) * p.Cout_g + own.co;
    compute_once(spikes);
    compute_once(weight);
    const bool has_sample = lane < S_TILE && own.n_0 + lane < p.N;
    const auto most_rows = static_cast<unsigned>(own.co < Cout_g ? field.Cin_g : 0);

    // For the stage after the next: the rows `stream`, `stream + streams`, ... that the thread
    // brings, and its sample's spike word.
    WeightVector<Weight, VEC> row[kStageVectors];
    uint32_t spike_word = 0;
    const auto fetch = [&](const FieldWord& at) {
      const int ci = field.channel(at.word) + stream;
      const Weight* from = weight + int64_t{at.row} * Cout_g;
#pragma unroll
      for (int i = 0; i < kStageVectors; ++i, from += streams * Cout_g) {
        if (i * threads + thread < stage_size &&
            static_cast<unsigned>(ci + i * streams) < most_rows) {
          row[i].template load<false>(from);
        }
      }
      if (has_sample) spike_word = __ldg(spikes + at.spikes);
    };
    const auto put = [&](Prepared* stage) {
#pragma unroll
      for (int i = 0; i < kStageVectors; ++i) {
        const int to = i * threads + thread;
        if (to < stage_size) stage[to] = row[i].prepared();
      }
    };
    const auto fired = [&](const FieldWord& at) { return spike_word & field.mask(at.word); };

    Sums<Weight, VEC, S_TILE> sums;
    int fired_rows = 0;  // of the lane's sample
    uint32_t now = 0;
    Prepared* stage = stages;
    if (thread < grid.lanes) zeros[thread] = zeros[thread + stage_step] = Prepared{};
    FieldWord at = words.first(p, field);
    if (words.count > 0) {
      fetch(at);
      put(stage);
      now = fired(at);
    }
    if (words.count > 1) {
      words.step(p, field, at);
      fetch(at);
    }
    __syncthreads();
    for (int left = words.count - 1; left >= 0; --left) {
      Prepared* const next_stage = stage == stages ? stages + stage_step : stages;
      uint32_t next = 0;
      if (left > 0) {
        put(next_stage);
        next = fired(at);
        if (left > 1) {
          words.step(p, field, at);
          fetch(at);
        }
      }
      uint32_t of_sample[S_TILE];
#pragma unroll
      for (int s = 0; s < S_TILE; ++s) of_sample[s] = __shfl_sync(~0u, now, s, grid.lanes);
      if constexpr (kMostRows > 0) fired_rows += __popc(now);
      // Two rows at a time, in ascending order. An odd number of rows is made even by row -1, which
      // is zeros.
      const char* const first_row = reinterpret_cast<const char*>(stage + lane);
#pragma unroll
      for (int s = 0; s < S_TILE; ++s) {
        uint32_t rest = of_sample[s];
        const auto next_row = [&] {
          const uint32_t lowest = rest & (0u - rest);
          rest ^= lowest;
          const int row = 31 - __clz(static_cast<int>(lowest));
          return *reinterpret_cast<const Prepared*>(first_row + row * row_bytes);
        };
        while (rest != 0) {
          const Prepared one = next_row();
          const Prepared other = next_row();
          sums.add(s, one);
          sums.add(s, other);
        }
      }
      if constexpr (kMostRows > 0) {
        if (left % (kMostRows / kStageRows) == 0) sums.empty();
      }
      now = next;
      stage = next_stage;
      __syncthreads();
    }

    // Computed again: the registers have no room for it during the loop.
    uint64_t again = static_cast<uint64_t>(block);
    compute_once(again);
    const Owned out(grid, static_cast<int64_t>(again), stream, streams, lane);
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
      int rows = 0;
      if constexpr (kMostRows > 0) rows = __shfl_sync(~0u, fired_rows, s, grid.lanes);
      if (out.n_0 + s >= p.N || out.co >= Cout_g) continue;
      Total totals[VEC];
      sums.total(s, totals);
      if constexpr (kMostRows > 0) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) totals[i] -= excess_of_bytes(rows);
      }
      write_totals(p, grid.wide_out, 0, out.n_0 + s, out.g * p.Cout_g + out.co, out.position,
                   totals);
    }
  }
}

using StagedKernel = void (*)(const UnsharedConvParams, const StagedGrid);

template <typename Weight>
StagedKernel select_staged(const StagedConfig& config) {
  if (config.stream_samples == 4) return unshared_conv_staged_fwd_kernel<Weight, 4>;
  if (config.stream_samples == 8) return unshared_conv_staged_fwd_kernel<Weight, 8>;
  return nullptr;
}

// Returns nullptr for a configuration that has no kernel.
inline StagedKernel select_staged_kernel(DType weight_dtype, const StagedConfig& config) {
  return with_weight(weight_dtype,
                     [&](auto weight) { return select_staged<decltype(weight)>(config); });
}

}  // namespace realspike
