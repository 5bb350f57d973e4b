#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/device.cuh"
#include "cuda/unshared_conv_config.h"
#include "cuda/unshared_conv_grid.cuh"
#include "cuda/unshared_conv_rows.cuh"

namespace realspike {

// Weight rows a thread has in flight: their loads are issued before the first of them is added.
constexpr int kUnsharedConvRowsInFlight = 4;

template <typename Total>
__device__ void store_totals(Total* to, const Total (&from)[1]) {
  *to = from[0];
}

// Whole vectors of 16 bytes.
template <typename Total, int VEC>
__device__ void store_totals(Total* to, const Total (&from)[VEC]) {
#pragma unroll
  for (int i = 0; i < VEC; i += 4) {
    Vector4<Total> four = {from[i], from[i + 1], from[i + 2], from[i + 3]};
    *reinterpret_cast<Vector4<Total>*>(to + i) = four;
  }
}

// Adds the rows of one spike word to the samples whose bit is set, in ascending channel order. Rows
// that no sample of the tile uses are not touched. `rows` is the row of bit 0, which may belong to
// the group before; the bits of such rows are not set.
template <typename Weight, int VEC, int S_TILE>
__device__ void add_rows(const Weight* rows, uint32_t row_bytes, const uint32_t (&fired)[S_TILE],
                         Sums<Weight, VEC, S_TILE>& sums) {
  uint32_t rest = 0;
#pragma unroll
  for (int s = 0; s < S_TILE; ++s) {
    rest |= fired[s];
    sums.count(s, fired[s]);
  }

  while (rest != 0) {
    uint32_t bit[kUnsharedConvRowsInFlight];  // 0 when the word is used up
    WeightVector<Weight, VEC> row[kUnsharedConvRowsInFlight];
#pragma unroll
    for (int r = 0; r < kUnsharedConvRowsInFlight; ++r) {
      bit[r] = rest & (0u - rest);
      rest ^= bit[r];
      if (bit[r] != 0) {
        const uint64_t position = static_cast<uint32_t>(31 - __clz(static_cast<int>(bit[r])));
        row[r].load(reinterpret_cast<const Weight*>(reinterpret_cast<const char*>(rows) +
                                                    position * row_bytes));
      }
    }
#pragma unroll
    for (int r = 0; r < kUnsharedConvRowsInFlight; ++r) {
#pragma unroll
      for (int s = 0; s < S_TILE; ++s) {
        if ((fired[s] & bit[r]) != 0) sums.add(s, row[r]);
      }
    }
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
  float out = static_cast<float>(total);
  if (p.bias != nullptr) {
    out += __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
  }
  p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] = out;
}

// Moves the sums to the thread's own place in shared memory, before their lanes overflow.
template <typename Total, int VEC, int S_TILE>
__device__ void empty_into(Total* own, int stride, Sums<Int8Weight, VEC, S_TILE>& sums) {
#pragma unroll
  for (int s = 0; s < S_TILE; ++s) {
    Total totals[VEC];
    sums.total(s, totals);
#pragma unroll
    for (int i = 0; i < VEC; ++i) totals[i] += own[s * stride + i];
    store_totals(own + s * stride, totals);
  }
  sums.clear();
}

// For few samples: touched rows stream past once. A block owns S_TILE samples x (lanes * VEC)
// channels of one output position and group; a thread sums VEC neighbouring channels of all these
// samples over the words of its stream. The streams take turns at the spike words of the taps
// inside the map, so every word and therefore every touched row belongs to one stream. What they
// add up meets in shared memory, where one thread per output adds the streams in ascending order.
//
// Uniform over a block: the tile, the taps, the number of words and all barriers. Uniform over a
// stream: the spike words, hence the rows and the loop over them. Streams share a warp if a row is
// narrow; they diverge freely because no warp-wide operation is used.
//
// Two blocks on a multiprocessor leave 128 registers to a thread, which is enough for every tile.
template <typename Weight, int VEC, int S_TILE>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, 2)
    unshared_conv_fwd_kernel(const UnsharedConvParams p, const UnsharedConvGrid grid) {
  constexpr int kReduceTile = S_TILE < kUnsharedConvReduceTile ? S_TILE : kUnsharedConvReduceTile;
  using Total = typename Sums<Weight, VEC, S_TILE>::Total;
  constexpr int kMostRows = Sums<Weight, VEC, S_TILE>::kMostRows;
  static_assert(kMostRows == 0 || S_TILE == kReduceTile, "what is emptied has a place of its own");
  Total* const partial = dynamic_shared<Total>();  // [kReduceTile, streams, tile_channels]

  const int stream = static_cast<int>(threadIdx.x) >> grid.lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (grid.lanes - 1);
  const int streams = static_cast<int>(blockDim.x) >> grid.lanes_log2;
  constexpr int kVecLog2 = VEC == 16 ? 4 : VEC == 8 ? 3 : VEC == 4 ? 2 : 0;
  static_assert(1 << kVecLog2 == VEC, "the vector width is 1, 4, 8 or 16");
  const int tile_channels_log2 = grid.lanes_log2 + kVecLog2;
  const int tile_channels = 1 << tile_channels_log2;
  const int Cout_g = static_cast<int>(p.Cout_g);

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int64_t n_0 = take_remainder(position, grid.sample_tiles) * S_TILE;
    const int co_0 = static_cast<int>(take_remainder(position, grid.channel_tiles))
                     << tile_channels_log2;
    const int split = static_cast<int>(take_remainder(position, grid.splits));
    const int64_t g = take_remainder(position, grid.groups);
    const int samples = static_cast<int>(p.N - n_0 < S_TILE ? p.N - n_0 : S_TILE);

    Sums<Weight, VEC, S_TILE> sums;
    Total* const own = partial + stream * tile_channels + lane * VEC;
    const int own_stride = streams * tile_channels;
    if constexpr (kMostRows > 0) {
#pragma unroll
      for (int s = 0; s < S_TILE; ++s) {
        const Total nothing[VEC] = {};
        store_totals(own + s * own_stride, nothing);
      }
    }

    // Threads beyond the last channel own nothing.
    if (co_0 + lane * VEC < Cout_g) {
      const ReceptiveField field(p, grid.out_width, position, g);
      const uint32_t row_bytes = static_cast<uint32_t>(Cout_g * sizeof(Weight));
      const uint32_t* const spikes = p.spikes + n_0 * p.H * p.W * p.words + field.first_word;
      const Weight* const weight = static_cast<const Weight*>(p.weight) +
                                   position * p.weight_stride_p +
                                   g * p.KH * p.KW * p.Cin_g * p.Cout_g + co_0 + lane * VEC;
      int rows_left = kMostRows;
      const auto add_word = [&](const FieldWord& at) {
        const uint32_t mask = field.mask(at.word);
        uint32_t fired[S_TILE];
        const uint32_t* sample = spikes + (at.h * p.W + at.w) * p.words + at.word;
#pragma unroll
        for (int s = 0; s < S_TILE; ++s, sample += p.H * p.W * p.words) {
          fired[s] = s < samples ? __ldg(sample) & mask : 0u;
        }
        add_rows<Weight, VEC, S_TILE>(weight + at.row * p.Cout_g, row_bytes, fired, sums);
        if constexpr (kMostRows > 0) {
          rows_left -= 32;
          if (rows_left == 0) {
            empty_into(own, own_stride, sums);
            rows_left = kMostRows;
          }
        }
      };
      walk_words<false>(p, field, split * streams + stream,
                        streams * static_cast<int>(grid.splits.divisor), add_word);
    }

    if constexpr (kMostRows > 0) empty_into(own, own_stride, sums);

    // Constant bounds, so that the sums stay in registers.
#pragma unroll
    for (int s_0 = 0; s_0 < S_TILE; s_0 += kReduceTile) {
      if constexpr (kMostRows == 0) {
#pragma unroll
        for (int s = 0; s < kReduceTile; ++s) {
          Total totals[VEC];
          sums.total(s_0 + s, totals);
          store_totals(own + s * own_stride, totals);
        }
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kReduceTile * tile_channels; i += blockDim.x) {
        const int s = i >> tile_channels_log2;
        const int channel = i & (tile_channels - 1);
        if (s_0 + s >= samples || co_0 + channel >= Cout_g) continue;
        const Total* const first = partial + s * streams * tile_channels + channel;
        Total total = first[0];
        for (int k = 1; k < streams; ++k) total += first[k * tile_channels];
        const int64_t n = n_0 + s_0 + s;
        const int64_t co = g * p.Cout_g + co_0 + channel;
        write_total(p, split, n, co, position, total);
      }
      __syncthreads();
    }
  }
}

