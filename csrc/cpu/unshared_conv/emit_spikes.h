#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/lif/packed_kernel.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/task.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// The neurons behind a convolution. A tile has all timesteps of its sequences, so that the loops of
// lif_packed run over the currents of the positions that were kept.

namespace realspike {
namespace {

// currents [maps, signs, count] -> [count]: each map's positive part minus its negative one, added
// up. The last run of a task keeps fewer positions than there is room for. The sums in the room
// that is left are never read.
inline void join_maps(const UnsharedConvLif& p, int64_t count, float* currents) {
  for (int64_t map = 0; map < p.maps; ++map) {
    float* const part = currents + map * p.signs * count;
    for (int64_t i = 0; p.signs == 2 && i < count; ++i) part[i] -= part[count + i];
    for (int64_t i = 0; map > 0 && i < count; ++i) currents[i] += part[i];
  }
}

// Adds to the currents of 32 channels the values of those whose bits are set, and 0 to the others.
inline void add_selected(const float* values, int64_t stride_c, uint32_t fired, uint32_t negative,
                         int64_t channels, float* currents) {
#if defined(__AVX512F__)
  if (stride_c == 1 && negative == 0) {
    for (int64_t c = 0; c < channels; c += 16) {
      const auto lanes =
          static_cast<__mmask16>(0xffffu >> (channels - c < 16 ? 16 - channels + c : 0));
      const auto set = static_cast<__mmask16>(fired >> c & lanes);
      const __m512 sums = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, currents + c),
                                        _mm512_maskz_loadu_ps(set, values + c));
      _mm512_mask_storeu_ps(currents + c, lanes, sums);
    }
    return;
  }
#endif
  for (int64_t c = 0; c < channels; ++c) {
    const float value = values[c * stride_c];
    currents[c] += negative >> c & 1 ? -value : masked(value, mask_if(fired >> c & 1));
  }
}

// Adds `values`, by stride_c, to the currents [channels] of one position, of sample n of [T, B].
inline void add_current(const UnsharedConvLif& p, const AddedCurrent& added, const Tile& tile,
                        int64_t n, int64_t position, const float* values, int64_t stride_c,
                        float* currents) {
  if (added.spikes == nullptr) {
    if (stride_c == 1) {
      for (int64_t c = 0; c < tile.channels; ++c) currents[c] += values[c];
    } else {
      for (int64_t c = 0; c < tile.channels; ++c) currents[c] += values[c * stride_c];
    }
    return;
  }
  const LifPacked& lif = p.lif;
  const int64_t channel = tile.group * p.conv.Cout_g + tile.first_channel;
  const int64_t word = (n * lif.P + position) * lif.words + channel / 32;
  for (int64_t c = 0; c < tile.channels; c += 32) {
    const uint32_t negative = added.negative == nullptr ? 0 : added.negative[word + c / 32];
    add_selected(values + c * stride_c, stride_c, added.spikes[word + c / 32], negative,
                 least(tile.channels - c, 32), currents + c);
  }
}

// currents [T, sequences, kept, channels].
inline void add_currents(const UnsharedConvLif& p, const AddedCurrent& added, const Tile& tile,
                         const KeptPositions& kept, float* currents) {
  const int64_t all_sequences = p.lif.N / (p.lif.P * p.lif.C);
  const int64_t channel = tile.group * p.conv.Cout_g + tile.first_channel;
  float buffer[kMostChannels];
  for (int64_t i = 0; i < kept.count; ++i) {
    const int64_t position = kept.first + i;
    const float* values = added.values + channel * added.stride_c + position * added.stride_p;
    int64_t stride_c = added.stride_c;
    if (added.stride_n == 0) {
      values = side_by_side(values, stride_c, tile.channels, buffer);
      stride_c = 1;
    }
    float* of_sample = currents + i * tile.channels;
    for (int64_t t = 0; t < p.lif.T; ++t) {
      for (int64_t b = 0; b < tile.sequences; ++b, of_sample += kept.most * tile.channels) {
        const int64_t n = t * all_sequences + tile.first_sequence + b;
        add_current(p, added, tile, n, position, values + n * added.stride_n, stride_c, of_sample);
      }
    }
  }
}

// The positions or the sequences of a tile. `currents` and `pixels` say how far apart the currents
// and the pixels of two neighbours lie.
struct Neighbours {
  int64_t count;
  int64_t currents;
  int64_t pixels;
};

template <bool kTernary, ResetForm kReset>
void emit_spikes_form(const UnsharedConvLif& p, const Tile& tile, const KeptPositions& kept,
                      const float* currents) {
  PackedBuffers<Float32> buffers;
  const LifPacked& lif = p.lif;
  const Neighbours positions{kept.count, tile.channels, 1};
  const Neighbours sequences{tile.sequences, kept.most * tile.channels, lif.P};
  LifPacked neurons = lif;
  neurons.x_stride_t = sequences.count * sequences.currents;
  const bool across = sequences.count > positions.count;
  const Neighbours& rows = across ? sequences : positions;
  const Neighbours& outer = across ? positions : sequences;
  // All channels of neighbouring positions are one row of neurons.
  const bool joined = !across && tile.channels == lif.C;
  const int64_t channel = tile.group * p.conv.Cout_g + tile.first_channel;
  const int64_t at_once = kPackedNeurons / tile.channels;
  for (int64_t i = 0; i < outer.count; ++i) {
    for (int64_t r = 0; r < rows.count; r += at_once) {
      const int64_t some = least(rows.count - r, at_once);
      const int64_t pixel =
          tile.first_sequence * lif.P + kept.first + i * outer.pixels + r * rows.pixels;
      lif_packed_rows<Float32, kTernary, kReset>(
          neurons, buffers, currents + i * outer.currents + r * rows.currents, rows.currents,
          pixel * lif.C + channel, joined ? 1 : some, tile.channels * (joined ? some : 1),
          rows.pixels * lif.C, [&](int64_t t, const float* spikes) {
            for (int64_t c = 0; c < tile.channels; c += 32) {
              const int64_t bits = least(tile.channels - c, 32);
              pack_timestep<Float32>(lif, t, spikes + c, bits, some, 1, tile.channels, pixel,
                                     rows.pixels, (channel + c) / 32);
            }
          });
    }
  }
}

struct EmitForms {
  template <bool kTernary, ResetForm kReset>
  static constexpr auto form = emit_spikes_form<kTernary, kReset>;
};

// currents [maps, signs, T, sequences, kept, channels], all finished.
void emit_spikes(const UnsharedConvLif& p, const Tile& tile, const KeptPositions& kept,
                 float* currents) {
  join_maps(p, p.lif.T * tile.sequences * kept.most * tile.channels, currents);
  for (int64_t i = 0; i < p.added_count; ++i) {
    add_currents(p, p.added[i], tile, kept, currents);
  }
  choose_packed<EmitForms>(p.lif)(p, tile, kept, currents);
}

}  // namespace
}  // namespace realspike
