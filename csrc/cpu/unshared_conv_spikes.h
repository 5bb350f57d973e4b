#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv_passes.h"
#include "cpu/unshared_conv_rows.h"
#include "cpu/unshared_conv_tiles.h"

// The bits of the map: decoded into lists, united over samples, and collected for one window.

namespace realspike {
namespace {

// Row `row` = n * H + h of the map: every set bit becomes one byte of its list.
void decode_spikes_row(const UnsharedConvParams& p, const SpikeLists& lists, int64_t row,
                       uint32_t* starts, uint8_t* spikes) {
  uint32_t* start = starts + row * (lists.per_row + 1);
  uint8_t* list = spikes + row * lists.row_capacity;
  uint32_t count = 0;
  const uint32_t* pixel = p.spikes + row * p.W * p.words;
  for (int64_t iw = 0; iw < p.W; ++iw, pixel += p.words) {
    for (int64_t g = 0; g < p.G; ++g) {
      for (int64_t block = 0; block < lists.blocks; ++block) {
        *start++ = count;
        const int64_t left = p.Cin_g - block * kChannelBlock;
        const int64_t first = g * p.Cin_g + block * kChannelBlock;
        const int64_t end = first + (left < kChannelBlock ? left : kChannelBlock);
        for (int64_t word = first / 32; word * 32 < end; ++word) {
          uint32_t bits = pixel[word];
          if (word * 32 < first) bits &= ~0u << (first - word * 32);
          if (word * 32 + 32 > end) bits &= ~0u >> (word * 32 + 32 - end);
          for (; bits != 0; bits &= bits - 1) {
            list[count++] = static_cast<uint8_t>(word * 32 + __builtin_ctz(bits) - first);
          }
        }
      }
    }
  }
  *start = count;
}

// Row `row` = tile * H + h of the map: which channels fire in any sample of the tile.
void unite_spikes_row(const UnsharedConvParams& p, int64_t samples, int64_t row, uint32_t* fired) {
  const int64_t words = p.W * p.words;
  const int64_t first = row / p.H * samples;
  const int64_t end = first + samples < p.N ? first + samples : p.N;
  uint32_t* to = fired + row * words;
  std::memset(to, 0, words * sizeof(uint32_t));
  for (int64_t n = first; n < end; ++n) {
    const uint32_t* from = p.spikes + (n * p.H + row % p.H) * words;
    for (int64_t i = 0; i < words; ++i) to[i] |= from[i];
  }
}

// The rows of a pass that one sample adds, in ascending order, counted from the pass's first row.
class RowList {
 public:
  template <class Weight>
  void collect(const UnsharedConvParams& p, const SpikeLists& lists, const Tile& tile,
               const Pass<Weight>& pass, int64_t n) {
    size = 0;
    for (int64_t i = 0; i < pass.count; ++i) {
      const Tap& tap = pass.taps[i];
      const int64_t map_row = n * p.H + tap.ih;
      const uint32_t* start = lists.starts + map_row * (lists.per_row + 1) +
                              (tap.iw * p.G + tile.group) * lists.blocks + tap.block;
      const uint8_t* spikes = lists.spikes + map_row * lists.row_capacity + start[0];
      const int64_t count = start[1] - start[0];
      // Whole vectors: what is too much is overwritten by the next list.
      for (int64_t j = 0; j < count; j += kAtOnce) {
        const auto wide = __builtin_convertvector(load_vector<Bytes>(spikes + j), Halves);
        store_vector(rows + size + j, wide + static_cast<uint16_t>(tap.row));
      }
      size += count;
    }
  }

  int64_t size;
  uint16_t rows[kMostRowsPerPass + kListPadding];

 private:
  static constexpr int kAtOnce = kListPadding;
  using Bytes = VectorOf<uint8_t, kAtOnce>::Type;
  using Halves = VectorOf<uint16_t, 2 * kAtOnce>::Type;
};

}  // namespace
}  // namespace realspike
