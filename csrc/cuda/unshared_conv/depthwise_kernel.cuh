#pragma once

#include <cstdint>
#include <type_traits>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/common/transpose_bits.cuh"
#include "cuda/unshared_conv/depthwise_config.h"
#include "cuda/unshared_conv/field.cuh"
#include "cuda/unshared_conv/rows.cuh"
#include "cuda/unshared_conv/rows_config.h"

// One input and one output channel per group: a lane is a channel. It adds the one weight of a tap
// under a predicate: whether its channel fired.

namespace realspike {

// How blocks are numbered: sample tiles fastest, so that blocks which read the same weights run
// together, then words, whose spikes and outputs are neighbours in memory, columns and rows.
struct DepthwiseGrid {
  int64_t blocks;
  int warps_log2;
  int taps;
  int64_t sample_words;  // from one sample of the spikes to the next
  int64_t row_words;     // and from one row of taps
  // Outputs, or sums in the workspace [N, OH, OW, Cout].
  void* to;
  int64_t to_stride_n;
  int64_t to_stride_c;
  int64_t to_stride_p;
  bool to_workspace;
  // Neighbouring positions are neighbours in memory. So the warps, each with one position,
  // exchange their sums through shared memory; positions lie `pitch` numbers apart there.
  bool exchange;
  int pitch;
  Divisor sample_tiles;
  Divisor words;
  Divisor column_tiles;
};

inline DepthwiseGrid make_depthwise_grid(const UnsharedConvParams& p,
                                         const DepthwiseConfig& config) {
  DepthwiseGrid grid{};
  grid.blocks = config.blocks;
  grid.warps_log2 = log2_of(config.warps);
  grid.taps = static_cast<int>(p.KH * p.KW);
  grid.sample_words = p.H * p.W * p.words;
  grid.row_words = p.dilation_h * p.W * p.words;
  grid.to_workspace = p.workspace != nullptr;
  grid.to = grid.to_workspace ? p.workspace : p.out;
  grid.to_stride_n = grid.to_workspace ? p.OH * p.OW * p.G : p.out_stride_n;
  grid.to_stride_c = grid.to_workspace ? 1 : p.out_stride_c;
  grid.to_stride_p = grid.to_workspace ? p.G : p.out_stride_p;
  grid.exchange = grid.to_stride_p == 1 && grid.to_stride_c != 1 && config.warps > 1;
  grid.pitch = depthwise_pitch(config.warps);
  grid.sample_tiles = make_divisor(config.sample_tiles);
  grid.words = make_divisor(p.words);
  grid.column_tiles = make_divisor(config.column_tiles);
  return grid;
}

// The pixels of the map that a block reads: the rows of the taps on the map, from the first column
// that one of the block's positions reads to the last. They are numbered row by row, so that the
// taps of a position, in ascending (kh, kw), have pixels of ascending numbers.
struct DepthwiseWindow {
  TapsInside kh;
  int h;  // of row 0
  int w;  // of column 0
  int columns;
  int pixels;

