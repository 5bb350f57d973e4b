#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/emit_spikes.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/pass_lists.h"
#include "cpu/unshared_conv/passes.h"
#include "cpu/unshared_conv/prefetch.h"
#include "cpu/unshared_conv/rows.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

// Any convolution: for each sample, the rows of weights that its lists of spikes name are added to
// sums in registers.

namespace realspike {
namespace {

// The sums of a position, for all samples and channels of a tile, from its first pass to its last.
template <class Row>
struct Accumulators {
  using Sum = typename Row::Sum;
  Sum sums[kMostSums];         // [samples, channels]
  int32_t rows[kMostSamples];  // that were added; the bytes of an int8 row are 128 too large
};

// Adds the listed rows to the sums in memory, or, if `first`, to zeros.
template <class Row, bool kFactored, class Sums>
void add_rows(const typename Row::Weight* rows, int64_t row_stride, const uint16_t* list,
              int64_t length, const float* amplitude, bool first, Sums sums,
              typename Row::Sum* memory) {
  sums.load(memory, first);
  for (int64_t i = 0; i < length;) {
    for (const int64_t end = i + sums.make_room(length - i, memory); i < end; ++i) {
      if constexpr (kFactored) {
        sums.add_scaled(rows + list[i] * row_stride, amplitude[list[i]]);
      } else {
        sums.add(rows + list[i] * row_stride);
      }
    }
  }
  sums.store(memory);
}

// The finished currents of one sample at one position, [channels].
template <class Row>
void finish(const Tile& tile, const ScaleAndBias& scale_and_bias, int64_t s,
            const Accumulators<Row>& accumulators, float* currents) {
  for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
    sums.unpack(accumulators.sums + s * tile.channels + channel, accumulators.rows[s],
                currents + channel);
  });
  scale_and_bias.apply(currents);
}

template <class Row, bool kFactored>
void run_listed_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                     const UnsharedConvTiles& tiles, const SpikeLists& lists, int64_t task,
                     const TaskMemory& memory) {
  const Task work(p, tiles, task);
  const Tile& tile = work.tile;
  using Weight = const typename Row::Weight;
  Accumulators<Row> accumulators;
  ScaleAndBias scale_and_bias(p, tile);
  KeptPositions kept(tiles.kept, work.begin, work.end);
  Prefetcher prefetcher;
  const uint32_t* fired = lists.fired + work.sample_tile * p.H * p.W * p.words;
  uint16_t list[kMostRowsPerPass + kListPadding];
  float amplitude[kFactored ? kMostRowsPerPass : 1];
  Passes<Weight> passes(p, tiles, tile, static_cast<Weight*>(p.weight), work.begin, work.end);
  Pass<Weight> two[2];  // the pass whose rows are added, and the next, whose rows are fetched
  bool more = passes.next(&two[0]);
  for (int turn = 0; more; turn ^= 1) {
    const Pass<Weight>& now = two[turn];
    more = passes.next(&two[turn ^ 1]);
    if (more && tiles.prefetch) prefetcher.plan(p, tile, two[turn ^ 1], fired);
    if constexpr (kFactored) copy_amplitude(p, tile, now, amplitude);
    const PassLists<Weight> pass(p, tiles, lists, work, now);
    if (now.first) scale_and_bias.go_to(now.position);
    for (int64_t s = 0; s < tile.samples; ++s) {
      const int64_t length = pass.rows_of(s, list);
      prefetcher.issue();
      if constexpr (Row::kBiased) {
        accumulators.rows[s] = (now.first ? 0 : accumulators.rows[s]) + length;
      }
      for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
        add_rows<Row, kFactored>(pass.rows + channel, p.Cout_g, list, length, amplitude, now.first,
                                 sums, accumulators.sums + s * tile.channels + channel);
      });
      if (!now.last) continue;
      float* const of_sample = memory.currents + s * tiles.kept * tile.channels;
      finish(tile, scale_and_bias, s, accumulators,
             of_sample + (now.position - kept.first) * tile.channels);
      if (neurons == nullptr && kept.ends_with(now.position)) {
        write_out(p, tiles.stream, tile, kept, s, of_sample);
      }
    }
    if (now.last && kept.ends_with(now.position)) {
      if (neurons != nullptr) emit_spikes(*neurons, tile, kept, memory.currents);
      kept = kept.next();
    }
    prefetcher.finish();
  }
  if (tiles.stream) end_stream();
}

void unshared_conv_listed_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                               const UnsharedConvTiles& tiles, const SpikeLists& lists,
                               int64_t task, const TaskMemory& memory) {
  with_row(p.weight_dtype, [&](auto row) {
    using Row = decltype(row);
    if constexpr (!Row::kBiased) {
      if (p.amplitude != nullptr) {
        return run_listed_task<Row, true>(p, neurons, tiles, lists, task, memory);
      }
    }
    run_listed_task<Row, false>(p, neurons, tiles, lists, task, memory);
  });
}

}  // namespace
}  // namespace realspike
