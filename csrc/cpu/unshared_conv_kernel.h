#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv_passes.h"
#include "cpu/unshared_conv_prefetch.h"
#include "cpu/unshared_conv_rows.h"
#include "cpu/unshared_conv_spikes.h"
#include "cpu/unshared_conv_tiles.h"

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

// Adds the listed rows to the sums of one sample.
template <class Row, bool kFactored, class Sums>
void add_rows(const RowList& list, const typename Row::Weight* weight, int64_t row_stride,
              const float* amplitude, Sums sums, typename Row::Sum* memory,
              Prefetcher& prefetcher) {
  constexpr int64_t kRowsAtOnce = 16;
  sums.load(memory);
  for (int64_t j = 0; j < list.size; j += kRowsAtOnce) {
    const int64_t end = j + kRowsAtOnce < list.size ? j + kRowsAtOnce : list.size;
    sums.make_room(end - j, memory);
    for (int64_t k = j; k < end; ++k) {
      const int64_t row = list.rows[k];
      if constexpr (kFactored) {
        sums.add_scaled(weight + row * row_stride, amplitude[row]);
      } else {
        sums.add(weight + row * row_stride);
      }
    }
    prefetcher.issue();
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

template <class Row>
void write_out(const UnsharedConvParams& p, const Tile& tile, int64_t position,
               const Accumulators<Row>& accumulators) {
  const int64_t first = tile.group * p.Cout_g + tile.first_channel;
  const float* bias =
      p.bias == nullptr ? nullptr : p.bias + first * p.bias_stride_c + position * p.bias_stride_p;
  float line[kMostSums];
  for (int64_t s = 0; s < tile.samples; ++s) {
    for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
      sums.unpack(accumulators.sums + s * tile.channels + channel, accumulators.rows[s],
                  line + channel);
    });
    if (p.scale != nullptr) {
      for (int64_t c = 0; c < tile.channels; ++c) line[c] *= p.scale[first + c];
    }
    if (bias != nullptr) {
      for (int64_t c = 0; c < tile.channels; ++c) line[c] += bias[c * p.bias_stride_c];
    }
    float* out = p.out + (tile.first_sample + s) * p.out_stride_n + first * p.out_stride_c +
                 position * p.out_stride_p;
    for (int64_t c = 0; c < tile.channels; ++c) out[c * p.out_stride_c] = line[c];
  }
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
void run_task(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t task) {
  const Task work(p, tiles, task);
  const Tile& tile = work.tile;
  using Weight = const typename Row::Weight;
  Accumulators<Row> accumulators;
  Prefetcher prefetcher;
  RowList list;
  const uint32_t* fired = tiles.lists.fired + work.sample_tile * p.H * p.W * p.words;
  float amplitude[kFactored ? kMostRowsPerPass : 1];
  Passes<Weight> passes(p, tiles, tile, static_cast<Weight*>(p.weight), work.begin, work.end);
  Pass<Weight> two[2];
  Pass<Weight>* now = &two[0];
  Pass<Weight>* ahead = &two[1];
  bool more = passes.next(now);
  while (more) {
    more = passes.next(ahead);
    if (more && tiles.prefetch) prefetcher.plan(p, tile, *ahead, fired);
    if (now->first) {
      std::memset(accumulators.sums, 0, tile.samples * tile.channels * sizeof(typename Row::Sum));
      std::memset(accumulators.rows, 0, tile.samples * sizeof(int32_t));
    }
    if constexpr (kFactored) copy_amplitude(p, tile, *now, amplitude);
    for (int64_t s = 0; s < tile.samples; ++s) {
      list.collect(p, tiles.lists, tile, *now, tile.first_sample + s);
      accumulators.rows[s] += static_cast<int32_t>(list.size);
      for_each_sums<Row>(tile.channels, [&](auto sums, int64_t channel) {
        add_rows<Row, kFactored>(list, now->rows + channel, p.Cout_g, amplitude, sums,
                                 accumulators.sums + s * tile.channels + channel, prefetcher);
      });
    }
    prefetcher.finish();
    if (now->last) write_out<Row>(p, tile, now->position, accumulators);
    Pass<Weight>* const done = now;
    now = ahead;
    ahead = done;
  }
}

void unshared_conv_task(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t task) {
  const bool factored = p.amplitude != nullptr;
  switch (p.weight_dtype) {
    case DType::kFloat32:
      return factored ? run_task<Float32Row, true>(p, tiles, task)
                      : run_task<Float32Row, false>(p, tiles, task);
    case DType::kFloat16:
      return factored ? run_task<Float16Row, true>(p, tiles, task)
                      : run_task<Float16Row, false>(p, tiles, task);
    case DType::kBFloat16:
      return factored ? run_task<BFloat16Row, true>(p, tiles, task)
                      : run_task<BFloat16Row, false>(p, tiles, task);
    case DType::kInt8:
      return run_task<Int8Row, false>(p, tiles, task);
  }
}

}  // namespace
}  // namespace realspike
