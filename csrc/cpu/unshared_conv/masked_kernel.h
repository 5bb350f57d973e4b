#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/emit_spikes.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"
#include "cpu/unshared_conv/window.h"

#if defined(__AVX512F__)
#include <immintrin.h>

// Few weights: to list the rows that a sample fired, and to leave the loop over them, takes longer
// than to add them. Here every row is added to the sums of four samples x four channels in a
// register, under a mask of the lanes whose sample fired it. There are as many additions as a
// position has weights, but nothing to look up and no branch to predict.

namespace realspike {
namespace {

// The lanes of the first sample of a quad: its channels lie side by side.
constexpr uint32_t kLanesOfSample = (1 << kQuad) - 1;

// The bits of the channels [channel, channel + 32) of one pixel of a sample; 0 beyond its last
// word.
inline uint32_t bits_at(const uint32_t* words, int64_t count, int64_t channel) {
  const int64_t word = channel / 32, shift = channel % 32;
  uint32_t bits = words[word] >> shift;
  if (shift != 0 && word + 1 < count) bits |= words[word + 1] << (32 - shift);
  return bits;
}

// masks [sample_tiles, H * W, G, quads, Cin_g]: the lanes of the samples of a quad that fired.
void mask_pixels(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const PixelRun& run,
                 uint16_t* masks) {
  const uint32_t* samples[kMostSamples + kQuad] = {};
  for_each_sample(p, tiles, run, [&](int64_t s, int64_t n) {
    samples[s] = p.spikes + (n * p.H * p.W + run.begin) * p.words;
  });
  const int64_t quads = sample_quads(tiles);
  uint16_t* to = masks + (run.sample_tile * p.H * p.W + run.begin) * p.G * quads * p.Cin_g;
  for (int64_t i = 0; i < (run.end - run.begin) * p.G * quads; ++i) {
    const int64_t quad = i % quads, g = i / quads % p.G, pixel = i / quads / p.G;
    for (int64_t c = 0; c < p.Cin_g; c += 32) {
      __m512i lanes = _mm512_setzero_si512();
      for (int s = 0; s < kQuad; ++s) {
        const uint32_t* words = samples[quad * kQuad + s];
        if (words == nullptr) continue;
        const uint32_t fired = bits_at(words + pixel * p.words, p.words, g * p.Cin_g + c);
        const auto of_sample = static_cast<int16_t>(kLanesOfSample << (s * kQuad));
        lanes = _mm512_or_si512(lanes, _mm512_maskz_set1_epi16(fired, of_sample));
      }
      const int64_t some = least(p.Cin_g - c, 32);
      _mm512_mask_storeu_epi16(to, ~0u >> (32 - some), lanes);
      to += some;
    }
  }
}

// A tap inside the map: who fired its rows, and the rows.
struct MaskedTap {
  const uint16_t* fired;  // [quads, Cin_g]
  const float* rows;      // [Cin_g, Cout_g]
};

// The taps of one position that lie inside the map, in ascending (kh, kw).
class MaskedPosition {
 public:
  MaskedPosition(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Task& work,
                 const uint16_t* masks)
      : p_(p) {
    const int64_t per_group = sample_quads(tiles) * p.Cin_g;
    fired_per_pixel_ = p.G * per_group;
    fired_ = masks + work.sample_tile * p.H * p.W * fired_per_pixel_ + work.tile.group * per_group;
    rows_ = static_cast<const float*>(p.weight) +
            work.tile.group * p.KH * p.KW * p.Cin_g * p.Cout_g + work.tile.first_channel;
  }

  void go_to(int64_t position) {
    count = 0;
    const float* rows = rows_ + position * p_.weight_stride_p;
    for_each_tap(p_, position, [&](int64_t tap, int64_t pixel) {
      taps[count++] = {fired_ + pixel * fired_per_pixel_, rows + tap * p_.Cin_g * p_.Cout_g};
    });
  }

  int64_t count;
  MaskedTap taps[kMostMaskedTaps];