constexpr int kUnsharedConvSecondPassThreads = 256;

struct UnsharedConvSecondPass {
  int64_t outputs;
  int splits;
  Divisor positions;
  Divisor channels;
  int64_t blocks;
};

inline UnsharedConvSecondPass make_unshared_conv_second_pass(const UnsharedConvParams& p,
                                                             const UnsharedConvConfig& config) {
  const int64_t outputs = p.N * p.G * p.Cout_g * p.OH * p.OW;
  constexpr int64_t kThreads = kUnsharedConvSecondPassThreads;
  return {outputs, config.splits, make_divisor(p.OH * p.OW), make_divisor(p.G * p.Cout_g),
          std::min<int64_t>((outputs + kThreads - 1) / kThreads, INT32_MAX)};
}

// One thread per output: adds what the splits left, in ascending order, then scales int8 sums and
// adds the bias.
template <typename Total>
__global__ void __launch_bounds__(kUnsharedConvSecondPassThreads)
    unshared_conv_second_pass_kernel(const UnsharedConvParams p,
                                     const UnsharedConvSecondPass grid) {
  const Total* const sums = static_cast<const Total*>(p.workspace);
  int64_t i = static_cast<int64_t>(blockIdx.x) * kUnsharedConvSecondPassThreads + threadIdx.x;
  for (; i < grid.outputs; i += static_cast<int64_t>(gridDim.x) * kUnsharedConvSecondPassThreads) {
    Total total = __ldg(sums + i);
    for (int k = 1; k < grid.splits; ++k) total += __ldg(sums + k * grid.outputs + i);
    int64_t n = i;
    const int64_t co = take_remainder(n, grid.channels);
    const int64_t position = take_remainder(n, grid.positions);
    float out = static_cast<float>(total);
    if constexpr (static_cast<Total>(0.5) == 0) {  // int32_t
      if (p.scale != nullptr) out *= __ldg(p.scale + co);
    }
    if (p.bias != nullptr) {
      out += __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
    }
    p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] = out;
  }
}