  // From the pixel (h_0, w_0) of tap (0, 0) of the first position.
  __device__ DepthwiseWindow(const UnsharedConvParams& p, int h_0, int w_0, int positions)
      : kh(h_0, static_cast<int>(p.KH), static_cast<int>(p.dilation_h), static_cast<int>(p.H)) {
    h = h_0 + kh.begin * static_cast<int>(p.dilation_h);
    w = w_0 < 0 ? 0 : w_0;
    const int end = w_0 + (positions - 1) * static_cast<int>(p.stride_w) +
                    static_cast<int>(p.KW - 1) * static_cast<int>(p.dilation_w) + 1;
    const int inside = (end < p.W ? end : static_cast<int>(p.W)) - w;
    columns = inside < 0 ? 0 : inside;
    pixels = kh.count() * columns;
  }
};

// A weight as it is added; an int8 weight is an integer again.
template <typename Weight>
__device__ typename Sums<Weight, 1, 1>::Total number_of(const WeightVector<Weight, 1>& weight) {
  if constexpr (sizeof(Weight) == 1) {
    int32_t number = static_cast<int32_t>(weight.prepared()) - 128;
    compute_once(number);
    return number;
  } else {
    uint32_t bits = __float_as_uint(weight.prepared());
    compute_once(bits);
    return __uint_as_float(bits);
  }
}

// sum += addend under a predicate: whether the bit is set. For integers the compiler would use a
// mask instead, which takes twice the instructions.
__device__ inline void add_if(uint32_t bit, float& sum, float addend) {
  if (bit != 0) sum += addend;
}
__device__ inline void add_if(uint32_t bit, int32_t& sum, int32_t addend) {
#ifdef REALSPIKE_SIMT
  if (bit != 0) sum += addend;
#else
  asm("{\n.reg .pred fires;\nsetp.ne.s32 fires, %1, 0;\n@fires add.s32 %0, %0, %2;\n}"
      : "+r"(sum)
      : "r"(bit), "r"(addend));
#endif
}

// One bit for each sample of a tile: whether it fired.
template <int S_TILE>
using FiredSamples = std::conditional_t<S_TILE == 8, uint8_t, uint32_t>;

// Makes the sums of samples n_0, n_0 + 1, ... outputs, or leaves them to the neurons.
template <typename Total, int COUNT>
__device__ void write_samples(const UnsharedConvParams& p, const DepthwiseGrid& grid, int64_t n_0,
                              int64_t co, int64_t position, const Total (&totals)[COUNT]) {
  int samples = static_cast<int>(p.N - n_0 < COUNT ? p.N - n_0 : COUNT);
  compute_once(samples);
  const int64_t first =
      n_0 * grid.to_stride_n + co * grid.to_stride_c + position * grid.to_stride_p;
  constexpr bool kScales = static_cast<Total>(0.5) == 0;  // int32_t
  if constexpr (kScales) {
    if (grid.to_workspace) {
      Total* to = static_cast<Total*>(grid.to) + first;
#pragma unroll
      for (int s = 0; s < COUNT; ++s, to += grid.to_stride_n) {
        if (s < samples) *to = totals[s];
      }
      return;
    }
  }
  // Loaded once for all samples.
  const bool has_bias = p.bias != nullptr && !grid.to_workspace;
  float scale = 1.0f, bias = 0.0f;
  if (kScales && p.scale != nullptr) scale = __ldg(p.scale + co);
  const float* from = p.bias + (co * p.bias_stride_c + position * p.bias_stride_p);
  compute_once(from);  // for every thread, so that the load alone is predicated
  if (has_bias) bias = __ldg(from);
  float* to = static_cast<float*>(grid.to) + first;
#pragma unroll
  for (int s = 0; s < COUNT; ++s, to += grid.to_stride_n) {
    float out = static_cast<float>(totals[s]);
    if constexpr (kScales) out *= scale;
    if (has_bias) out += bias;
    if (s < samples) *to = out;
  }
}

// A block owns S_TILE samples of the channels of one spike word at neighbouring positions of one
// row; a warp one position, a lane one channel, whose S_TILE sums it alone holds and adds in
// ascending (kh, kw).
//
// Spike words have a bit per channel; a lane needs one per sample. So the block turns each word of
// its window once, and all its positions read it from shared memory: lane s of a warp loads the
// word of sample s (for S_TILE < 32, of 32 / S_TILE pixels side by side), lane c is left with the
// bits of channel c. A window of more than a stage is worked through in several.
//
// Uniform over a block: the window, the stages and all barriers. Uniform over a warp: the position
// and its taps.
template <typename Weight, int S_TILE>
__global__ void __launch_bounds__(32 * kDepthwiseWarps, 4)
    unshared_conv_depthwise_fwd_kernel(const UnsharedConvParams p, const DepthwiseGrid grid) {
  using Total = typename Sums<Weight, 1, 1>::Total;
  using Fired = FiredSamples<S_TILE>;  // one bit per sample
  constexpr int kPixelsOfWord = 32 / S_TILE;
  constexpr int kStageWords = kDepthwiseStage;
  constexpr int kStagePixels = kStageWords * kPixelsOfWord;
  constexpr int kLoads = 4;  // spike words of a thread whose loads are issued together
  static_assert(kStageWords % (kLoads * kDepthwiseWarps) == 0,
                "the warps of a block share the words of a stage equally");
  constexpr int kExchange = kDepthwiseExchange;
  constexpr int kExchangePitch = kDepthwiseExchangePitch;
  Fired* const stage = dynamic_shared<Fired>();     // [kStagePixels, 32 channels]
  Total* const exchange = dynamic_shared<Total>();  // [kExchange, kExchangePitch], and of the
                                                    // latter [warps, pitch]
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  // The shuffle tells the compiler that the number is uniform over the warp.
  const int warp = __shfl_sync(~0u, thread / 32, 0);
  const int warps = 1 << grid.warps_log2;
  const int KW = static_cast<int>(p.KW);
  const int dilation_w = static_cast<int>(p.dilation_w);
  const int words_of_pixel = static_cast<int>(p.words);

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t oh = block;
    const int64_t n_0 = take_remainder(oh, grid.sample_tiles) * S_TILE;
    const int64_t word = take_remainder(oh, grid.words);
    const int64_t ow_0 = take_remainder(oh, grid.column_tiles) << grid.warps_log2;
    const int positions = static_cast<int>(p.OW - ow_0 < warps ? p.OW - ow_0 : warps);
    const int channels = static_cast<int>(p.G - word * 32 < 32 ? p.G - word * 32 : 32);
    const int h_0 = static_cast<int>(oh * p.stride_h - p.padding_h);
    const int w_block = static_cast<int>(ow_0 * p.stride_w - p.padding_w);
    const DepthwiseWindow window(p, h_0, w_block, positions);

    // The taps that are left: `taps` in all, `left_of_row` in the row of the next one. `tap` is the
    // number of the next one (kh, kw), `at` the place of its pixel in the stage. An idle warp has
    // no taps; an idle lane goes along without weights.
    const int w_0 = w_block + warp * static_cast<int>(p.stride_w);
    const TapsInside kw(w_0, KW, dilation_w, static_cast<int>(p.W));
    const int taps_of_row = warp < positions ? kw.count() : 0;
    const int to_next_row = window.columns - (taps_of_row - 1) * dilation_w;
    int taps = window.kh.count() * taps_of_row;
    int left_of_row = taps_of_row;
    int tap = window.kh.begin * KW + kw.begin;
    int at = (w_0 + kw.begin * dilation_w - window.w) * 32 + lane;
    const Weight* weights = static_cast<const Weight*>(p.weight) +
                            (oh * p.OW + ow_0 + warp) * p.weight_stride_p +
                            (word * 32 + lane) * grid.taps;
    compute_once(weights);
    WeightVector<Weight, 1> weight{};
    if (taps > 0 && lane < channels) weight.template load<true>(weights + tap);

    // The thread's next pixel, its column, and where its row of the map begins.
    const int64_t n = n_0 + lane % S_TILE;
    const uint32_t* spikes = p.spikes + n * grid.sample_words +
                             (window.h * static_cast<int>(p.W) + window.w) * words_of_pixel + word;
    int column = warp * kPixelsOfWord + lane / S_TILE;
    int number = n < p.N ? column : window.pixels;

    Total sums[S_TILE] = {};
    for (int first = 0; first < window.pixels; first += kStagePixels) {
      __syncthreads();  // nobody reads what was there before
      const int pixels =
          window.pixels - first < kStagePixels ? window.pixels - first : kStagePixels;
      for (int i = warp; i * kPixelsOfWord < pixels; i += kLoads * warps) {
        uint32_t of_samples[kLoads];
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
          for (; column >= window.columns; column -= window.columns) spikes += grid.row_words;
          of_samples[k] = number < window.pixels ? __ldg(spikes + column * words_of_pixel) : 0u;
          column += warps * kPixelsOfWord;
          number += warps * kPixelsOfWord;
        }
#pragma unroll
        for (int k = 0; k < kLoads; ++k) {
          const int to = (i + k * warps) * kPixelsOfWord;
          if (to >= pixels) continue;
          const uint32_t of_channel = transpose_bits(of_samples[k], lane);
#pragma unroll
          for (int j = 0; j < kPixelsOfWord; ++j) {
            stage[(to + j) * 32 + lane] = static_cast<Fired>(of_channel >> (j * S_TILE));
          }
        }
      }
      __syncthreads();

      for (; taps > 0 && at < kStagePixels * 32; --taps) {
        const Total addend = number_of(weight);
        const uint32_t fired = stage[at];
        const bool row_ends = --left_of_row == 0;
        left_of_row = row_ends ? taps_of_row : left_of_row;
        tap += row_ends ? KW - taps_of_row + 1 : 1;
        at += 32 * (row_ends ? to_next_row : dilation_w);
        if (taps > 1 && lane < channels) weight.template load<true>(weights + tap);
#pragma unroll
        for (int s = 0; s < S_TILE; ++s) {
          add_if(fired & 1u << s, sums[s], addend);
        }
      }
      at -= kStagePixels * 32;
    }

