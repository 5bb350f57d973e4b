#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/numbers.h"

// Storage types and their conversion to float and back (round to nearest even). Branch-free, so
// that loops over them vectorise on every instruction set without intrinsics.

namespace realspike {
namespace {

// Masks, because a chain of conditions is turned into branches.
inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// Each names a plain integer or float type for storage: a struct would not vectorise. with_sign
// flips the sign where `sign` is float's sign bit.
struct Float32 {
  using Storage = float;
  static float widen(float x) { return x; }
  static float round(float x) { return x; }
  static float with_sign(float x, uint32_t sign) { return bits_float(float_bits(x) ^ sign); }
};

struct BFloat16 {
  using Storage = uint16_t;

  static float widen(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }

  static uint16_t round(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<uint16_t>(nan ? 0x7fc0u : rounded);
  }

  static uint16_t with_sign(uint16_t x, uint32_t sign) {
    return static_cast<uint16_t>(x ^ (sign >> 16));
  }
};

struct Float16 {
  using Storage = uint16_t;

  // Shifted into float's fields the exponent is 112 too small; a product with a power of two
  // corrects it exactly, subnormals included. Infinity and NaN need float's all-ones exponent.
  static float widen(uint16_t x) {
    const uint32_t magnitude = x & 0x7fffu;
    const uint32_t finite = float_bits(bits_float(magnitude << 13) * 0x1p112f);
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    return bits_float(finite | special | (static_cast<uint32_t>(x & 0x8000u) << 16));
  }

  static uint16_t round(float x) {
    const uint32_t bits = float_bits(x);
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // The sum with 0.5 rounds at 2^-24, the spacing of half's subnormals.
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = select(magnitude < 0x38800000u, subnormal, normal);
    half = select(magnitude >= 0x47800000u, 0x7c00u, half);
    half = select(magnitude > 0x7f800000u, 0x7e00u, half);
    return static_cast<uint16_t>(half | ((bits >> 16) & 0x8000u));
  }

  static uint16_t with_sign(uint16_t x, uint32_t sign) {
    return static_cast<uint16_t>(x ^ (sign >> 16));
  }
};

// Calls f with a value of the element type.
template <class F>
inline void with_element(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat16:
      return f(Float16{});
    case DType::kBFloat16:
      return f(BFloat16{});
    default:
      return f(Float32{});
  }
}

}  // namespace
}  // namespace realspike
