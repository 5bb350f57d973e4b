#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/common/transpose_bits.cuh"
#include "cuda/unshared_conv/field.cuh"
#include "cuda/unshared_conv/grad_config.h"
#include "cuda/unshared_conv/rows.cuh"

#ifndef REALSPIKE_SIMT
#include <cuda_bf16.h>
#endif

namespace realspike {

// Two sums, rounded to the nearest values of the stored type, in one word.
template <typename Stored>
__device__ uint32_t narrow_pair(float first, float second);

template <>
__device__ inline uint32_t narrow_pair<Float16Weight>(float first, float second) {
#ifdef REALSPIKE_SIMT
  const _Float16 pair[2] = {static_cast<_Float16>(first), static_cast<_Float16>(second)};
#else
  const __half2 pair = __floats2half2_rn(first, second);
#endif
  uint32_t word;
  std::memcpy(&word, &pair, sizeof word);
  return word;
}

template <>
__device__ inline uint32_t narrow_pair<BFloat16Weight>(float first, float second) {
#ifdef REALSPIKE_SIMT
  uint32_t pair[2];
  std::memcpy(pair, &first, sizeof first);
  std::memcpy(pair + 1, &second, sizeof second);
  for (uint32_t& bits : pair) {
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits = is_nan ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  }
  return pair[0] | pair[1] << 16;
#else
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t word;
  std::memcpy(&word, &pair, sizeof word);
  return word;
#endif
}

// The sums of VEC neighbouring channels of a row of the gradient. They are cut into parts of kPart
// channels, which are read at once.
template <typename Stored, int VEC>
struct GradRow {
  static constexpr int kPart = VEC < 4 ? VEC : 4;
  static constexpr int kParts = VEC / kPart;
  float sum[kParts][kPart] = {};

  // line: this thread's part 0; the next parts lie `stride` apart.
  __device__ void add(const float* line, int stride) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if constexpr (kPart == 1) {
        sum[i][0] += *line;
      } else {
        const auto four = *reinterpret_cast<const Vector4<float>*>(line + i * stride);
        sum[i][0] += four.x;
        sum[i][1] += four.y;
        sum[i][2] += four.z;
        sum[i][3] += four.w;
      }
    }
  }

  __device__ void load(const Stored* row) {
    static_assert(sizeof(Stored) == sizeof(float), "a sum that goes on has not been rounded");
    if constexpr (VEC == 1) {
      sum[0][0] = *row;
    } else {
      const auto four = *reinterpret_cast<const Vector4<float>*>(row);
      sum[0][0] = four.x;
      sum[0][1] = four.y;
      sum[0][2] = four.z;
      sum[0][3] = four.w;
    }
  }

  __device__ void store(Stored* row) const {
    if constexpr (VEC == 1 && sizeof(Stored) == sizeof(float)) {
      *row = sum[0][0];
    } else if constexpr (VEC == 1) {
      row->bits = static_cast<uint16_t>(narrow_pair<Stored>(sum[0][0], 0.0f));
    } else if constexpr (sizeof(Stored) == sizeof(float)) {
      *reinterpret_cast<Vector4<float>*>(row) = {sum[0][0], sum[0][1], sum[0][2], sum[0][3]};
    } else {
      *reinterpret_cast<Vector4<uint32_t>*>(row) = {
          narrow_pair<Stored>(sum[0][0], sum[0][1]), narrow_pair<Stored>(sum[0][2], sum[0][3]),
          narrow_pair<Stored>(sum[1][0], sum[1][1]), narrow_pair<Stored>(sum[1][2], sum[1][3])};
    }
  }
};

// How blocks are numbered: channel tiles fastest, then splits, groups and output positions.
struct GradGrid {
  int64_t blocks;
  int sample_tile;
  int lanes;
  int lanes_log2;
  Divisor channel_tiles;
  Divisor splits;
  Divisor groups;
  Divisor out_width;
};

inline GradGrid make_grad_grid(const UnsharedConvParams& p, const GradConfig& config) {
  return {config.blocks,
          config.sample_tile,
          config.lanes,
          log2_of(config.lanes),
          make_divisor(config.channel_tiles),
          make_divisor(config.splits),
          make_divisor(p.G),
          make_divisor(p.OW)};
}

// Visits the words first, first + step, ... of all taps, in ascending (kh, kw, word); `inside`:
// the tap lies on the map.
template <typename Visit>
__device__ void walk_words(const UnsharedConvParams& p, const ReceptiveField& field, int first,
                           int step, const Visit& visit) {
  const FieldWords on_map(p, field);
  int word = first;  // counted from the first word of the tap
  for (int kh = 0; kh < static_cast<int>(p.KH); ++kh) {
    for (int kw = 0; kw < static_cast<int>(p.KW); ++kw) {
      const bool inside = on_map.kh.has(kh) && on_map.kw.has(kw);
      for (; word < field.words; word += step) visit(FieldWord(p, field, kh, kw, word), inside);
      word -= field.words;
    }
  }
}

