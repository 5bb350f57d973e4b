#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"
#include "cpu/unshared_conv/window.h"

namespace realspike {
namespace {

// One (tap, block of channels) of one output position: which pixel it reads and which rows it adds.
struct Tap {
  int64_t pixel;
  int64_t block;
  int64_t row;  // its first, counted from the first of the pass
};

// Some taps of one position, in ascending (kh, kw, block), whose rows lie close together. Aligned:
// GCC 12 reads the taps by aligned vectors, wherever it has put a local pass.
template <class Weight>
struct alignas(64) Pass {
  Tap taps[kMostTapsPerPass];
  Weight* rows;  // [rows, Cout_g], from the tile's first output channel
  int64_t count;
  int64_t position;
  bool first;  // of the position
  bool last;
};

// All passes of a run of positions, each position having at least one. Taps outside the map are
// left out.
template <class Weight>
class Passes {
 public:
  Passes(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Tile& tile,
         Weight* weight, int64_t position, int64_t end)
      : p_(p), tiles_(tiles), position_(position), end_(end), window_(p, position) {
    weight_ = weight + tile.group * p.KH * p.KW * p.Cin_g * p.Cout_g + tile.first_channel;
    begin_position();
  }

  bool next(Pass<Weight>* pass) {
    if (position_ == end_) return false;
    pass->position = position_;
    pass->first = first_;
    pass->count = 0;
    const int64_t first_row = row();
    pass->rows = weight_ + position_ * p_.weight_stride_p + first_row * p_.Cout_g;
    while (kh_ < p_.KH && pass->count < tiles_.blocks_per_pass &&
           row() - first_row <= kMostRowsPerPass - kChannelBlock) {
      pass->taps[pass->count++] = {pixel_, block_, row() - first_row};
      step();
    }
    first_ = false;
    pass->last = kh_ == p_.KH;
    if (pass->last) {
      ++position_;
      begin_position();
    }
    return true;
  }

 private:
  int64_t row() const { return (kh_ * p_.KW + kw_) * p_.Cin_g + block_ * kChannelBlock; }

  void begin_position() {
    first_ = true;
    kh_ = kw_ = block_ = 0;
    window_ = Window(p_, position_);
    skip_outside();
  }
  void step() {
    if (++block_ < tiles_.blocks) return;
    block_ = 0;
    advance();
    skip_outside();
  }
  void advance() {
    if (++kw_ < p_.KW) return;
    kw_ = 0;
    ++kh_;
  }
  void skip_outside() {
    for (; kh_ < p_.KH; advance()) {
      pixel_ = window_.pixel(p_, kh_, kw_);
      if (pixel_ != kOutside) return;
    }
  }

  const UnsharedConvParams& p_;
  const UnsharedConvTiles& tiles_;
  Weight* weight_;
  int64_t position_;
  int64_t end_;
  Window window_;
  int64_t pixel_;  // of tap (kh_, kw_)
  bool first_;
  int64_t kh_, kw_, block_;
};

}  // namespace
}  // namespace realspike
