#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"
#include "cpu/unshared_conv/window.h"

namespace realspike {
namespace {

// The bits of the channels [channel, channel + 32) of one pixel of a sample; 0 beyond its last
// word.
inline uint32_t bits_at(const uint32_t* words, int64_t count, int64_t channel) {
  const int64_t word = channel / 32, shift = channel % 32;
  uint32_t bits = words[word] >> shift;
  if (shift != 0 && word + 1 < count) bits |= words[word + 1] << (32 - shift);
  return bits;
}

// A row is fetched so many weights before it is added: kernels of many positions are read once, in
// order, faster than the hardware fetches them ahead.
constexpr int64_t kAhead = 2048;

// A tap inside the map: who fired its rows, and the rows.
template <class Mask, class Weight>
struct MaskedTap {
  const Mask* fired;   // [what a register sums, Cin_g]
  const Weight* rows;  // [Cin_g, Cout_g]
  int64_t number;      // kh * KW + kw
};

// The taps of one position that lie inside the map, in ascending (kh, kw).
template <class Mask, class Weight>
class MaskedPosition {
 public:
  MaskedPosition(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Task& work,
                 const Mask* masks)
      : p_(p) {
    const int64_t per_group = masks_per_group(p, tiles);
    fired_per_pixel_ = p.G * per_group;
    fired_ = masks + work.sample_tile * p.H * p.W * fired_per_pixel_ + work.tile.group * per_group;
    rows_ = static_cast<const Weight*>(p.weight) +
            work.tile.group * p.KH * p.KW * p.Cin_g * p.Cout_g + work.tile.first_channel;
  }

  // [KH, KW, Cin_g, Cout_g], from the tile's first channel.
  const Weight* rows_of(int64_t position) const { return rows_ + position * p_.weight_stride_p; }

  void go_to(int64_t position) {
    count = 0;
    const Weight* rows = rows_of(position);
    for_each_tap(p_, position, [&](int64_t tap, int64_t pixel) {
      taps[count++] = {fired_ + pixel * fired_per_pixel_, rows + tap * p_.Cin_g * p_.Cout_g, tap};
    });
  }

  int64_t count;
  MaskedTap<Mask, Weight> taps[kMostMaskedTaps];

 private:
  const UnsharedConvParams& p_;
  const Mask* fired_;   // of the tile's samples, from the first channel of the group
  const Weight* rows_;  // of position 0
  int64_t fired_per_pixel_;
};

}  // namespace
}  // namespace realspike
