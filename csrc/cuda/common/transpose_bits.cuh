#pragma once

#include <cstdint>

#include "cuda/common/device.cuh"

namespace realspike {

// Lane i gives row i of a matrix of 32 x 32 bits and gets its column i. All lanes of the warp.
//
// For the distances d = 16, 8, ..., 1, lanes i and i + d exchange halves of each group of 2 * d
// bits: lane i gives the upper halves and gets the lower halves of lane i + d.
__device__ inline uint32_t transpose_bits(uint32_t row, int lane) {
  const auto upper = [lane](int distance) { return (lane & distance) != 0; };
  // Whole bytes. A nibble of the selector names a byte: 0 to 3 of this row, 4 to 7 of the other's.
  row = __byte_perm(row, __shfl_xor_sync(~0u, row, 16), upper(16) ? 0x3276u : 0x5410u);
  row = __byte_perm(row, __shfl_xor_sync(~0u, row, 8), upper(8) ? 0x3715u : 0x6240u);
  uint32_t low = 0x0f0f0f0fu;
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, row, distance);
    const uint32_t kept = upper(distance) ? ~low : low;
    const unsigned left = upper(distance) ? 32 - distance : distance;
    row = (row & kept) | (__funnelshift_l(other, other, left) & ~kept);
    low ^= low << (distance / 2);
  }
  return row;
}

}  // namespace realspike
