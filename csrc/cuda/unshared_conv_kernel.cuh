#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/device.cuh"
#include "cuda/unshared_conv_config.h"
#include "cuda/unshared_conv_grid.cuh"
#include "cuda/unshared_conv_rows.cuh"

namespace realspike {

// Weight rows of a stream whose loads are issued before the first of them is added. One sample
// leaves the registers for more of them.
template <int S_TILE>
constexpr int kRowsInFlight = S_TILE == 1 ? 8 : 4;

template <typename Total, int VEC>
__device__ void store_totals(Total* to, const Total (&from)[VEC]) {
  if constexpr (VEC == 1) {
    *to = from[0];
  } else {
    static_assert(VEC == 4, "a vector is four weights");
    *reinterpret_cast<Vector4<Total>*>(to) = {from[0], from[1], from[2], from[3]};
  }
}

// Leaves a sum to the second pass, if there is one, in a workspace [splits, N, OH, OW, Cout]; or
// makes it an output.
template <typename Total>
__device__ void write_total(const UnsharedConvParams& p, int64_t split, int64_t n, int64_t co,
                            int64_t position, Total total) {
  if (p.workspace != nullptr) {
    const int64_t pixel = (split * p.N + n) * p.OH * p.OW + position;
    static_cast<Total*>(p.workspace)[pixel * p.G * p.Cout_g + co] = total;
    return;
  }
  p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] =
      with_bias(p, co, position, total);
}

// The same for neighbouring channels; `wide`: they lie side by side, at a multiple of 16 bytes.
template <typename Total>
__device__ void write_totals(const UnsharedConvParams& p, bool wide, int64_t n, int64_t co,
                             int64_t position, const Total (&totals)[4]) {
  if (!wide) {
#pragma unroll
    for (int i = 0; i < 4; ++i) write_total(p, 0, n, co + i, position, totals[i]);
  } else if (p.workspace != nullptr) {
    const int64_t pixel = n * p.OH * p.OW + position;
    store_totals(static_cast<Total*>(p.workspace) + pixel * p.G * p.Cout_g + co, totals);
  } else {
    float out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = with_bias(p, co + i, position, totals[i]);
    store_totals(p.out + n * p.out_stride_n + co + position * p.out_stride_p, out);
  }
}

// Lists, in ascending order, the rows that some sample uses: for each the row of the weights and,
// in the lowest bits, which samples. Every warp finds for itself where the rows of each word begin,
// then writes those of every warps-th word. Returns how many rows there are.
template <int S_TILE>
__device__ int list_rows(UnsharedConvShared<S_TILE>& shared, int words) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kHalves = kUnsharedConvListWords / 32;
  static_assert(kHalves == 2, "a lane has two words");
  uint32_t used[kHalves] = {};
  int before[kHalves];
  int rows = 0;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) used[half] |= shared.fired[s][half * 32 + lane];
    const int own = __popc(used[half]);
    int sum = own;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int lower = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += lower;
    }
    before[half] = rows + sum - own;
    rows += __shfl_sync(~0u, sum, 31);
  }
  // By way of lane 0, so that the compiler knows the word to be uniform over the warp.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  for (int word = warp; word < words; word += static_cast<int>(blockDim.x) / 32) {
    const uint32_t rows_of_word = __shfl_sync(~0u, word < 32 ? used[0] : used[1], word % 32);
    const int first = __shfl_sync(~0u, word < 32 ? before[0] : before[1], word % 32);
    uint32_t samples = 0;
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
      if ((shared.fired[s][word] >> lane & 1u) != 0) samples |= 1u << s;
    }
    if (samples != 0) {
      const auto row = static_cast<uint32_t>(shared.row[word] + lane);
      shared.list[first + __popc(rows_of_word & ((1u << lane) - 1u))] =
          row << kUnsharedConvListSamples | samples;
    }
  }
  return rows;
}

