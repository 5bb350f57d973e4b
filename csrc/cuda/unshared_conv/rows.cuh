#pragma once

#include <cstdint>
#include <cstring>

#include "core/dtype.h"
#include "cuda/common/device.cuh"

#ifndef REALSPIKE_SIMT
#include <cuda_fp16.h>
#endif

// The types of weights. For each there are VEC neighbouring weights as they lie in memory, and the
// sums of S_TILE samples to which they are added. Nothing else in the kernels depends on the type.

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

// Calls f with a value of the type that stores a weight, and returns what f returns.
template <typename F>
auto with_weight(DType weight_dtype, const F& f) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(Float16Weight{});
    case DType::kBFloat16:
      return f(BFloat16Weight{});
    default:
      return f(Int8Weight{});
  }
}

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

// Loads four weights. KEEP: through the L1 cache, because other samples of the block are likely to
// need them too. Otherwise they leave that cache to the spikes.
#ifdef REALSPIKE_SIMT
template <bool KEEP>
__device__ void load_words(const void* row, uint4& words) {
  words = __ldg(static_cast<const uint4*>(row));
}
template <bool KEEP>
__device__ void load_words(const void* row, uint2& words) {
  words = __ldg(static_cast<const uint2*>(row));
}
template <bool KEEP>
__device__ void load_words(const void* row, uint32_t& words) {
  words = __ldg(static_cast<const uint32_t*>(row));
}
#else
// Volatile: the loads are issued in the order in which they stand, all of them before an addition.
#define REALSPIKE_LOAD(form, ...)                                                \
  if constexpr (KEEP) {                                                          \
    asm volatile("ld.global.nc." form : __VA_ARGS__ : "l"(row));                 \
  } else {                                                                       \
    asm volatile("ld.global.nc.L1::no_allocate." form : __VA_ARGS__ : "l"(row)); \
  }

template <bool KEEP>
__device__ void load_words(const void* row, uint4& words) {
  REALSPIKE_LOAD("v4.u32 {%0, %1, %2, %3}, [%4];", "=r"(words.x), "=r"(words.y), "=r"(words.z),
                 "=r"(words.w))
}
template <bool KEEP>
__device__ void load_words(const void* row, uint2& words) {
  REALSPIKE_LOAD("v2.u32 {%0, %1}, [%2];", "=r"(words.x), "=r"(words.y))
}
template <bool KEEP>
__device__ void load_words(const void* row, uint32_t& words) {
  REALSPIKE_LOAD("u32 %0, [%1];", "=r"(words))
}
#undef REALSPIKE_LOAD
#endif

// Keeps a value that is used several times from being computed each time.
template <typename T>
__device__ void compute_once([[maybe_unused]] T& value) {
#ifndef REALSPIKE_SIMT
  if constexpr (sizeof(T) == 4) {
    asm volatile("" : "+r"(value));
  } else {
    asm volatile("" : "+l"(value));
  }
#endif
}

// VEC weights as they lie in memory; prepared() returns them as they are added. Four weights become
// four floats, or of int8 two words of 16-bit lanes: weights 0 and 2, then weights 1 and 3.
template <typename Weight, int VEC>
struct WeightVector;

template <>
struct WeightVector<float, 4> {
  uint4 words;
  template <bool KEEP>
  __device__ void load(const float* row) {
    load_words<KEEP>(row, words);
  }
  __device__ uint4 prepared() const { return words; }
};

template <>
struct WeightVector<BFloat16Weight, 4> {
  uint2 pairs;
  template <bool KEEP>
  __device__ void load(const BFloat16Weight* row) {
    load_words<KEEP>(row, pairs);
  }
  __device__ uint4 prepared() const {
    uint4 four = {__float_as_uint(low_bfloat16(pairs.x)), __float_as_uint(high_bfloat16(pairs.x)),
                  __float_as_uint(low_bfloat16(pairs.y)), __float_as_uint(high_bfloat16(pairs.y))};
    compute_once(four.x);
    compute_once(four.y);
    compute_once(four.z);
    compute_once(four.w);
    return four;
  }
};

template <>
struct WeightVector<Float16Weight, 4> {
  uint2 pairs;
  template <bool KEEP>
  __device__ void load(const Float16Weight* row) {
    load_words<KEEP>(row, pairs);
  }
  __device__ uint4 prepared() const {
    const auto bits = [](uint32_t half) {
      uint32_t word = __float_as_uint(float_of(Float16Weight{static_cast<uint16_t>(half)}));
      compute_once(word);
      return word;
    };
    return {bits(pairs.x), bits(pairs.x >> 16), bits(pairs.y), bits(pairs.y >> 16)};
  }
};

