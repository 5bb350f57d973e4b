#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/device.cuh"
#include "cuda/unshared_conv_config.h"

namespace realspike {

// Weight rows a thread has in flight: their loads are issued before the first of them is added.
constexpr int kUnsharedConvRowsInFlight = 4;

// VEC neighbouring weights of a row as they lie in memory, widened to float32 when they are added.
// This is all that the kernel knows about the type of the weights.
template <typename Weight, int VEC>
struct WeightVector;

template <>
struct WeightVector<float, 1> {
  float w;
  __device__ void load(const float* row) { w = __ldg(row); }
  __device__ void add_to(float (&sum)[1]) const { sum[0] += w; }
};

template <>
struct WeightVector<float, 4> {
  float4 w;
  __device__ void load(const float* row) { w = __ldg(reinterpret_cast<const float4*>(row)); }
  __device__ void add_to(float (&sum)[4]) const {
    sum[0] += w.x;
    sum[1] += w.y;
    sum[2] += w.z;
    sum[3] += w.w;
  }
};

// How blocks are numbered: sample tiles fastest, so that blocks which read the same weights run
// together, then channel tiles, groups and output positions.
struct UnsharedConvGrid {
  int64_t blocks;
  int lanes;
  int lanes_log2;
  Divisor sample_tiles;
  Divisor channel_tiles;
  Divisor groups;
  Divisor out_width;
};

inline UnsharedConvGrid make_unshared_conv_grid(const UnsharedConvParams& p,
                                                const UnsharedConvConfig& config) {
  int lanes_log2 = 0;
  while ((1 << lanes_log2) < config.lanes) ++lanes_log2;
  return {config.blocks,
          config.lanes,
          lanes_log2,
          make_divisor(config.sample_tiles),
          make_divisor(config.channel_tiles),
          make_divisor(p.G),
          make_divisor(p.OW)};
}

__device__ inline void store_vector(float* to, const float (&from)[1]) { *to = from[0]; }

__device__ inline void store_vector(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

// Adds the rows of one spike word to the samples whose bit is set, in ascending channel order. Rows
// that no sample of the tile uses are not touched. `rows` is the row of bit 0, which may belong to
// the group before; the bits of such rows are not set.
template <typename Weight, int VEC, int S_TILE>
__device__ void add_rows(const Weight* rows, uint32_t row_bytes, const uint32_t (&fired)[S_TILE],
                         float (&sum)[S_TILE][VEC]) {
  uint32_t rest = 0;
#pragma unroll
  for (int s = 0; s < S_TILE; ++s) rest |= fired[s];

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
        if ((fired[s] & bit[r]) != 0) row[r].add_to(sum[s]);
      }
    }
  }
}

