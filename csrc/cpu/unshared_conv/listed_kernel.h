#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/decode.h"
#include "cpu/unshared_conv/emit_spikes.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/passes.h"
#include "cpu/unshared_conv/prefetch.h"
#include "cpu/unshared_conv/rows.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

// Channels whose sums fit in the registers, with some to spare.
#if defined(__AVX512F__)
constexpr int kWidestChannels = 128;
#elif defined(__AVX2__)
constexpr int kWidestChannels = 64;
#else
constexpr int kWidestChannels = 32;
#endif

template <int kChannels>
struct Channels {
  static constexpr int kCount = kChannels;
};

// Calls f(Channels<k>, c) for the runs of k channels that together make up `channels`; what is
// left, fewer than a vector, is Channels<0>.
template <class Row, class F>
inline void for_each_run(int64_t channels, F f) {
  constexpr int kWidest = kWidestChannels * Row::kTimesWidest;
  int64_t c = 0;
  const auto runs_of = [&](auto run, int64_t k) {
    for (; channels - c >= k; c += k) f(run, c);
  };
  if constexpr (kWidest >= 256) runs_of(Channels<256>{}, 256);
  if constexpr (kWidest >= 128) runs_of(Channels<128>{}, 128);
  if constexpr (kWidest >= 64) runs_of(Channels<64>{}, 64);
  runs_of(Channels<32>{}, 32);
  runs_of(Channels<16>{}, 16);
  if (c < channels) f(Channels<0>{}, c);
}

// What a task works on.
template <class Row>
struct Accumulators {
  using Sum = typename Row::Sum;
  Sum sums[kMostSums];         // [samples, channels]
  int32_t rows[kMostSamples];  // that were added; int8 rows are too large by a constant
};

// Where the lists of a pass begin, tap by tap, and the rows that they select from.
template <class Weight>
struct PassLists {
  PassLists(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const SpikeLists& lists,
            const Task& work, const Pass<Weight>& pass)
      : count(pass.count), rows(pass.rows) {
    for (int64_t k = 0; k < count; ++k) {
      const Tap& tap = pass.taps[k];
      const int64_t i = list_number(p, tiles, work.sample_tile, tap.ih * p.W + tap.iw,
                                    work.tile.group, tap.block);
      taps[k] = {lists.starts + i * (tiles.samples + 1), lists.spikes + lists.first[i],
                 static_cast<uint16_t>(tap.row)};
    }
  }

  // Writes the numbers of the rows that sample s fired, counted from the first of the pass and in
  // ascending order, and returns how many. One list for all taps is one loop to leave, whose end
  // nobody can predict.
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

// Adds the listed rows to sums, or starts these.
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

template <class Row, class F>
void for_each_sums(int64_t channels, F f) {
  for_each_run<Row>(channels, [&](auto run, int64_t channel) {
    if constexpr (run.kCount == 0) {
      f(FewSums<Row>(static_cast<int>(channels - channel)), channel);
    } else {
      f(typename Row::template Sums<run.kCount>(), channel);
    }
  });
}

// The finished currents of one sample at one position, [channels].
template <class Row>
void finish(const UnsharedConvParams& p, const Tile& tile, int64_t position, int64_t s,
            const Accumulators<Row>& accumulators, float* currents) {
  for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
    sums.unpack(accumulators.sums + s * tile.channels + channel, accumulators.rows[s],
                currents + channel);
  });
  scale_and_bias(p, tile, position, currents);
}

// The amplitude of each row's input element, in the numbering of the rows.
template <class Weight>
void copy_amplitude(const UnsharedConvParams& p, const Tile& tile, const Pass<Weight>& pass,
                    float* amplitude) {
  for (int64_t i = 0; i < pass.count; ++i) {
    const Tap& tap = pass.taps[i];
    const int64_t first = tap.block * kChannelBlock;
    const int64_t count = p.Cin_g - first < kChannelBlock ? p.Cin_g - first : kChannelBlock;
    const float* from =
        p.amplitude + ((tap.ih * p.W + tap.iw) * p.G + tile.group) * p.Cin_g + first;
    std::memcpy(amplitude + tap.row, from, count * sizeof(float));
  }
}

