#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/passes.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

// The spikes of a sample, which select rows of a pass, and the amplitudes that multiply these rows.

namespace realspike {
namespace {

// The lists of a pass, one for each of its taps, and the rows that they select from.
template <class Weight>
struct PassLists {
  PassLists(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const SpikeLists& lists,
            const Task& work, const Pass<Weight>& pass)
      : count(pass.count), rows(pass.rows) {
    for (int64_t k = 0; k < count; ++k) {
      const Tap& tap = pass.taps[k];
      const int64_t i =
          list_number(p, tiles, work.sample_tile, tap.pixel, work.tile.group, tap.block);
      taps[k] = {lists.starts + i * (tiles.samples + 1), lists.spikes + lists.first[i],
                 static_cast<uint16_t>(tap.row)};
    }
  }

  // Joins the lists of sample s: writes the numbers of the rows that it fired, counted from the
  // first of the pass and in ascending order, and returns how many they are. The processor cannot
  // predict where a list ends. The loop over a joined list ends once, not once for every tap.
  int64_t rows_of(int64_t s, uint16_t* rows) const {
    uint16_t* end = rows;
    for (int64_t k = 0; k < count; ++k) {
      const OfTap& tap = taps[k];
      const uint8_t* list = tap.spikes + tap.starts[s];
      const int64_t length = tap.starts[s + 1] - tap.starts[s];
      int64_t i = 0;
      do {
        for (int64_t j = 0; j < kListPadding; ++j) end[i + j] = tap.row + list[i + j];
        i += kListPadding;
      } while (i < length);
      end += length;
    }
    return end - rows;
  }

  struct OfTap {
    const uint16_t* starts;
    const uint8_t* spikes;
    uint16_t row;  // its first, counted from the first of the pass
  };
  int64_t count;
  Weight* rows;
  OfTap taps[kMostTapsPerPass];
};

// The amplitude of each row's input element, in the numbering of the rows.
template <class Weight>
void copy_amplitude(const UnsharedConvParams& p, const Tile& tile, const Pass<Weight>& pass,
                    float* amplitude) {
  for (int64_t i = 0; i < pass.count; ++i) {
    const Tap& tap = pass.taps[i];
    const ChannelBlock channels(p, tile.group, tap.block);
    const float* from = p.amplitude + tap.pixel * p.G * p.Cin_g + channels.first;
    std::memcpy(amplitude + tap.row, from, (channels.end - channels.first) * sizeof(float));
  }
}

}  // namespace
}  // namespace realspike
