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

// int8 rows of 16 channels. A register holds four rows, one behind the other, of a single sample. A
// 16-bit lane holds two neighbouring channels, so that a row is eight lanes, and its mask a byte.

namespace realspike {
namespace {

using BytePosition = MaskedPosition<uint8_t, uint8_t>;

// masks [samples, Cin_g] of a group at one pixel: all lanes of the rows that the sample fired.
void mask_group(const UnsharedConvParams& p, const uint32_t* const* samples, int64_t count,
                int64_t pixel, int64_t group, uint8_t* masks) {
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t c = 0; c < p.Cin_g; c += 32) {
      const uint32_t* words = samples[s] + pixel * p.words;
      const uint32_t fired = bits_at(words, p.words, group * p.Cin_g + c);
      const int64_t some = least(p.Cin_g - c, 32);
      _mm256_mask_storeu_epi8(masks, ~0u >> (32 - some), _mm256_maskz_set1_epi8(fired, -1));
      masks += some;
    }
  }
}

// The sums over the four rows of a register, [8].
inline __m128i over_rows(const __m512i& lanes) {
  const __m128i first = _mm512_maskz_extracti32x4_epi32(0xf, lanes, 0);
  const __m128i second = _mm512_maskz_extracti32x4_epi32(0xf, lanes, 1);
  const __m128i third = _mm512_maskz_extracti32x4_epi32(0xf, lanes, 2);
  const __m128i fourth = _mm512_maskz_extracti32x4_epi32(0xf, lanes, 3);
  return _mm_add_epi16(_mm_add_epi16(first, second), _mm_add_epi16(third, fourth));
}

inline void store_floats(float* to, const __m128i& lanes) {
  _mm256_storeu_ps(to, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(lanes)));
}

// Sums 16 channels for kSamples samples from `first` on. sums [samples, by stride_s]. 16 bits hold
// the sum of as many rows as kFewWeights has.
template <int kSamples>
void add_taps(const UnsharedConvParams& p, const BytePosition& position, int64_t first, float* sums,
              int64_t stride_s) {
  static_assert(kFewWeights / kByteChannels * 128 < 1 << 15);
  __m512i even[kSamples], odd[kSamples];
  for (int s = 0; s < kSamples; ++s) even[s] = odd[s] = _mm512_setzero_si512();
  for (int64_t k = 0; k < position.count; ++k) {
    const uint8_t* fired = position.taps[k].fired + first * p.Cin_g;
    const uint8_t* rows = position.taps[k].rows;
    for (int64_t ci = 0; ci < p.Cin_g; ci += kByteRows) {
      __builtin_prefetch(rows + ci * kByteChannels + kAhead);
      // A byte is 128 too large; with its highest bit flipped it is the weight.
      const __m512i weights =
          _mm512_xor_si512(_mm512_loadu_si512(rows + ci * kByteChannels), _mm512_set1_epi8(-128));
      const __m512i of_odd = _mm512_srai_epi16(weights, 8);
      const __m512i of_even = _mm512_srai_epi16(_mm512_slli_epi16(weights, 8), 8);
      for (int s = 0; s < kSamples; ++s) {
        __mmask32 mask;
        std::memcpy(&mask, fired + s * p.Cin_g + ci, sizeof mask);
        even[s] = _mm512_mask_add_epi16(even[s], mask, even[s], of_even);
        odd[s] = _mm512_mask_add_epi16(odd[s], mask, odd[s], of_odd);
      }
    }
  }
  for (int s = 0; s < kSamples; ++s) {
    const __m128i evens = over_rows(even[s]), odds = over_rows(odd[s]);
    store_floats(sums + s * stride_s, _mm_unpacklo_epi16(evens, odds));
    store_floats(sums + s * stride_s + 8, _mm_unpackhi_epi16(evens, odds));
  }
}

// sums [samples, 16] by stride_s.
void add_channels(const UnsharedConvParams& p, const BytePosition& position, const Tile& tile,
                  float* sums, int64_t stride_s) {
  for (int64_t s = 0; s < tile.samples;) {
    const auto some = [&](auto add, int64_t count) {
      for (; tile.samples - s >= count; s += count) {
        add(p, position, s, sums + s * stride_s, stride_s);
      }
    };
    some(add_taps<8>, 8);
    some(add_taps<4>, 4);
    some(add_taps<2>, 2);
    some(add_taps<1>, 1);
  }
}

}  // namespace
}  // namespace realspike

#endif
