#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/tiles.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// The bits of the map, decoded into lists and united over samples.

namespace realspike {
namespace {

// Appends the numbers of the set bits, counted from `number`, and returns the end of the list.
// Whole vectors are written; the next bits overwrite what lies beyond that end.
inline uint8_t* append_bits(uint32_t bits, int64_t number, uint8_t* list) {
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int half = 0; half < 2; ++half) {
    const auto mask = static_cast<__mmask16>(bits >> (16 * half));
    const __m512i numbers =
        _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(number) + 16 * half));
    const __m512i set = _mm512_maskz_compress_epi32(mask, numbers);
    const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, set);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(list), bytes);
    list += __builtin_popcount(mask);
  }
#else
  for (; bits != 0; bits &= bits - 1) {
    *list++ = static_cast<uint8_t>(number + __builtin_ctz(bits));
  }
#endif
  return list;
}

// Pixels [begin, end) of a tile's samples: every set bit becomes one byte of its list, from
// spikes[at] on.
void decode_pixels(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const PixelRun& run,
                   const SpikeLists& to) {
  const int64_t stride_n = p.H * p.W * p.words;
  int64_t at = run.at;
  for (int64_t pixel = run.begin; pixel < run.end; ++pixel) {
    const uint32_t* words = p.spikes + pixel * p.words;
    for (int64_t g = 0; g < p.G; ++g) {
      for (int64_t block = 0; block < tiles.blocks; ++block) {
        const int64_t i = list_number(p, tiles, run.sample_tile, pixel, g, block);
        const ChannelBlock channels(p, g, block);
        uint16_t* starts = to.starts + i * (tiles.samples + 1);
        uint8_t* const begin = to.spikes + at;
        uint8_t* list = begin;
        *starts = 0;
        for_each_sample(p, tiles, run, [&](int64_t s, int64_t n) {
          const uint32_t* from = words + n * stride_n;
          for (int64_t word = channels.first / 32; word * 32 < channels.end; ++word) {
            const uint32_t bits = from[word] & bits_within(word, channels.first, channels.end);
            list = append_bits(bits, word * 32 - channels.first, list);
          }
          starts[s + 1] = static_cast<uint16_t>(list - begin);
        });
        to.first[i] = at;
        at += list - begin;
      }
    }
    if (to.fired == nullptr) continue;
    uint32_t* fired = to.fired + (run.sample_tile * p.H * p.W + pixel) * p.words;
    for (int64_t word = 0; word < p.words; ++word) {
      uint32_t any = 0;
      for_each_sample(p, tiles, run,
                      [&](int64_t, int64_t n) { any |= words[n * stride_n + word]; });
      fired[word] = any;
    }
  }
}

// The set bits of a run, spare bits beyond the last channel included.
int64_t count_spikes(const UnsharedConvParams& p, const UnsharedConvTiles& tiles,
                     const PixelRun& run) {
  int64_t count = 0;
  for_each_sample(p, tiles, run, [&](int64_t, int64_t n) {
    const uint32_t* words = p.spikes + n * p.H * p.W * p.words;
    for (int64_t i = run.begin * p.words; i < run.end * p.words; ++i) {
      count += __builtin_popcount(words[i]);
    }
  });
  return count;
}

}  // namespace
}  // namespace realspike