using UnsharedConvKernel = void (*)(const UnsharedConvParams, const UnsharedConvGrid);

template <typename Weight, int VEC, int MOST_SAMPLES>
UnsharedConvKernel select_sample_tile(int sample_tile) {
  if (sample_tile == 1) return unshared_conv_fwd_kernel<Weight, VEC, 1>;
  if (sample_tile == 2) return unshared_conv_fwd_kernel<Weight, VEC, 2>;
  if (sample_tile == 4) return unshared_conv_fwd_kernel<Weight, VEC, 4>;
  if constexpr (MOST_SAMPLES >= 8) {
    if (sample_tile == 8) return unshared_conv_fwd_kernel<Weight, VEC, 8>;
  }
  if constexpr (MOST_SAMPLES >= 16) {
    if (sample_tile == 16) return unshared_conv_fwd_kernel<Weight, VEC, 16>;
  }
  return nullptr;
}

template <typename Weight, int VEC, int MOST_SAMPLES>
UnsharedConvKernel select_vec(const UnsharedConvConfig& config) {
  return config.vec == VEC ? select_sample_tile<Weight, VEC, MOST_SAMPLES>(config.sample_tile)
                           : select_sample_tile<Weight, 1, MOST_SAMPLES>(config.sample_tile);
}

// Returns nullptr for a sample tile that has no kernel.
inline UnsharedConvKernel select_unshared_conv_kernel(DType weight_dtype,
                                                      const UnsharedConvConfig& config) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return select_vec<float, 4, 16>(config);
    case DType::kFloat16:
      return select_vec<Float16Weight, 8, 8>(config);
    case DType::kBFloat16:
      return select_vec<BFloat16Weight, 8, 8>(config);
    default:
      return select_vec<Int8Weight, 16, 4>(config);
  }
}

}  // namespace realspike