 private:
  const UnsharedConvParams& p_;
  const uint16_t* fired_;  // of the tile's samples, from the first channel of the group
  const float* rows_;      // of position 0
  int64_t fired_per_pixel_;
};

// Sums kBlocks * 4 channels from `channel` on, in ascending (kh, kw, ci), for kQuads * 4 samples
// from quad `quad` on; `samples` of these exist. sums [samples, by stride_s].
template <int kQuads, int kBlocks>
void add_taps(const UnsharedConvParams& p, const MaskedPosition& position, int64_t quad,
              int64_t channel, int64_t samples, float* sums, int64_t stride_s) {
  __m512 lanes[kQuads][kBlocks];
  for (auto& of_quad : lanes) {
    for (__m512& block : of_quad) block = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < position.count; ++k) {
    const uint16_t* fired = position.taps[k].fired + quad * p.Cin_g;
    const float* row = position.taps[k].rows + channel;
    for (int64_t ci = 0; ci < p.Cin_g; ++ci, ++fired, row += p.Cout_g) {
      __m512 weights[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        weights[b] = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(row + b * kQuad));
      }
      for (int q = 0; q < kQuads; ++q) {
        const __mmask16 mask = fired[q * p.Cin_g];
        for (int b = 0; b < kBlocks; ++b) {
          lanes[q][b] = _mm512_mask_add_ps(lanes[q][b], mask, lanes[q][b], weights[b]);
        }
      }
    }
  }
  for (int q = 0; q < kQuads; ++q) {
    for (int s = 0; s < kQuad && q * kQuad + s < samples; ++s) {
      float* const to = sums + (q * kQuad + s) * stride_s;
      for (int b = 0; b < kBlocks; ++b) {
        float in_order[kQuad * kQuad];
        _mm512_storeu_ps(in_order, lanes[q][b]);
        std::memcpy(to + b * kQuad, in_order + s * kQuad, kQuad * sizeof(float));
      }
    }
  }
}

// Blocks of channels whose sums, for up to four quads, and weights the registers hold.
constexpr int64_t kMostQuads = 4;
constexpr int64_t kMostBlocks = 4;

template <int kBlocks>
void add_samples(const UnsharedConvParams& p, const MaskedPosition& position, int64_t channel,
                 int64_t samples, float* sums, int64_t stride_s) {
  for (int64_t s = 0; s < samples; s += kMostQuads * kQuad) {
    const int64_t left = samples - s;
    const auto add = left > 3 * kQuad   ? add_taps<4, kBlocks>
                     : left > 2 * kQuad ? add_taps<3, kBlocks>
                     : left > kQuad     ? add_taps<2, kBlocks>
                                        : add_taps<1, kBlocks>;
    add(p, position, s / kQuad, channel, left, sums + s * stride_s, stride_s);
  }
}

// sums [samples, channels] by stride_s; there are a multiple of four channels.
void add_channels(const UnsharedConvParams& p, const MaskedPosition& position, const Tile& tile,
                  float* sums, int64_t stride_s) {
  int64_t c = 0;
  for (; tile.channels - c >= kMostBlocks * kQuad; c += kMostBlocks * kQuad) {
    add_samples<kMostBlocks>(p, position, c, tile.samples, sums + c, stride_s);
  }
  for (; c < tile.channels; c += kQuad) {
    add_samples<1>(p, position, c, tile.samples, sums + c, stride_s);
  }
}

void unshared_conv_masked_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                               const UnsharedConvTiles& tiles, const uint16_t* masks, int64_t task,
                               float* all_currents) {
  const Task work(p, tiles, task);
  const Tile& tile = work.tile;
  MaskedPosition at(p, tiles, work, masks);
  KeptPositions kept(tiles.kept, work.begin, work.end);
  const int64_t stride_s = tiles.kept * tile.channels;
  for (int64_t position = work.begin; position < work.end; ++position) {
    at.go_to(position);
    float* const currents = all_currents + (position - kept.first) * tile.channels;
    add_channels(p, at, tile, currents, stride_s);
    const bool whole = kept.ends_with(position);
    for (int64_t s = 0; s < tile.samples; ++s) {
      scale_and_bias(p, tile, position, currents + s * stride_s);
      if (neurons == nullptr && whole) {
        write_out(p, tiles.stream, tile, kept, s, all_currents + s * stride_s);
      }
    }
    if (neurons != nullptr) emit_spikes(*neurons, tile, position, all_currents);
    if (whole) kept = kept.next();
  }
  if (tiles.stream) end_stream();
}

}  // namespace
}  // namespace realspike

#endif