    if (!grid.exchange) {
      if (warp < positions && lane < channels) {
        write_samples(p, grid, n_0, word * 32 + lane, oh * p.OW + ow_0 + warp, sums);
      }
      continue;
    }
    // A warp writes `warps` neighbouring positions of 32 / warps channels.
    const int c = thread >> grid.warps_log2, w = thread & (warps - 1);
#pragma unroll
    for (int s_0 = 0; s_0 < S_TILE; s_0 += kExchange) {
      __syncthreads();  // nobody reads what was there before
#pragma unroll
      for (int s = 0; s < kExchange; ++s) {
        exchange[s * kExchangePitch + warp * grid.pitch + lane] = sums[s_0 + s];
      }
      __syncthreads();
      Total totals[kExchange];
#pragma unroll
      for (int s = 0; s < kExchange; ++s) {
        totals[s] = exchange[s * kExchangePitch + w * grid.pitch + c];
      }
      if (w < positions && c < channels) {
        write_samples(p, grid, n_0 + s_0, word * 32 + c, oh * p.OW + ow_0 + w, totals);
      }
    }
  }
}

using DepthwiseKernel = void (*)(const UnsharedConvParams, const DepthwiseGrid);

template <typename Weight>
DepthwiseKernel select_depthwise(const DepthwiseConfig& config) {
  return config.sample_tile == kDepthwiseManySamples
             ? unshared_conv_depthwise_fwd_kernel<Weight, kDepthwiseManySamples>
             : unshared_conv_depthwise_fwd_kernel<Weight, kDepthwiseFewSamples>;
}

inline DepthwiseKernel select_depthwise_kernel(DType weight_dtype, const DepthwiseConfig& config) {
  return with_weight(weight_dtype,
                     [&](auto weight) { return select_depthwise<decltype(weight)>(config); });
}

}  // namespace realspike