// For few samples: the rows that some sample uses stream past once. A block owns S_TILE samples x
// (lanes * VEC) channels of one output position and group, in one of `splits` shares of the spike
// words; a thread sums VEC neighbouring channels of all these samples over the rows of its stream.
// The block lists the rows of kUnsharedConvListWords words in shared memory; the streams take turns
// at groups of kRowsInFlight rows of the list, whose loads are issued before the first of them is
// added. What the streams add up meets in shared memory, where one thread per output adds the
// streams in ascending order.
//
// Uniform over a block: the tile, the share, the list and all barriers. Uniform over a stream: the
// rows and their samples. Streams share a warp if a row is narrow; then they diverge.
template <typename Weight, int VEC, int S_TILE>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, 4)
    unshared_conv_fwd_kernel(const UnsharedConvParams p, const UnsharedConvGrid grid) {
  using Total = typename Sums<Weight, VEC, S_TILE>::Total;
  constexpr int kMostRows = Sums<Weight, VEC, S_TILE>::kMostRows;
  constexpr int kGroup = kRowsInFlight<S_TILE>;
  static_assert(kGroup <= kUnsharedConvMostInFlight, "the list has room to be filled up");
  static_assert(S_TILE <= kUnsharedConvListSamples,
                "an entry of the list has a bit for each sample");
  using Shared = UnsharedConvShared<S_TILE>;
  Shared& shared = *dynamic_shared<Shared>();
  Total* const partial = dynamic_shared<Total>();  // [S_TILE, streams, tile_channels]
  // Bytes are too large by 128; how many were added is known from the spikes.
  constexpr bool kCounts = sizeof(Weight) == 1;

  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int stream = thread >> grid.lanes_log2;
  const int lane = thread & (grid.lanes - 1);
  const int streams = threads >> grid.lanes_log2;
  constexpr int kVecLog2 = VEC == 4 ? 2 : 0;
  const int tile_channels_log2 = grid.lanes_log2 + kVecLog2;
  const int tile_channels = 1 << tile_channels_log2;
  const int Cout_g = static_cast<int>(p.Cout_g);
  const int splits = static_cast<int>(grid.splits.divisor);

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int64_t n_0 = take_remainder(position, grid.sample_tiles) * S_TILE;
    const int co_0 = static_cast<int>(take_remainder(position, grid.channel_tiles))
                     << tile_channels_log2;
    const int split = static_cast<int>(take_remainder(position, grid.splits));
    const int64_t g = take_remainder(position, grid.groups);
    const int samples = static_cast<int>(p.N - n_0 < S_TILE ? p.N - n_0 : S_TILE);

    const ReceptiveField field(p, grid.out_width, position, g);
    const FieldWords words(p, field);
    int64_t quotient = words.count + splits - 1;
    take_remainder(quotient, grid.splits);
    const int share = static_cast<int>(quotient);
    const int last = (split + 1) * share;
    const int end = last < words.count ? last : words.count;

    // Threads beyond the last channel own nothing.
    const bool owns = co_0 + lane * VEC < Cout_g;
    const uint32_t row_bytes = static_cast<uint32_t>(Cout_g * sizeof(Weight));
    const uint32_t* const spikes = p.spikes + n_0 * p.H * p.W * p.words + field.first_word;
    const char* weight = reinterpret_cast<const char*>(
        static_cast<const Weight*>(p.weight) + position * p.weight_stride_p +
        g * p.KH * p.KW * p.Cin_g * p.Cout_g + co_0 + lane * VEC);
    compute_once(weight);

    Sums<Weight, VEC, S_TILE> sums;
    int rows_left = kMostRows;
    int fired_rows[kCounts ? S_TILE : 1] = {};  // of each sample, in the words of the lane
    for (int first = split * share; first < end; first += kUnsharedConvListWords) {
      const int count = end - first < kUnsharedConvListWords ? end - first : kUnsharedConvListWords;
      for (int i = thread; i < S_TILE * kUnsharedConvListWords; i += threads) {
        const int s = i / kUnsharedConvListWords, word = i % kUnsharedConvListWords;
        uint32_t bits = 0;
        if (word < count && s < samples) {
          const FieldPlace at = words.at(p, field, first + word);
          bits = __ldg(spikes + s * p.H * p.W * p.words + at.spikes) & field.mask(at.word);
          if (s == 0) shared.row[word] = at.row;
        }
        shared.fired[s][word] = bits;
      }
      __syncthreads();
      const int rows = list_rows<S_TILE>(shared, count);
      // The last group is filled up with row 0, for no sample.
      if (thread < kGroup) shared.list[rows + thread] = 0;
      if constexpr (kCounts) {
#pragma unroll
        for (int s = 0; s < S_TILE; ++s) {
          fired_rows[s] += __popc(shared.fired[s][thread % 32]);
          fired_rows[s] += __popc(shared.fired[s][thread % 32 + 32]);
        }
      }
      __syncthreads();

      for (int at = stream * kGroup; owns && at < rows; at += streams * kGroup) {
        uint32_t entry[kGroup];
        WeightVector<Weight, VEC> row[kGroup];
#pragma unroll
        for (int r = 0; r < kGroup; r += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(shared.list + at + r);
          entry[r] = four.x;
          entry[r + 1] = four.y;
          entry[r + 2] = four.z;
          entry[r + 3] = four.w;
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
          const uint64_t number = entry[r] >> kUnsharedConvListSamples;
          row[r].load(reinterpret_cast<const Weight*>(weight + number * row_bytes));
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
          const auto weights = row[r].prepared();
#pragma unroll
          for (int s = 0; s < S_TILE; ++s) {
            if ((entry[r] >> s & 1u) != 0) sums.add(s, weights);
          }
        }
        if constexpr (kMostRows > 0) {
          rows_left -= kGroup;
          if (rows_left == 0) {
            sums.empty();
            rows_left = kMostRows;
          }
        }
      }
      __syncthreads();
    }

#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
      Total totals[VEC];
      sums.total(s, totals);
      store_totals(partial + ((s * streams + stream) << tile_channels_log2) + lane * VEC, totals);
    }
    if constexpr (kCounts) {
#pragma unroll
      for (int s = 0; s < S_TILE; ++s) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
          fired_rows[s] += __shfl_xor_sync(~0u, fired_rows[s], distance);
        }
      }
    }
    __syncthreads();
    for (int i = thread; i < S_TILE * tile_channels; i += threads) {
      const int s = i >> tile_channels_log2;
      const int channel = i & (tile_channels - 1);
      if (s >= samples || co_0 + channel >= Cout_g) continue;
      const Total* const first = partial + s * streams * tile_channels + channel;
      Total total = first[0];
      for (int k = 1; k < streams; ++k) total += first[k * tile_channels];
      if constexpr (kCounts) {
        int rows = fired_rows[0];
#pragma unroll
        for (int other = 1; other < S_TILE; ++other) {
          if (s == other) rows = fired_rows[other];
        }
        total -= excess_of_bytes(rows);
      }
      write_total(p, split, n_0 + s, g * p.Cout_g + co_0 + channel, position, total);
    }
    __syncthreads();
  }
}

using UnsharedConvKernel = void (*)(const UnsharedConvParams, const UnsharedConvGrid);

// Returns nullptr for a sample tile that has no kernel.
template <typename Weight>
UnsharedConvKernel select_streaming(const UnsharedConvConfig& config) {
  const bool wide = config.vec == 4;
  if (config.sample_tile == 1) {
    return wide ? unshared_conv_fwd_kernel<Weight, 4, 1> : unshared_conv_fwd_kernel<Weight, 1, 1>;
  }
  if (config.sample_tile == 4) {
    return wide ? unshared_conv_fwd_kernel<Weight, 4, 4> : unshared_conv_fwd_kernel<Weight, 1, 4>;
  }
  return nullptr;
}

inline UnsharedConvKernel select_unshared_conv_kernel(DType weight_dtype,
                                                      const UnsharedConvConfig& config) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return select_streaming<float>(config);
    case DType::kFloat16:
      return select_streaming<Float16Weight>(config);
    case DType::kBFloat16:
      return select_streaming<BFloat16Weight>(config);
    default:
      return select_streaming<Int8Weight>(config);
  }
}

}  // namespace realspike
