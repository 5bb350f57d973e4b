#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"

// The receptive field of an output position, and the spike words of its taps.

namespace realspike {

// The receptive field of one output position and group. The channels [channel_begin, channel_begin
// + Cin_g) of the map belong to the group; their first and last word may hold bits of other groups.
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

  // The channel of bit 0 of a word, within the group; negative: of the group before.
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

// Along one axis, the taps [begin, end) of `taps` that lie on a map of `size` pixels.
struct TapsInside {
  int begin;
  int end;

  __device__ TapsInside(int first_pixel, int taps, int dilation, int size) : begin(0), end(taps) {
    while (begin < end && first_pixel + begin * dilation < 0) ++begin;
    while (end > begin && first_pixel + (end - 1) * dilation >= size) --end;
  }
  __device__ int count() const { return end - begin; }
  __device__ bool has(int tap) const { return tap >= begin && tap < end; }
};

// A spike word of a tap. `spikes`: its place in a sample, counted from the first word of the group.
// `row`: the row of the weights (kh, kw, ci) that its bit 0 selects; that bit may belong to the
// group before.
struct FieldWord {
  int kh;
  int kw;
  int word;
  int row;
  int spikes;

  __device__ FieldWord(const UnsharedConvParams& p, const ReceptiveField& field, int kh, int kw,
                       int word)
      : kh(kh), kw(kw), word(word) {
    const int h = field.h_0 + kh * static_cast<int>(p.dilation_h);
    const int w = field.w_0 + kw * static_cast<int>(p.dilation_w);
    row = (kh * static_cast<int>(p.KW) + kw) * field.Cin_g + field.channel(word);
    spikes = (h * static_cast<int>(p.W) + w) * static_cast<int>(p.words) + word;
  }
};

// The spike words of the taps on the map, numbered in ascending (kh, kw, word). These taps form a
// rectangle.
struct FieldWords {
  TapsInside kh;
  TapsInside kw;
  int count;

  __device__ FieldWords(const UnsharedConvParams& p, const ReceptiveField& field)
      : kh(field.h_0, static_cast<int>(p.KH), static_cast<int>(p.dilation_h),
           static_cast<int>(p.H)),
        kw(field.w_0, static_cast<int>(p.KW), static_cast<int>(p.dilation_w),
           static_cast<int>(p.W)),
        count(kh.count() * kw.count() * field.words) {}

  __device__ FieldWord first(const UnsharedConvParams& p, const ReceptiveField& field) const {
    return {p, field, kh.begin, kw.begin, 0};
  }

  // Counts down: a division would take longer than the few steps of a kernel's taps.
  __device__ FieldWord at(const UnsharedConvParams& p, const ReceptiveField& field,
                          int number) const {
    const int row_of_taps = kw.count() * field.words;
    int h = kh.begin, w = kw.begin;
    for (; number >= row_of_taps; number -= row_of_taps) ++h;
    for (; number >= field.words; number -= field.words) ++w;
    return {p, field, h, w, number};
  }

  __device__ void step(const UnsharedConvParams& p, const ReceptiveField& field,
                       FieldWord& at) const {
    if (++at.word < field.words) {
      at.row += 32;
      ++at.spikes;
    } else if (++at.kw < kw.end) {
      at = {p, field, at.kh, at.kw, 0};
    } else {
      at = {p, field, at.kh + 1, kw.begin, 0};
    }
  }
};

}  // namespace realspike
