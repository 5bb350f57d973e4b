#pragma once

#include <cstring>

// Vectors whose width is the same on every instruction set: sums over their lanes have one order.

namespace realspike {
namespace {

template <class T, int kBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};

template <class V>
inline V load_vector(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store_vector(void* to, const V& v) {
  std::memcpy(to, &v, sizeof v);
}

// 16 floats: one register with AVX-512, two with AVX2, four with SSE or NEON.
using Floats = VectorOf<float, 64>::Type;
constexpr int kFloats = 16;

}  // namespace
}  // namespace realspike
