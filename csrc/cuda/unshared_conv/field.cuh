#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/config.h"

// What the passes have in common: which block owns what, and the walk over the spike words that
// one output position reads.

namespace realspike {

// How blocks are numbered: sample tiles fastest, so that blocks which read the same weights run
// together, then channel tiles, splits, groups and output positions.
struct UnsharedConvGrid {
  int64_t blocks;
  int lanes;
  int lanes_log2;
  int sample_tile_log2;  // unless staged
  bool wide_out;         // four neighbouring channels of the output are 16 aligned bytes
  Divisor sample_tiles;
  Divisor channel_tiles;
  Divisor splits;
  Divisor word_shares;  // splits * shares
  Divisor groups;
  Divisor out_width;
};

inline UnsharedConvGrid make_unshared_conv_grid(const UnsharedConvParams& p,
                                                const UnsharedConvConfig& config) {
  const auto log2 = [](int of) {
    int result = 0;
    while ((2 << result) <= of) ++result;
    return result;
  };
  const bool side_by_side = p.out_stride_c == 1 && p.out_stride_n % 4 == 0 &&
                            p.out_stride_p % 4 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  return {config.blocks,
          config.lanes,
          log2(config.lanes),
          log2(config.sample_tile),
          p.G * p.Cout_g % 4 == 0 && (p.workspace != nullptr || side_by_side),
          make_divisor(config.sample_tiles),
          make_divisor(config.channel_tiles),
          make_divisor(config.splits),
          make_divisor(int64_t{config.splits} * config.shares),
          make_divisor(p.G),
          make_divisor(p.OW)};
}

// What one output position of one group reads. Channels [channel_begin, channel_begin + Cin_g) of
// the map belong to the group; its first and last word may hold bits of other groups.
struct ReceptiveField {
  int h_0;  // the pixel of tap (0, 0), which may lie outside the map
  int w_0;
  int words;
  int first_bit;
  int Cin_g;
  int64_t first_word;

  __device__ ReceptiveField(const UnsharedConvParams& p, const Divisor& out_width, int64_t position,
                            int64_t g) {
    int64_t oh = position;
    const int64_t ow = take_remainder(oh, out_width);
    h_0 = static_cast<int>(oh * p.stride_h - p.padding_h);
    w_0 = static_cast<int>(ow * p.stride_w - p.padding_w);
    const int64_t channel_begin = g * p.Cin_g;
    first_word = channel_begin / 32;
    words = static_cast<int>((channel_begin + p.Cin_g + 31) / 32 - first_word);
    first_bit = static_cast<int>(channel_begin % 32);
    Cin_g = static_cast<int>(p.Cin_g);
  }

  // Of bit 0 of a word, within the group; negative where that bit belongs to the group before.
  __device__ int channel(int word) const { return word * 32 - first_bit; }

  // The bits of a word that belong to the group.
  __device__ uint32_t mask(int word) const {
    uint32_t bits = ~0u;
    if (word == 0) bits <<= first_bit;
    const int beyond = channel(word) + 32 - Cin_g;
    if (beyond > 0) bits &= ~0u >> beyond;
    return bits;
  }
};

// A spike word of a tap: row `row` of the weights (kh, kw, ci) is that of its bit 0.
struct FieldWord {
  int h;
  int w;
  int word;
  int row;
  bool inside;  // the map
};

// Visits the words first, first + step, ... of a field in ascending (kh, kw, ci), counted over all
// taps, or over those inside the map.
template <bool OUTSIDE_TOO, typename Visit>
__device__ void walk_words(const UnsharedConvParams& p, const ReceptiveField& field, int first,
                           int step, const Visit& visit) {
  const int KH = static_cast<int>(p.KH), KW = static_cast<int>(p.KW);
  int word = first;  // counted from the first word of the tap
  for (int kh = 0; kh < KH; ++kh) {
    const int h = field.h_0 + kh * static_cast<int>(p.dilation_h);
    for (int kw = 0; kw < KW; ++kw) {
      const int w = field.w_0 + kw * static_cast<int>(p.dilation_w);
      const bool inside = h >= 0 && h < p.H && w >= 0 && w < p.W;
      if (!OUTSIDE_TOO && !inside) continue;
      for (; word < field.words; word += step) {
        const int row = (kh * KW + kw) * static_cast<int>(p.Cin_g) + field.channel(word);
        visit(FieldWord{h, w, word, row, inside});
      }
      word -= field.words;
    }
  }
}

// One of these words: where it lies in a sample, counted from the first word of the field, and the
// row of the weights (kh, kw, ci) that its bit 0 selects, which may belong to the group before.
struct FieldPlace {
  int kh;
  int kw;
  int word;
  int row;
  int spikes;
};

// The spike words of the taps on the map, numbered in ascending (kh, kw, word). These taps form a
// rectangle.
struct FieldWords {
  int kh_0;
  int kw_0;
  int kw_1;
  int count;

