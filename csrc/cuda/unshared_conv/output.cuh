#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"

// From finished sums to the output, or to the workspace of a second pass.

namespace realspike {

// Whether a kernel writes four neighbouring channels to 16 aligned bytes.
inline bool writes_vectors(const UnsharedConvParams& p) {
  const bool side_by_side = p.out_stride_c == 1 && p.out_stride_n % 4 == 0 &&
                            p.out_stride_p % 4 == 0 && reinterpret_cast<uintptr_t>(p.out) % 16 == 0;
  return p.G * p.Cout_g % 4 == 0 && (p.workspace != nullptr || side_by_side);
}

// A finished sum as a current without its bias.
template <typename Total>
__device__ float scaled(const UnsharedConvParams& p, int64_t co, Total total) {
  float current = static_cast<float>(total);
  if constexpr (static_cast<Total>(0.5) == 0) {  // int32_t
    if (p.scale != nullptr) current *= __ldg(p.scale + co);
  }
  return current;
}

// A finished sum as an output.
template <typename Total>
__device__ float finished(const UnsharedConvParams& p, int64_t co, int64_t position, Total total) {
  float out = scaled(p, co, total);
  if (p.bias != nullptr) {
    out += __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
  }
  return out;
}

template <typename Total, int VEC>
__device__ void store_totals(Total* to, const Total (&from)[VEC]) {
  if constexpr (VEC == 1) {
    *to = from[0];
  } else {
    static_assert(VEC == 4, "a vector is four weights");
    *reinterpret_cast<Vector4<Total>*>(to) = {from[0], from[1], from[2], from[3]};
  }
}

// Writes a sum to the workspace [splits, N, OH, OW, Cout], where the second pass finds it. Without
// a workspace, finishes the sum and writes the output.
template <typename Total>
__device__ void write_total(const UnsharedConvParams& p, int64_t split, int64_t n, int64_t co,
                            int64_t position, Total total) {
  if (p.workspace != nullptr) {
    const int64_t pixel = (split * p.N + n) * p.OH * p.OW + position;
    static_cast<Total*>(p.workspace)[pixel * p.G * p.Cout_g + co] = total;
    return;
  }
  p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] =
      finished(p, co, position, total);
}

// The same for neighbouring channels; `wide`: they lie side by side, at a multiple of 16 bytes.
template <typename Total, int VEC>
__device__ void write_totals(const UnsharedConvParams& p, bool wide, int64_t split, int64_t n,
                             int64_t co, int64_t position, const Total (&totals)[VEC]) {
  if (VEC == 1 || !wide) {
#pragma unroll
    for (int i = 0; i < VEC; ++i) write_total(p, split, n, co + i, position, totals[i]);
  } else if (p.workspace != nullptr) {
    const int64_t pixel = (split * p.N + n) * p.OH * p.OW + position;
    store_totals(static_cast<Total*>(p.workspace) + pixel * p.G * p.Cout_g + co, totals);
  } else {
    float out[VEC];
#pragma unroll
    for (int i = 0; i < VEC; ++i) out[i] = finished(p, co + i, position, totals[i]);
    store_totals(p.out + n * p.out_stride_n + co + position * p.out_stride_p, out);
  }
}

}  // namespace realspike
