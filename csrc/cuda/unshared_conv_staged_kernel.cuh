#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/device.cuh"
#include "cuda/unshared_conv_config.h"
#include "cuda/unshared_conv_grid.cuh"
#include "cuda/unshared_conv_kernel.cuh"
#include "cuda/unshared_conv_rows.cuh"

namespace realspike {

constexpr int kStageRows = 32;  // those of one spike word
// Vectors of a stage that a thread brings to shared memory.
constexpr int kStageVectors = kStageRows * 32 / kUnsharedConvMaxThreads;

// The walk of a block over the spike words of one position's taps on the map.
struct StageWalk {
  int kh;
  int kw;
  int word;
};

// For many samples. A block owns streams * S_TILE samples x (lanes * VEC) channels of one output
// position and group. The 32 rows of a spike word are a stage: all threads bring them to shared
// memory, each once, while the rows of the stage before are added; a stream of `lanes` threads adds
// them to its S_TILE samples, whose sums it alone holds, in ascending (kh, kw, ci). Rows beyond the
// group are neither read nor added.
//
// Uniform over a block: the position, the walk over the stages and all barriers. Uniform over a
// stream: the samples, their spike words and the loops over their bits.
template <typename Weight, int VEC, int S_TILE>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, 1)
    unshared_conv_staged_fwd_kernel(const UnsharedConvParams p, const UnsharedConvGrid grid) {
  using Total = typename Sums<Weight, VEC, S_TILE>::Total;
  constexpr int kMostRows = Sums<Weight, VEC, S_TILE>::kMostRows;
  uint4* const stage = dynamic_shared<uint4>();  // [kStageRows, lanes]

  const int stream = static_cast<int>(threadIdx.x) >> grid.lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (grid.lanes - 1);
  const int streams = static_cast<int>(blockDim.x) >> grid.lanes_log2;
  const int Cout_g = static_cast<int>(p.Cout_g);

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int64_t n_0 = (take_remainder(position, grid.sample_tiles) * streams + stream) * S_TILE;
    const int co =
        (static_cast<int>(take_remainder(position, grid.channel_tiles)) * grid.lanes + lane) * VEC;
    const int64_t g = take_remainder(position, grid.groups);
    const int64_t samples = p.N - n_0 < S_TILE ? p.N - n_0 : S_TILE;
    const ReceptiveField field(p, grid.out_width, position, g);
    const uint32_t* const spikes = p.spikes + n_0 * p.H * p.W * p.words + field.first_word;
    const Weight* const weight = static_cast<const Weight*>(p.weight) +
                                 position * p.weight_stride_p +
                                 g * p.KH * p.KW * p.Cin_g * p.Cout_g + co;

    const auto outside = [&](const StageWalk& at) {
      const int h = field.h_0 + at.kh * static_cast<int>(p.dilation_h);
      const int w = field.w_0 + at.kw * static_cast<int>(p.dilation_w);
      return h < 0 || h >= p.H || w < 0 || w >= p.W;
    };
    const auto skip_outside = [&](StageWalk& at) {
      while (at.kh < p.KH && outside(at)) {
        if (++at.kw == p.KW) {
          at.kw = 0;
          ++at.kh;
        }
      }
    };
    const auto step = [&](StageWalk& at) {
      if (++at.word < field.words) return;
      at.word = 0;
      if (++at.kw == p.KW) {
        at.kw = 0;
        ++at.kh;
      }
      skip_outside(at);
    };

    uint4 vectors[kStageVectors];
    // The thread's share of the rows of a stage: row `stream`, `stream + streams`, ...
    const auto fetch = [&](const StageWalk& at) {
      const int64_t tap =
          static_cast<int64_t>(at.kh * static_cast<int>(p.KW) + at.kw) * field.Cin_g;
#pragma unroll
      for (int i = 0; i < kStageVectors; ++i) {
        const int row = stream + i * streams;
        const int ci = field.channel(at.word) + row;
        if (row < kStageRows && ci >= 0 && ci < field.Cin_g && co < Cout_g) {
          vectors[i] = load_vector(weight + (tap + ci) * p.Cout_g);
        }
      }
    };

    Sums<Weight, VEC, S_TILE> sums;
    Total emptied[kMostRows > 0 ? S_TILE : 1][VEC] = {};
    int rows_left = kMostRows;
    const auto empty = [&] {
      if constexpr (kMostRows > 0) {
#pragma unroll
        for (int s = 0; s < S_TILE; ++s) {
          Total totals[VEC];
          sums.total(s, totals);
#pragma unroll
          for (int i = 0; i < VEC; ++i) emptied[s][i] += totals[i];
        }
        sums.clear();
        rows_left = kMostRows;
      }
    };

    StageWalk now = {0, 0, 0};
    skip_outside(now);
    if (now.kh < p.KH && field.words > 0) fetch(now);
    while (now.kh < p.KH && field.words > 0) {
#pragma unroll
      for (int i = 0; i < kStageVectors; ++i) {
        const int row = stream + i * streams;
        if (row < kStageRows) stage[(row << grid.lanes_log2) + lane] = vectors[i];
      }
      __syncthreads();
      StageWalk ahead = now;
      step(ahead);
      if (ahead.kh < p.KH) fetch(ahead);

      const int h = field.h_0 + now.kh * static_cast<int>(p.dilation_h);
      const int w = field.w_0 + now.kw * static_cast<int>(p.dilation_w);
      const uint32_t mask = field.mask(now.word);
      const uint32_t* sample = spikes + (h * p.W + w) * p.words + now.word;
#pragma unroll
      for (int s = 0; s < S_TILE; ++s, sample += p.H * p.W * p.words) {
        uint32_t rest = s < samples ? __ldg(sample) & mask : 0u;
        sums.count(s, rest);
        while (rest != 0) {
          const uint32_t bit = rest & (0u - rest);
          rest ^= bit;
          WeightVector<Weight, VEC> row;
          row.set(stage[((31 - __clz(static_cast<int>(bit))) << grid.lanes_log2) + lane]);
          sums.add(s, row);
        }
      }
      if constexpr (kMostRows > 0) {
        rows_left -= kStageRows;
        if (rows_left == 0) empty();
      }
      __syncthreads();
      now = ahead;
    }
    empty();

    if (co >= Cout_g) continue;
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
      if (s >= samples) break;
      Total totals[VEC];
      if constexpr (kMostRows > 0) {
#pragma unroll
        for (int i = 0; i < VEC; ++i) totals[i] = emptied[s][i];
      } else {
        sums.total(s, totals);
      }
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        write_total(p, 0, n_0 + s, g * p.Cout_g + co + i, position, totals[i]);
      }
    }
  }
}

// Returns nullptr for a configuration that has no kernel.
inline UnsharedConvKernel select_unshared_conv_staged_kernel(DType weight_dtype) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return unshared_conv_staged_fwd_kernel<float, 4, 8>;
    case DType::kFloat16:
      return unshared_conv_staged_fwd_kernel<Float16Weight, 8, 8>;
    case DType::kBFloat16:
      return unshared_conv_staged_fwd_kernel<BFloat16Weight, 8, 8>;
    default:
      return unshared_conv_staged_fwd_kernel<Int8Weight, 16, 4>;
  }
}

// The kernel of a configuration, or nullptr.
inline UnsharedConvKernel select_kernel(DType weight_dtype, const UnsharedConvConfig& config) {
  return config.staged ? select_unshared_conv_staged_kernel(weight_dtype)
                       : select_unshared_conv_kernel(weight_dtype, config);
}

}  // namespace realspike