  __device__ FieldWords(const UnsharedConvParams& p, const ReceptiveField& field)
      : kh_0(0), kw_0(0), kw_1(static_cast<int>(p.KW)) {
    int kh_1 = static_cast<int>(p.KH);
    const int dilation_h = static_cast<int>(p.dilation_h);
    const int dilation_w = static_cast<int>(p.dilation_w);
    while (kh_0 < kh_1 && field.h_0 + kh_0 * dilation_h < 0) ++kh_0;
    while (kh_1 > kh_0 && field.h_0 + (kh_1 - 1) * dilation_h >= p.H) --kh_1;
    while (kw_0 < kw_1 && field.w_0 + kw_0 * dilation_w < 0) ++kw_0;
    while (kw_1 > kw_0 && field.w_0 + (kw_1 - 1) * dilation_w >= p.W) --kw_1;
    count = (kh_1 - kh_0) * (kw_1 - kw_0) * field.words;
  }

  __device__ FieldPlace first(const UnsharedConvParams& p, const ReceptiveField& field) const {
    return place(p, field, kh_0, kw_0, 0);
  }

  // Counted down: a division would take longer than the few steps of a kernel.
  __device__ FieldPlace at(const UnsharedConvParams& p, const ReceptiveField& field,
                           int number) const {
    const int row_of_taps = (kw_1 - kw_0) * field.words;
    int kh = kh_0, kw = kw_0;
    for (; number >= row_of_taps; number -= row_of_taps) ++kh;
    for (; number >= field.words; number -= field.words) ++kw;
    return place(p, field, kh, kw, number);
  }

  __device__ void step(const UnsharedConvParams& p, const ReceptiveField& field,
                       FieldPlace& at) const {
    if (++at.word < field.words) {
      at.row += 32;
      ++at.spikes;
    } else if (++at.kw < kw_1) {
      at = place(p, field, at.kh, at.kw, 0);
    } else {
      at = place(p, field, at.kh + 1, kw_0, 0);
    }
  }

 private:
  __device__ static FieldPlace place(const UnsharedConvParams& p, const ReceptiveField& field,
                                     int kh, int kw, int word) {
    const int h = field.h_0 + kh * static_cast<int>(p.dilation_h);
    const int w = field.w_0 + kw * static_cast<int>(p.dilation_w);
    const int row = (kh * static_cast<int>(p.KW) + kw) * field.Cin_g + field.channel(word);
    const int pixel = h * static_cast<int>(p.W) + w;
    return {kh, kw, word, row, pixel * static_cast<int>(p.words) + word};
  }
};

// The output that a sum becomes.
template <typename Total>
__device__ float finished(const UnsharedConvParams& p, int64_t co, int64_t position, Total total) {
  float out = static_cast<float>(total);
  if constexpr (static_cast<Total>(0.5) == 0) {  // int32_t
    if (p.scale != nullptr) out *= __ldg(p.scale + co);
  }
  if (p.bias != nullptr) {
    out += __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
  }
  return out;
}

}  // namespace realspike