// A block owns S_TILE samples x (lanes * VEC) channels of one output position and group; a thread
// sums VEC neighbouring channels of all these samples over the words of its stream. The streams
// take turns at the spike words of the taps inside the map, so every word and therefore every
// touched row belongs to one stream. What they add up meets in shared memory, where one thread per
// output adds the streams in ascending order.
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
  float* const partial = dynamic_shared<float>();  // [kReduceTile, streams, tile_channels]

  const int stream = static_cast<int>(threadIdx.x) >> grid.lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (grid.lanes - 1);
  const int streams = static_cast<int>(blockDim.x) >> grid.lanes_log2;
  constexpr int kVecLog2 = VEC == 4 ? 2 : 0;
  static_assert(1 << kVecLog2 == VEC, "the vector width is 1 or 4");
  const int tile_channels_log2 = grid.lanes_log2 + kVecLog2;
  const int tile_channels = 1 << tile_channels_log2;
  const int Cout_g = static_cast<int>(p.Cout_g);

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int64_t n_0 = take_remainder(position, grid.sample_tiles) * S_TILE;
    const int co_0 = static_cast<int>(take_remainder(position, grid.channel_tiles))
                     << tile_channels_log2;
    const int64_t g = take_remainder(position, grid.groups);
    const int samples = static_cast<int>(p.N - n_0 < S_TILE ? p.N - n_0 : S_TILE);

    float sum[S_TILE][VEC] = {};

    // Threads beyond the last channel own nothing.
    if (co_0 + lane * VEC < Cout_g) {
      int64_t oh = position;
      const int64_t ow = take_remainder(oh, grid.out_width);
      const int h_0 = static_cast<int>(oh * p.stride_h - p.padding_h);
      const int w_0 = static_cast<int>(ow * p.stride_w - p.padding_w);

      // Channels [channel_begin, channel_end) of the map belong to the group; its first and last
      // word may hold bits of other groups.
      const int64_t channel_begin = g * p.Cin_g;
      const int64_t channel_end = channel_begin + p.Cin_g;
      const int words = static_cast<int>((channel_end + 31) / 32 - channel_begin / 32);
      const int first_bit = static_cast<int>(channel_begin % 32);
      const int last_bit = static_cast<int>((channel_end + 31) % 32);

      const uint32_t row_bytes = static_cast<uint32_t>(Cout_g * sizeof(Weight));
      const int64_t tap_size = p.Cin_g * p.Cout_g;
      const int64_t word_size = int64_t{32} * Cout_g;

      const uint32_t* const spikes = p.spikes + n_0 * p.H * p.W * p.words + channel_begin / 32;
      int word = stream;  // the stream's next word, counted from the first word of the tap
      const Weight* rows = static_cast<const Weight*>(p.weight) + position * p.weight_stride_p +
                           g * p.KH * p.KW * tap_size + co_0 + lane * VEC +
                           (word * 32 - first_bit) * p.Cout_g;
      for (int kh = 0; kh < static_cast<int>(p.KH); ++kh) {
        const int h = h_0 + kh * static_cast<int>(p.dilation_h);
        for (int kw = 0; kw < static_cast<int>(p.KW); ++kw, rows += tap_size) {
          const int w = w_0 + kw * static_cast<int>(p.dilation_w);
          if (h < 0 || h >= p.H || w < 0 || w >= p.W) continue;
          for (; word < words; word += streams, rows += streams * word_size) {
            uint32_t mask = ~0u;
            if (word == 0) mask <<= first_bit;
            if (word == words - 1) mask &= ~0u >> (31 - last_bit);
            uint32_t fired[S_TILE];
            const uint32_t* sample = spikes + (h * p.W + w) * p.words + word;
#pragma unroll
            for (int s = 0; s < S_TILE; ++s, sample += p.H * p.W * p.words) {
              fired[s] = s < samples ? __ldg(sample) & mask : 0u;
            }
            add_rows<Weight, VEC, S_TILE>(rows, row_bytes, fired, sum);
          }
          word -= words;
          rows -= words * word_size;
        }
      }
    }

    // Constant bounds, so that `sum` stays in registers.
#pragma unroll
    for (int s_0 = 0; s_0 < S_TILE; s_0 += kReduceTile) {
#pragma unroll
      for (int s = 0; s < kReduceTile; ++s) {
        store_vector(partial + (s * streams + stream) * tile_channels + lane * VEC, sum[s_0 + s]);
      }
      __syncthreads();
      for (int i = threadIdx.x; i < kReduceTile * tile_channels; i += blockDim.x) {
        const int s = i >> tile_channels_log2;
        const int channel = i & (tile_channels - 1);
        if (s_0 + s >= samples || co_0 + channel >= Cout_g) continue;
        const float* const first = partial + s * streams * tile_channels + channel;
        float total = first[0];
        for (int k = 1; k < streams; ++k) total += first[k * tile_channels];
        const int64_t n = n_0 + s_0 + s;
        const int64_t co = g * p.Cout_g + co_0 + channel;
        if (p.bias != nullptr) {
          total += __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
        }
        p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] = total;
      }
      __syncthreads();
    }
  }
}

using UnsharedConvKernel = void (*)(const UnsharedConvParams, const UnsharedConvGrid);

template <typename Weight, int VEC>
UnsharedConvKernel select_sample_tile(int sample_tile) {
  switch (sample_tile) {
    case 1:
      return unshared_conv_fwd_kernel<Weight, VEC, 1>;
    case 2:
      return unshared_conv_fwd_kernel<Weight, VEC, 2>;
    case 4:
      return unshared_conv_fwd_kernel<Weight, VEC, 4>;
    case 8:
      return unshared_conv_fwd_kernel<Weight, VEC, 8>;
    case 16:
      return unshared_conv_fwd_kernel<Weight, VEC, 16>;
    default:
      return nullptr;
  }
}

// Returns nullptr for a weight type that has no kernel.
inline UnsharedConvKernel select_unshared_conv_kernel(DType weight_dtype,
                                                      const UnsharedConvConfig& config) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return config.vec == 4 ? select_sample_tile<float, 4>(config.sample_tile)
                             : select_sample_tile<float, 1>(config.sample_tile);
    default:
      return nullptr;
  }
}

}  // namespace realspike
