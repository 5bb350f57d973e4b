#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

struct Tile {
  int64_t group;
  int64_t first_sequence;
  int64_t sequences;
  int64_t samples;        // all timesteps of its sequences, timestep outermost
  int64_t first_channel;  // within the group
  int64_t channels;
};

// Task number `task` of the grid that the tiles span.
struct Task {
  Task(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t task) {
    sample_tile = task % tiles.sample_tiles;
    task /= tiles.sample_tiles;
    const int64_t channel_tile = task % tiles.channel_tiles;
    task /= tiles.channel_tiles;
    tile.group = task % p.G;
    begin = task / p.G * tiles.positions;
    const int64_t positions = p.OH * p.OW;
    end = begin + tiles.positions < positions ? begin + tiles.positions : positions;
    const int64_t per_tile = tiles.samples / tiles.timesteps;
    tile.first_sequence = sample_tile * per_tile;
    const int64_t sequences = p.N / tiles.timesteps - tile.first_sequence;
    tile.sequences = sequences < per_tile ? sequences : per_tile;
    tile.samples = tile.sequences * tiles.timesteps;
    tile.first_channel = channel_tile * tiles.channels;
    const int64_t channels = p.Cout_g - tile.first_channel;
    tile.channels = channels < tiles.channels ? channels : tiles.channels;
  }

  int64_t sample_tile;
  Tile tile;
  int64_t begin;  // positions
  int64_t end;
};

// One (tap, block of channels) of one output position: which pixel it reads and which rows it adds.
struct Tap {
  int64_t ih;
  int64_t iw;
  int64_t block;
  int64_t row;  // its first, counted from the first of the pass
};

// Some taps of one position, in ascending (kh, kw, block), whose rows lie close together.
template <class Weight>
struct Pass {
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
      : p_(p), tiles_(tiles), position_(position), end_(end) {
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
      pass->taps[pass->count++] = {ih(), iw(), block_, row() - first_row};
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
  int64_t ih() const {
    return position_ / p_.OW * p_.stride_h - p_.padding_h + kh_ * p_.dilation_h;
  }
  int64_t iw() const {
    return position_ % p_.OW * p_.stride_w - p_.padding_w + kw_ * p_.dilation_w;
  }
  int64_t row() const { return (kh_ * p_.KW + kw_) * p_.Cin_g + block_ * kChannelBlock; }

  void begin_position() {
    first_ = true;
    kh_ = kw_ = block_ = 0;
    if (position_ < end_) skip_outside();
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
    while (kh_ < p_.KH && (ih() < 0 || ih() >= p_.H || iw() < 0 || iw() >= p_.W)) advance();
  }

  const UnsharedConvParams& p_;
  const UnsharedConvTiles& tiles_;
  Weight* weight_;
  int64_t position_;
  int64_t end_;
  bool first_;
  int64_t kh_, kw_, block_;
};

}  // namespace
}  // namespace realspike
