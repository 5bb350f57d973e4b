#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/device.cuh"

#ifndef REALSPIKE_SIMT
#include <cuda_fp16.h>
#endif

// What a row of weights is: for each storage type, VEC neighbouring weights as they lie in memory,
// and the sums of S_TILE samples to which they are added. This is all that the kernels know about
// the type of the weights.

namespace realspike {

struct Float16Weight {
  uint16_t bits;
};
struct BFloat16Weight {
  uint16_t bits;
};
// An int8 weight plus 128.
struct Int8Weight {
  uint8_t bits;
};

__device__ inline float float_of(float weight) { return weight; }

__device__ inline float float_of(Float16Weight weight) {
#ifdef REALSPIKE_SIMT
  _Float16 half;
  std::memcpy(&half, &weight, sizeof half);
  return static_cast<float>(half);
#else
  return __half2float(__ushort_as_half(weight.bits));
#endif
}

// __byte_perm, because a shift by 16 may become a product with 65536.
__device__ inline float low_bfloat16(uint32_t pair) {
  return __uint_as_float(__byte_perm(pair, 0, 0x1044));
}
__device__ inline float high_bfloat16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ inline float float_of(BFloat16Weight weight) { return low_bfloat16(weight.bits); }

__device__ inline uint4 load_vector(const void* row) {
  return __ldg(reinterpret_cast<const uint4*>(row));
}

template <typename Weight, int VEC>
struct WeightVector;

template <>
struct WeightVector<float, 4> {
  uint4 words;
  __device__ void set(const uint4& row) { words = row; }
  __device__ void load(const float* row) { set(load_vector(row)); }
  __device__ void add_to(float (&sum)[4]) const {
    sum[0] += __uint_as_float(words.x);
    sum[1] += __uint_as_float(words.y);
    sum[2] += __uint_as_float(words.z);
    sum[3] += __uint_as_float(words.w);
  }
};

template <>
struct WeightVector<BFloat16Weight, 8> {
  uint4 pairs;
  __device__ void set(const uint4& row) { pairs = row; }
  __device__ void load(const BFloat16Weight* row) { set(load_vector(row)); }
  __device__ void add_to(float (&sum)[8]) const {
    const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += low_bfloat16(words[i]);
      sum[2 * i + 1] += high_bfloat16(words[i]);
    }
  }
};

template <>
struct WeightVector<Float16Weight, 8> {
  uint4 pairs;
  __device__ void set(const uint4& row) { pairs = row; }
  __device__ void load(const Float16Weight* row) { set(load_vector(row)); }
  __device__ void add_to(float (&sum)[8]) const {
    const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] += float_of(Float16Weight{static_cast<uint16_t>(words[i])});
      sum[2 * i + 1] += float_of(Float16Weight{static_cast<uint16_t>(words[i] >> 16)});
    }
  }
};

template <>
struct WeightVector<Int8Weight, 16> {
  uint4 words;
  __device__ void set(const uint4& row) { words = row; }
  __device__ void load(const Int8Weight* row) { set(load_vector(row)); }
  // Sums of even and of odd bytes, in 16-bit lanes.
  __device__ void add_to(uint32_t (&sum)[8]) const {
    const uint32_t quads[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[2 * i] = __vadd2(sum[2 * i], quads[i] & 0x00ff00ffu);
      sum[2 * i + 1] = __vadd2(sum[2 * i + 1], __byte_perm(quads[i], 0, 0x4341));
    }
  }
};

// One weight at a time, for rows that do not start at multiples of 16 bytes.
template <typename Weight>
struct WeightVector<Weight, 1> {
  Weight weight;
  __device__ void load(const Weight* row) { weight = *row; }
  __device__ void add_to(float (&sum)[1]) const { sum[0] += float_of(weight); }
};

template <>
struct WeightVector<Int8Weight, 1> {
  int32_t weight;
  __device__ void load(const Int8Weight* row) { weight = static_cast<int8_t>(row->bits ^ 0x80); }
  __device__ void add_to(uint32_t (&sum)[1]) const { sum[0] += static_cast<uint32_t>(weight); }
};

// The sums of VEC neighbouring channels for S_TILE samples, in registers. Total is what they become
// in memory, float or, for int8, int32_t.
template <typename Weight, int VEC, int S_TILE>
struct Sums {
  using Total = float;
  // A float never needs to be emptied.
  static constexpr int kMostRows = 0;
  float sum[S_TILE][VEC] = {};

  __device__ void add(int s, const WeightVector<Weight, VEC>& row) { row.add_to(sum[s]); }
  __device__ void count(int, uint32_t) {}
  __device__ void total(int s, float (&totals)[VEC]) const {
#pragma unroll
    for (int i = 0; i < VEC; ++i) totals[i] = sum[s][i];
  }
};

template <int VEC, int S_TILE>
struct Sums<Int8Weight, VEC, S_TILE> {
  using Total = int32_t;
  // 16-bit lanes hold this many bytes; a multiple of the 32 rows of a word.
  static constexpr int kMostRows = 256;
  static constexpr int kWords = VEC == 1 ? 1 : VEC / 2;
  uint32_t sum[S_TILE][kWords] = {};
  int rows[S_TILE] = {};

  __device__ void add(int s, const WeightVector<Int8Weight, VEC>& row) { row.add_to(sum[s]); }
  __device__ void count(int s, uint32_t fired) { rows[s] += __popc(fired); }
  // Less the 128 that every byte is too large.
  __device__ void total(int s, int32_t (&totals)[VEC]) const {
    if constexpr (VEC == 1) {
      totals[0] = static_cast<int32_t>(sum[s][0]);
      return;
    }
    // 128 * rows, without what may become a product.
    const uint32_t rows_256 = __byte_perm(static_cast<uint32_t>(rows[s]), 0, 0x2104);
    const int32_t offset = -static_cast<int32_t>(rows_256 >> 1);
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const uint32_t word = sum[s][(i / 4 * 2 + i % 2) % kWords];
      totals[i] = static_cast<int32_t>(i % 4 < 2 ? word & 0xffffu : word >> 16) + offset;
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) sum[s][i] = 0;
      rows[s] = 0;
    }
  }
};

}  // namespace realspike
