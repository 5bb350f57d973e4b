#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/output.cuh"

namespace realspike {

constexpr int kSecondPassThreads = 256;

struct SecondPassGrid {
  int64_t outputs;
  int splits;
  Divisor positions;
  Divisor channels;
  int64_t blocks;
};

inline SecondPassGrid make_second_pass_grid(const UnsharedConvParams& p, int splits) {
  const int64_t outputs = p.N * p.G * p.Cout_g * p.OH * p.OW;
  return {outputs, splits, make_divisor(p.OH * p.OW), make_divisor(p.G * p.Cout_g),
          ceil_div(outputs, kSecondPassThreads)};
}

// One thread per output: adds what the splits left, in ascending order, and finishes the sum.
template <typename Total>
__global__ void __launch_bounds__(kSecondPassThreads)
    unshared_conv_second_pass_kernel(const UnsharedConvParams p, const SecondPassGrid grid) {
  const Total* const sums = static_cast<const Total*>(p.workspace);
  int64_t i = static_cast<int64_t>(blockIdx.x) * kSecondPassThreads + threadIdx.x;
  for (; i < grid.outputs; i += static_cast<int64_t>(gridDim.x) * kSecondPassThreads) {
    Total total = __ldg(sums + i);
    for (int k = 1; k < grid.splits; ++k) total += __ldg(sums + k * grid.outputs + i);
    int64_t n = i;
    const int64_t co = take_remainder(n, grid.channels);
    const int64_t position = take_remainder(n, grid.positions);
    p.out[n * p.out_stride_n + co * p.out_stride_c + position * p.out_stride_p] =
        finished(p, co, position, total);
  }
}

}  // namespace realspike