template <>
struct WeightVector<Int8Weight, 4> {
  uint32_t word;
  template <bool KEEP>
  __device__ void load(const Int8Weight* row) {
    load_words<KEEP>(row, word);
  }
  __device__ uint2 prepared() const {
    uint2 lanes = {word & 0x00ff00ffu, __byte_perm(word, 0, 0x4341)};
    compute_once(lanes.x);
    compute_once(lanes.y);
    return lanes;
  }
};

// One weight at a time, for rows that do not start at multiples of four weights.
template <typename Weight>
struct WeightVector<Weight, 1> {
  Weight weight;
  template <bool KEEP>
  __device__ void load(const Weight* row) {
    if constexpr (sizeof(Weight) == sizeof(float)) {
      weight = __ldg(row);
    } else {
      weight.bits = __ldg(&row->bits);
    }
  }
  __device__ float prepared() const { return float_of(weight); }
};

template <>
struct WeightVector<Int8Weight, 1> {
  uint32_t weight;
  template <bool KEEP>
  __device__ void load(const Int8Weight* row) {
    weight = __ldg(&row->bits);
  }
  __device__ uint32_t prepared() const { return weight; }
};

// The sums of VEC neighbouring channels for S_TILE samples, in registers. Total is the type of a
// sum in memory: float, or int32_t for int8 weights.
template <typename Weight, int VEC, int S_TILE>
struct Sums {
  using Total = float;
  using Prepared = decltype(WeightVector<Weight, VEC>{}.prepared());
  // A float never needs to be emptied.
  static constexpr int kMostRows = 0;
  float sum[S_TILE][VEC] = {};

  __device__ void add(int s, const Prepared& row) {
    if constexpr (VEC == 1) {
      sum[s][0] += row;
    } else {
      sum[s][0] += __uint_as_float(row.x);
      sum[s][1] += __uint_as_float(row.y);
      sum[s][2] += __uint_as_float(row.z);
      sum[s][3] += __uint_as_float(row.w);
    }
  }
  __device__ void empty() {}
  __device__ void total(int s, float (&totals)[VEC]) const {
#pragma unroll
    for (int i = 0; i < VEC; ++i) totals[i] = sum[s][i];
  }
};

// Each 32-bit word holds two 16-bit sums: channels 0 and 2 in the first word, 1 and 3 in the
// second. 256 rows of bytes cannot overflow 16 bits, so every kMostRows rows the sums move to
// 32-bit totals.
template <int VEC, int S_TILE>
struct Sums<Int8Weight, VEC, S_TILE> {
  using Total = int32_t;
  using Prepared = decltype(WeightVector<Int8Weight, VEC>{}.prepared());
  static constexpr int kMostRows = 256;
  static constexpr int kWords = VEC == 1 ? 1 : VEC / 2;
  uint32_t sum[S_TILE][kWords] = {};
  int32_t emptied[S_TILE][VEC] = {};

  __device__ void add(int s, const Prepared& row) {
    if constexpr (VEC == 1) {
      sum[s][0] = __vadd2(sum[s][0], row);
    } else {
      sum[s][0] = __vadd2(sum[s][0], row.x);
      sum[s][1] = __vadd2(sum[s][1], row.y);
    }
  }
  __device__ void empty() {
#pragma unroll
    for (int s = 0; s < S_TILE; ++s) {
      total(s, emptied[s]);
#pragma unroll
      for (int i = 0; i < kWords; ++i) sum[s][i] = 0;
    }
  }
  __device__ void total(int s, int32_t (&totals)[VEC]) const {
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
      const uint32_t lanes = sum[s][i % kWords];
      totals[i] = emptied[s][i] + static_cast<int32_t>(i < kWords ? lanes & 0xffffu : lanes >> 16);
    }
  }
};

// How much too large the sum of `rows` bytes is: 128 for each. rows << 7 might become a product in
// the machine code; this moves bytes and shifts to the right.
__device__ inline int32_t excess_of_bytes(int rows) {
  const uint32_t rows_256 = __byte_perm(static_cast<uint32_t>(rows), 0, 0x2104);
  return static_cast<int32_t>(rows_256 >> 1);
}

}  // namespace realspike
