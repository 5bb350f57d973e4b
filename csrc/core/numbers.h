#pragma once

#include <cstdint>
#include <cstring>

// Whole numbers and the bits of floats, for host and device.

#ifdef __CUDACC__
#define REALSPIKE_HOST_DEVICE __host__ __device__
#else
#define REALSPIKE_HOST_DEVICE
#endif

namespace realspike {
namespace {  // every instruction set has its own copy, which the linker must not merge with others

REALSPIKE_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

REALSPIKE_HOST_DEVICE constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The bits of a packed word that belong to the channels [first, end) of its pixel.
REALSPIKE_HOST_DEVICE constexpr uint32_t bits_within(int64_t word, int64_t first, int64_t end) {
  uint32_t mask = ~0u;
  if (word * 32 < first) mask <<= first - word * 32;
  if (word * 32 + 32 > end) mask &= ~0u >> (word * 32 + 32 - end);
  return mask;
}

REALSPIKE_HOST_DEVICE inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

REALSPIKE_HOST_DEVICE inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace
}  // namespace realspike
