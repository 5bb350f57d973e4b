#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {

// The spikes of each pixel as lists of channel numbers, decoded once and read by every output
// position whose window covers the pixel. The lists of a (sample tile, pixel, group, block) lie
// side by side, sample after sample: the order in which a task reads them. With i =
// list_number(...), that of the tile's sample s is spikes[first[i] + starts[i][s] ... first[i] +
// starts[i][s + 1]).
struct SpikeLists {
  int64_t* first;    // [sample_tiles, H * W, G, blocks]
  uint16_t* starts;  // [sample_tiles, H * W, G, blocks, samples + 1]
  uint8_t* spikes;   // channels within their block
  uint32_t* fired;   // [sample_tiles, H * W, words]: in any sample of the tile; or nullptr
};

// Pixels [begin, end) of one tile of samples; their spikes go to spikes[at] and beyond.
struct PixelRun {
  int64_t sample_tile;
  int64_t first_sequence;
  int64_t sequences;
  int64_t begin;
  int64_t end;
  int64_t at;
};

// Lists are written and read in whole vectors, up to this many bytes beyond the last.
constexpr int64_t kListPadding = 32;

namespace {

// The channels [first, end) of the map that are a block of a group.
struct ChannelBlock {
  ChannelBlock(const UnsharedConvParams& p, int64_t group, int64_t block)
      : first(group * p.Cin_g + block * kChannelBlock),
        end(least(first + kChannelBlock, (group + 1) * p.Cin_g)) {}
  int64_t first;
  int64_t end;
};

// Calls f(s, n) for every sample of the run, s being its number in the tile.
template <class F>
inline void for_each_sample(const UnsharedConvParams& p, const UnsharedConvTiles& tiles,
                            const PixelRun& run, F f) {
  const int64_t all_sequences = p.N / tiles.timesteps;
  int64_t s = 0;
  for (int64_t t = 0; t < tiles.timesteps; ++t) {
    for (int64_t b = 0; b < run.sequences; ++b, ++s) {
      f(s, t * all_sequences + run.first_sequence + b);
    }
  }
}

inline int64_t list_number(const UnsharedConvParams& p, const UnsharedConvTiles& tiles,
                           int64_t sample_tile, int64_t pixel, int64_t group, int64_t block) {
  return ((sample_tile * p.H * p.W + pixel) * p.G + group) * tiles.blocks + block;
}

}  // namespace
}  // namespace realspike
