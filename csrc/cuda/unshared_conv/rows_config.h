#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/unshared_conv.h"

// Host functions that the kernels for rows of weights share.

namespace realspike {

// Neighbouring output channels of a thread.
constexpr int kUnsharedConvVec = 4;

constexpr int kUnsharedConvMaxThreads = 256;

// Whether an int numbers the rows of a receptive field and the spike words of a sample.
inline bool field_fits(const UnsharedConvParams& p) {
  return p.KH * p.KW * p.Cin_g <= INT32_MAX && p.H * p.W * p.words <= INT32_MAX;
}

// Whether every row of `rows` starts at a multiple of `weights` weights of `bytes` bytes.
inline bool rows_are_aligned(const UnsharedConvParams& p, const void* rows, int weights,
                             int bytes) {
  return p.Cout_g % weights == 0 && p.weight_stride_p % weights == 0 &&
         reinterpret_cast<uintptr_t>(rows) % (weights * bytes) == 0;
}

// The neighbouring weights that a thread reads at once: kUnsharedConvVec, or 1.
inline int vec_of_rows(const UnsharedConvParams& p) {
  const int bytes = bytes_of(p.weight_dtype);
  return rows_are_aligned(p, p.weight, kUnsharedConvVec, bytes) ? kUnsharedConvVec : 1;
}

// The threads that sum the channels of one row. A narrow row takes few, so that no lane is idle and
// a warp works on several rows at once.
inline int lanes_of_a_row(const UnsharedConvParams& p, int vec) {
  int lanes = 1;
  while (lanes < 32 && int64_t{lanes} * vec < p.Cout_g) lanes *= 2;
  return lanes;
}

// Blocks that keep a large device busy, and how many may share a receptive field to come near it.
constexpr int64_t kWantedBlocks = 512;
constexpr int64_t kMostSplits = 16;

// Sums [splits, N, OH, OW, Cout], float or int32_t, that wait for a second pass or for neurons.
inline int64_t workspace_bytes(const UnsharedConvParams& p, int splits) {
  return splits * p.N * p.G * p.Cout_g * p.OH * p.OW * int64_t{sizeof(float)};
}

inline int log2_of(int number) {
  int log2 = 0;
  while ((2 << log2) <= number) ++log2;
  return log2;
}

}  // namespace realspike