template <class Row, bool kFactored>
void run_task(const UnsharedConvParams& p, const LifPacked* lif, const UnsharedConvTiles& tiles,
              const SpikeLists& lists, int64_t task, const TaskMemory& memory) {
  const Task work(p, tiles, task);
  const Tile& tile = work.tile;
  using Weight = const typename Row::Weight;
  Accumulators<Row> accumulators;
  KeptPositions kept(tiles.kept, work.begin, work.end);
  Prefetcher prefetcher;
  const uint32_t* fired = lists.fired + work.sample_tile * p.H * p.W * p.words;
  uint16_t list[kMostRowsPerPass + kListPadding];
  float amplitude[kFactored ? kMostRowsPerPass : 1];
  Passes<Weight> passes(p, tiles, tile, static_cast<Weight*>(p.weight), work.begin, work.end);
  Pass<Weight> two[2];
  Pass<Weight>* now = &two[0];
  Pass<Weight>* ahead = &two[1];
  bool more = passes.next(now);
  while (more) {
    more = passes.next(ahead);
    if (more && tiles.prefetch) prefetcher.plan(p, tile, *ahead, fired);
    if constexpr (kFactored) copy_amplitude(p, tile, *now, amplitude);
    const PassLists<Weight> pass(p, tiles, lists, work, *now);
    for (int64_t s = 0; s < tile.samples; ++s) {
      const int64_t length = pass.rows_of(s, list);
      prefetcher.issue();
      if constexpr (Row::kBiased) {
        accumulators.rows[s] = (now->first ? 0 : accumulators.rows[s]) + length;
      }
      for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
        add_rows<Row, kFactored>(pass.rows + channel, p.Cout_g, list, length, amplitude, now->first,
                                 sums, accumulators.sums + s * tile.channels + channel);
      });
      if (!now->last) continue;
      float* const of_sample = memory.currents + s * tiles.kept * tile.channels;
      finish(p, tile, now->position, s, accumulators,
             of_sample + (now->position - kept.first) * tile.channels);
      if (lif == nullptr && kept.ends_with(now->position)) {
        write_out(p, tiles.stream, tile, kept, s, of_sample);
      }
    }
    if (now->last && lif != nullptr) emit_spikes(p, *lif, tile, now->position, memory.currents);
    if (now->last && kept.ends_with(now->position)) kept = kept.next();
    prefetcher.finish();
    Pass<Weight>* const done = now;
    now = ahead;
    ahead = done;
  }
  if (tiles.stream) end_stream();
}

void unshared_conv_task(const UnsharedConvParams& p, const LifPacked* lif,
                        const UnsharedConvTiles& tiles, const SpikeLists& lists, int64_t task,
                        const TaskMemory& memory) {
  const bool factored = p.amplitude != nullptr;
  switch (p.weight_dtype) {
    case DType::kFloat32:
      return factored ? run_task<Float32Row, true>(p, lif, tiles, lists, task, memory)
                      : run_task<Float32Row, false>(p, lif, tiles, lists, task, memory);
    case DType::kFloat16:
      return factored ? run_task<Float16Row, true>(p, lif, tiles, lists, task, memory)
                      : run_task<Float16Row, false>(p, lif, tiles, lists, task, memory);
    case DType::kBFloat16:
      return factored ? run_task<BFloat16Row, true>(p, lif, tiles, lists, task, memory)
                      : run_task<BFloat16Row, false>(p, lif, tiles, lists, task, memory);
    case DType::kInt8:
      return run_task<Int8Row, false>(p, lif, tiles, lists, task, memory);
  }
}

}  // namespace
}  // namespace realspike
