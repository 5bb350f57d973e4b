#pragma once

#include <cstdint>

#ifdef REALSPIKE_SIMT
#include "simt_cpu.h"
#else
#include <cuda_runtime.h>
#endif

namespace realspike {

// The dynamic shared memory of the block, aligned to 16 bytes.
template <typename T>
__device__ T* dynamic_shared() {
#ifdef REALSPIKE_SIMT
  return static_cast<T*>(simt::dynamic_shared());
#else
  extern __shared__ float4 dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

// Four numbers, read and written at once as 16 bytes.
template <typename T>
struct alignas(16) Vector4 {
  T x, y, z, w;
};

// base + a * b bytes, in one instruction.
__device__ inline const char* plus_product(const char* base, uint32_t a, uint32_t b) {
#ifdef REALSPIKE_SIMT
  return base + static_cast<uint64_t>(a) * b;
#else
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return base + product;
#endif
}

// Splits a flat index without a division: n / divisor for 0 <= n < 2^63 is a high product, an
// addition and a shift (Granlund and Montgomery, "Division by invariant integers using
// multiplication", 1994).
struct Divisor {
  int64_t divisor;
  uint64_t multiplier;
  int shift;
};

inline Divisor make_divisor(int64_t divisor) {
  const uint64_t d = static_cast<uint64_t>(divisor);
  int shift = 0;
  while ((uint64_t{1} << shift) < d) ++shift;
  const unsigned __int128 numerator = static_cast<unsigned __int128>((uint64_t{1} << shift) - d)
                                      << 64;
  return {divisor, static_cast<uint64_t>(numerator / d) + 1, shift};
}

// Returns n % divisor and leaves n / divisor in n.
__device__ inline int64_t take_remainder(int64_t& n, const Divisor& by) {
  const uint64_t high = __umul64hi(static_cast<uint64_t>(n), by.multiplier);
  const int64_t quotient = static_cast<int64_t>((high + static_cast<uint64_t>(n)) >> by.shift);
  const int64_t remainder = n - quotient * by.divisor;
  n = quotient;
  return remainder;
}

}  // namespace realspike
