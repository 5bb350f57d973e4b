#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/pack_spikes.h"

namespace realspike {
namespace {

// Pixels whose words are built together.
constexpr int64_t kPixels = 256;

// A value is read as a spike if it is not zero. A spike other than 1 is strange: an error.
template <class Bits>
struct Binary {
  Bits one;
  Bits magnitude;  // every bit but the sign

  bool fired(Bits value) const { return (value & magnitude) != 0; }
  bool strange(Bits value) const { return fired(value) && value != one; }
};

// One word of up to 32 channels for each of `pixels` pixels; returns whether all were 0 or 1.
// The inner loop follows the dimension that is contiguous in memory.
template <class Bits, class Spike>
bool pack_along_pixels(Spike spike, const Bits* spikes, int64_t channels, int64_t pixels,
                       int64_t stride_c, uint32_t* __restrict word) {
  uint32_t strange = 0;
  for (int64_t i = 0; i < pixels; ++i) word[i] = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const Bits* row = spikes + c * stride_c;
    for (int64_t i = 0; i < pixels; ++i) {
      word[i] |= (spike.fired(row[i]) ? 1u : 0u) << c;
      strange |= spike.strange(row[i]) ? 1u : 0u;
    }
  }
  return strange == 0;
}

template <class Bits, class Spike>
bool pack_along_channels(Spike spike, const Bits* spikes, int64_t channels, int64_t pixels,
                         int64_t stride_c, int64_t stride_p, uint32_t* __restrict word) {
  uint32_t strange = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const Bits* row = spikes + i * stride_p;
    uint32_t bits = 0;
    for (int64_t c = 0; c < channels; ++c) {
      bits |= (spike.fired(row[c * stride_c]) ? 1u : 0u) << c;
      strange |= spike.strange(row[c * stride_c]) ? 1u : 0u;
    }
    word[i] = bits;
  }
  return strange == 0;
}

template <class Bits, class Spike>
bool pack_word(Spike spike, const Bits* spikes, int64_t channels, int64_t pixels, int64_t stride_c,
               int64_t stride_p, uint32_t* __restrict word) {
  if (stride_p == 1) return pack_along_pixels(spike, spikes, channels, pixels, stride_c, word);
  if (stride_c == 1 && channels == 32) {
    // Constants, so that the loop over the channels is unrolled into vectors.
    return pack_along_channels(spike, spikes, int64_t{32}, pixels, int64_t{1}, stride_p, word);
  }
  return pack_along_channels(spike, spikes, channels, pixels, stride_c, stride_p, word);
}

template <class Bits>
void pack_elements(const PackSpikesParams& p, int64_t n, int64_t begin, int64_t end) {
  const Binary<Bits> binary{static_cast<Bits>(p.one), static_cast<Bits>(~p.sign)};
  const Bits* sample = static_cast<const Bits*>(p.spikes) + n * p.stride_n;
  bool all_binary = true;
  uint32_t word[kPixels];
  for (int64_t pixel = begin; pixel < end; pixel += kPixels) {
    const int64_t pixels = least(end - pixel, kPixels);
    for (int64_t w = 0; w < p.words; ++w) {
      const int64_t channels = least(p.C - 32 * w, 32);
      const Bits* first = sample + 32 * w * p.stride_c + pixel * p.stride_p;
      all_binary &= pack_word(binary, first, channels, pixels, p.stride_c, p.stride_p, word);
      uint32_t* packed = p.packed + (n * p.P + pixel) * p.words + w;
      for (int64_t i = 0; i < pixels; ++i) packed[i * p.words] = word[i];
    }
  }
  // Every thread that stores here stores the same value.
  if (!all_binary && p.not_binary != nullptr) __atomic_store_n(p.not_binary, 1, __ATOMIC_RELAXED);
}

inline void pack_range(const PackSpikesParams& p, int64_t n, int64_t begin, int64_t end) {
  switch (p.element_size) {
    case 1:
      return pack_elements<uint8_t>(p, n, begin, end);
    case 2:
      return pack_elements<uint16_t>(p, n, begin, end);
    case 4:
      return pack_elements<uint32_t>(p, n, begin, end);
    default:
      return pack_elements<uint64_t>(p, n, begin, end);
  }
}

inline void unpack_range(const UnpackSpikesParams& p, int64_t n, int64_t begin, int64_t end) {
  for (int64_t c = 0; c < p.C; ++c) {
    float* row = p.spikes + n * p.stride_n + c * p.stride_c;
    const uint32_t* packed = p.packed + n * p.P * p.words + c / 32;
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      row[pixel * p.stride_p] = (packed[pixel * p.words] >> (c % 32)) & 1u ? 1.0f : 0.0f;
    }
  }
}

}  // namespace
}  // namespace realspike
