#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/masked_taps.h"
#include "cpu/unshared_conv/task.h"

#if defined(__AVX512F__)
#include <immintrin.h>

// float32 rows. A register holds the sums of four samples x four channels, and its mask the lanes
// of the samples that fired the row.

namespace realspike {
namespace {

using FloatPosition = MaskedPosition<uint16_t, float>;

// The lanes of the first sample of a quad: its channels lie side by side.
constexpr uint32_t kLanesOfSample = (1 << kQuad) - 1;

// masks [quads, Cin_g] of a group at one pixel: the lanes of the samples of a quad that fired.
void mask_group(const UnsharedConvParams& p, const uint32_t* const* samples, int64_t count,
                int64_t pixel, int64_t group, uint16_t* masks) {
  for (int64_t first = 0; first < count; first += kQuad) {
    for (int64_t c = 0; c < p.Cin_g; c += 32) {
      __m512i lanes = _mm512_setzero_si512();
      for (int s = 0; s < kQuad && first + s < count; ++s) {
        const uint32_t* words = samples[first + s] + pixel * p.words;
        const uint32_t fired = bits_at(words, p.words, group * p.Cin_g + c);
        const auto of_sample = static_cast<int16_t>(kLanesOfSample << (s * kQuad));
        lanes = _mm512_or_si512(lanes, _mm512_maskz_set1_epi16(fired, of_sample));
      }
      const int64_t some = least(p.Cin_g - c, 32);
      _mm512_mask_storeu_epi16(masks, ~0u >> (32 - some), lanes);
      masks += some;
    }
  }
}

// Sums kBlocks * 4 channels from `channel` on, in ascending (kh, kw, ci), for kQuads * 4 samples
// from quad `quad` on; `samples` of these exist. sums [samples, by stride_s].
template <int kQuads, int kBlocks>
void add_taps(const UnsharedConvParams& p, const FloatPosition& position, int64_t quad,
              int64_t channel, int64_t samples, float* sums, int64_t stride_s) {
  __m512 lanes[kQuads][kBlocks];
  for (auto& of_quad : lanes) {
    for (__m512& block : of_quad) block = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < position.count; ++k) {
    const uint16_t* fired = position.taps[k].fired + quad * p.Cin_g;
    const float* row = position.taps[k].rows + channel;
    for (int64_t ci = 0; ci < p.Cin_g; ++ci, ++fired, row += p.Cout_g) {
      __builtin_prefetch(row + kAhead);
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
void add_samples(const UnsharedConvParams& p, const FloatPosition& position, int64_t channel,
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
void add_channels(const UnsharedConvParams& p, const FloatPosition& position, const Tile& tile,
                  float* sums, int64_t stride_s) {
  int64_t c = 0;
  for (; tile.channels - c >= kMostBlocks * kQuad; c += kMostBlocks * kQuad) {
    add_samples<kMostBlocks>(p, position, c, tile.samples, sums + c, stride_s);
  }
  for (; c < tile.channels; c += kQuad) {
    add_samples<1>(p, position, c, tile.samples, sums + c, stride_s);
  }
}

}  // namespace
}  // namespace realspike

#endif
