#pragma once

#include <cstdint>
#include <type_traits>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/emit_spikes.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/rows.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"
#include "cpu/unshared_conv/window.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// One input and one output channel per group: a row would be one weight long. So the caller passes
// the groups as the channels of one group (G = 1, Cin_g = Cout_g = their number). The bits of a
// packed word are a mask, under which each tap adds its weights to the sums of 32 channels.

namespace realspike {
namespace {

// The bits of a packed word, and the sums that one word adds to.
constexpr int64_t kWordChannels = 32;

// Sums of 32 bits in one register.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Adds the weights of the lanes whose bits are set.
template <class Lanes, class Sum>
inline void add_fired(Lanes* sums, const Sum* weights, uint32_t fired) {
#if defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>(fired);
  if constexpr (std::is_same_v<Sum, float>) {
    const auto before = reinterpret_cast<__m512>(*sums);
    const __m512 after = _mm512_mask_add_ps(before, mask, before, _mm512_loadu_ps(weights));
    *sums = reinterpret_cast<Lanes>(after);
  } else {
    const auto before = reinterpret_cast<__m512i>(*sums);
    const __m512i after = _mm512_mask_add_epi32(before, mask, before, _mm512_loadu_si512(weights));
    *sums = reinterpret_cast<Lanes>(after);
  }
#else
  using Masks = typename VectorOf<int32_t, 4 * kLanes>::Type;
  Masks bits;
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = 1 << lane;
  const Masks set = (bits & static_cast<int32_t>(fired)) != 0;
  *sums += reinterpret_cast<Lanes>(set & load_vector<Masks>(weights));
#endif
}

// The taps of one position that lie inside the map, and their weights.
template <class Row>
class DepthwiseTaps {
 public:
  using Sum = typename Row::Sum;
  using Lanes = typename VectorOf<Sum, 4 * kLanes>::Type;

  // weights [KH * KW, channels, up to a multiple of kWordChannels]: whole words of sums are made,
  // and those beyond the last channel dropped.
  DepthwiseTaps(const UnsharedConvParams& p, const Tile& tile, Sum* weights)
      : p_(p), tile_(tile), weights_(weights) {
    padded_ = ceil_div(tile.channels, kWordChannels) * kWordChannels;
    same_everywhere_ = p.weight_stride_p == 0 && p.amplitude == nullptr;
    if (!same_everywhere_) return;
    for (int64_t tap = 0; tap < p.KH * p.KW; ++tap) copy_weights(0, tap, 0);
  }

  void go_to(int64_t position) {
    count_ = 0;
    for_each_tap(p_, position, [&](int64_t tap, int64_t pixel) {
      if (!same_everywhere_) copy_weights(position, tap, pixel);
      words_[count_] = pixel * p_.words;
      of_tap_[count_++] = weights_ + tap * padded_;
    });
  }

  // The sums of channels [channel, channel + kWordChannels) of the tile, for sample n.
  void add(int64_t n, int64_t channel, Sum* sums) const {
    const uint32_t* words =
        p_.spikes + n * p_.H * p_.W * p_.words + (tile_.first_channel + channel) / kWordChannels;
    Lanes lanes[kWordChannels / kLanes] = {};
    for (int64_t k = 0; k < count_; ++k) {
      const uint32_t fired = words[words_[k]];
      const Sum* weights = of_tap_[k] + channel;
      for (int i = 0; i < kWordChannels / kLanes; ++i) {
        add_fired(&lanes[i], weights + i * kLanes, fired >> (i * kLanes));
      }
    }
    for (int i = 0; i < kWordChannels / kLanes; ++i) store_vector(sums + i * kLanes, lanes[i]);
  }

 private:
  void copy_weights(int64_t position, int64_t tap, int64_t pixel) const {
    const int64_t taps = p_.KH * p_.KW;
    const auto* from = static_cast<const typename Row::Weight*>(p_.weight) +
                       position * p_.weight_stride_p + tile_.first_channel * taps + tap;
    Sum* const to = weights_ + tap * padded_;
    for (int64_t c = 0; c < tile_.channels; ++c) {
      to[c] = Row::widen(from[c * taps]) - Row::offset(1);
    }
    for (int64_t c = tile_.channels; c < padded_; ++c) to[c] = 0;
    if constexpr (!Row::kBiased) {
      if (p_.amplitude == nullptr) return;
      const float* amplitude = p_.amplitude + pixel * p_.Cin_g + tile_.first_channel;
      for (int64_t c = 0; c < tile_.channels; ++c) to[c] = amplitude[c] * to[c];
    }
  }

  const UnsharedConvParams& p_;
  const Tile& tile_;
  Sum* weights_;
  int64_t padded_;
  bool same_everywhere_;
  int64_t count_ = 0;
  int64_t words_[kMostDepthwiseTaps];  // of each tap's pixel, the first
  const Sum* of_tap_[kMostDepthwiseTaps];
};

template <class Row>
void run_depthwise_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                        const UnsharedConvTiles& tiles, int64_t task, const TaskMemory& memory) {
  const Task work(p, tiles, task);
  const Tile& tile = work.tile;
  DepthwiseTaps<Row> taps(p, tile, static_cast<typename Row::Sum*>(memory.weights));
  ScaleAndBias scale_and_bias(p, tile);
  KeptPositions kept(tiles.kept, work.begin, work.end);
  for (int64_t position = work.begin; position < work.end; ++position) {
    taps.go_to(position);
    scale_and_bias.go_to(position);
    const bool whole = kept.ends_with(position);
    for (int64_t s = 0; s < tile.samples; ++s) {
      float* const of_sample = memory.currents + s * tiles.kept * tile.channels;
      float* const currents = of_sample + (position - kept.first) * tile.channels;
      for (int64_t c = 0; c < tile.channels; c += kWordChannels) {
        typename Row::Sum sums[kWordChannels];
        taps.add(sample_of(p, tiles, tile, s), c, sums);
        const int64_t some = least(tile.channels - c, kWordChannels);
        for (int64_t lane = 0; lane < some; ++lane) {
          currents[c + lane] = static_cast<float>(sums[lane]);
        }
      }
      scale_and_bias.apply(currents);
      if (neurons == nullptr && whole) write_out(p, tiles.stream, tile, kept, s, of_sample);
    }
    if (!whole) continue;
    if (neurons != nullptr) emit_spikes(*neurons, tile, kept, memory.currents);
    kept = kept.next();
  }
  if (tiles.stream) end_stream();
}

void unshared_conv_depthwise_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                                  const UnsharedConvTiles& tiles, int64_t task,
                                  const TaskMemory& memory) {
  with_row(p.weight_dtype,
           [&](auto row) { run_depthwise_task<decltype(row)>(p, neurons, tiles, task, memory); });
}

}  // namespace
}  // namespace realspike