// grad_weight[position, g, kh, kw, ci, :] = sum of grad_out[n, :, position] over the samples n
// whose bit is set, in ascending n. A block owns lanes * VEC channels of one output position and
// group, in one of `splits` shares of the rows. It holds the gradients of these channels for up to
// `sample_tile` samples in shared memory, where every row finds them. A warp turns the spike words
// of a tap, one bit per row, into one bit per sample for each of the word's 32 rows; then its
// streams of `lanes` threads take turns at these rows. Every row is stored once, as zeros where
// nothing fired. More samples than a tile has are added to the stored rows (float32 alone).
//
// Uniform over a block: the tile and all barriers. Uniform over a warp: the spike words and
// everything warp-wide. Uniform over a stream: the row, hence the samples that are added to it.
template <typename Stored, int VEC>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, 4)
    unshared_conv_grad_weight_kernel(const UnsharedConvParams p, const float* const grad_out,
                                     void* const grad_weight, const GradGrid grid) {
  using Row = GradRow<Stored, VEC>;
  constexpr int kVecLog2 = VEC == 8 ? 3 : VEC == 4 ? 2 : 0;
  static_assert(1 << kVecLog2 == VEC, "the vector width is 1, 4 or 8");
  const int warp_lane = static_cast<int>(threadIdx.x) % 32;
  // The shuffle tells the compiler that the number is uniform over the warp.
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int lane = warp_lane & (grid.lanes - 1);
  const int tile_channels_log2 = grid.lanes_log2 + kVecLog2;
  const int tile_channels = 1 << tile_channels_log2;
  const int sample_tile = grid.sample_tile;
  const int sample_words = (sample_tile + 31) / 32;
  const int part_stride = grid.lanes * Row::kPart;
  const int Cout_g = static_cast<int>(p.Cout_g);

  float* const lines = dynamic_shared<float>();  // [sample_tile, kParts, lanes, kPart]
  uint32_t* const fired = reinterpret_cast<uint32_t*>(lines + (sample_tile << tile_channels_log2)) +
                          warp * sample_words * 32;  // [sample_words, 32 rows] of each warp

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int co_0 = static_cast<int>(take_remainder(position, grid.channel_tiles))
                     << tile_channels_log2;
    const int split = static_cast<int>(take_remainder(position, grid.splits));
    const int64_t g = take_remainder(position, grid.groups);
    const ReceptiveField field(p, grid.out_width, position, g);
    const int co = co_0 + lane * VEC;
    Stored* const rows = static_cast<Stored*>(grad_weight) + position * p.weight_stride_p +
                         g * p.KH * p.KW * p.Cin_g * p.Cout_g + co;
    const float* const grads =
        grad_out + (g * p.Cout_g + co_0) * p.out_stride_c + position * p.out_stride_p;

    for (int64_t n_0 = 0; n_0 == 0 || n_0 < p.N; n_0 += sample_tile) {
      const int samples = static_cast<int>(p.N - n_0 < sample_tile ? p.N - n_0 : sample_tile);
      __syncthreads();  // nobody reads the lines of the tile before
      for (int i = threadIdx.x; i < samples << tile_channels_log2; i += blockDim.x) {
        const int n = i >> tile_channels_log2;
        const int channel = i & (tile_channels - 1);
        if (co_0 + channel >= Cout_g) continue;
        const int part = channel % VEC / Row::kPart;
        const int place = part * part_stride + channel / VEC * Row::kPart + channel % Row::kPart;
        lines[(n << tile_channels_log2) + place] =
            __ldg(grads + (n_0 + n) * p.out_stride_n + channel * p.out_stride_c);
      }
      __syncthreads();

      const auto add_rows_of_word = [&](const FieldWord& at, bool inside) {
        const int64_t of_word = n_0 * p.H * p.W * p.words + field.first_word + at.spikes;
        for (int k = 0; k < sample_words; ++k) {
          const int n = k * 32 + warp_lane;
          const bool reads = inside && n < samples;
          const int64_t of_sample = n * (p.H * p.W * p.words);
          const uint32_t bits = reads ? __ldg(p.spikes + of_word + of_sample) : 0u;
          fired[n] = transpose_bits(bits, warp_lane);
        }
        __syncwarp();
        for (int r = warp_lane >> grid.lanes_log2; r < 32; r += 32 >> grid.lanes_log2) {
          const int ci = field.channel(at.word) + r;
          if (ci < 0 || ci >= field.Cin_g || co >= Cout_g) continue;
          Stored* const to = rows + (at.row + r) * p.Cout_g;
          Row row;
          bool adds = n_0 == 0;
          for (int k = 0; k < sample_words; ++k) {
            uint32_t rest = fired[k * 32 + r];
            if constexpr (sizeof(Stored) == sizeof(float)) {
              if (rest != 0 && !adds) row.load(to);
            }
            adds = adds || rest != 0;
            while (rest != 0) {
              const uint32_t bit = rest & (0u - rest);
              rest ^= bit;
              const int n = k * 32 + 31 - __clz(static_cast<int>(bit));
              row.add(lines + (n << tile_channels_log2) + lane * Row::kPart, part_stride);
            }
          }
          if (adds) row.store(to);
        }
        __syncwarp();
      };
      walk_words(p, field, split * warps + warp, warps * static_cast<int>(grid.splits.divisor),
                 add_rows_of_word);
    }
  }
}

using GradKernel = void (*)(const UnsharedConvParams, const float*, void*, const GradGrid);

template <typename Stored, int VEC>
GradKernel select_grad_vec(int vec) {
  return vec == VEC ? unshared_conv_grad_weight_kernel<Stored, VEC>
                    : unshared_conv_grad_weight_kernel<Stored, 1>;
}

// Returns nullptr for other types, and where a sum would have to go on after it has been rounded.
inline GradKernel select_grad_kernel(const UnsharedConvParams& p, const GradConfig& config) {
  if (p.weight_dtype == DType::kFloat32) return select_grad_vec<float, 4>(config.vec);
  if (p.N > config.sample_tile) return nullptr;
  if (p.weight_dtype == DType::kFloat16) return select_grad_vec<Float16Weight, 8>(config.vec);
  if (p.weight_dtype == DType::kBFloat16) return select_grad_vec<BFloat16Weight, 8>(config.vec);
  return nullptr;
}

}  // namespace realspike
