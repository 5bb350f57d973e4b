#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "cpu/common/element.h"
#include "cpu/common/vector.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

// For each storage type of a weight: the sums of neighbouring output channels, which stay in
// registers while rows are added to them. In memory the sums lie in the order in which the
// registers hold the channels; unpack() brings finished sums into the order of the channels.

namespace realspike {
namespace {

// float32, and float16 that is widened: channels in order.
template <class Row, int kChannels>
class FloatSums {
 public:
  void load(const float* sums, bool zero) {
    for (int i = 0; i < kVecs; ++i) {
      sums_[i] = zero ? Floats{} : load_vector<Floats>(sums + i * kFloats);
    }
  }
  int64_t make_room(int64_t rows, float*) { return rows; }
  void add(const typename Row::Weight* row) {
    for (int i = 0; i < kVecs; ++i) sums_[i] += Row::widen16(row + i * kFloats);
  }
  void add_scaled(const typename Row::Weight* row, float amplitude) {
    for (int i = 0; i < kVecs; ++i) sums_[i] += amplitude * Row::widen16(row + i * kFloats);
  }
  void store(float* sums) const {
    for (int i = 0; i < kVecs; ++i) store_vector(sums + i * kFloats, sums_[i]);
  }
  static void unpack(const float* __restrict sums, int32_t, float* __restrict out) {
    for (int i = 0; i < kChannels; ++i) out[i] = sums[i];
  }

 private:
  static constexpr int kVecs = kChannels / kFloats;
  Floats sums_[kVecs];
};

// bfloat16: the halves of a 32-bit word are two weights. Each becomes a float without a shuffle, so
// the sums of even and odd channels are kept apart.
template <int kChannels>
class BFloat16Sums {
 public:
  void load(const float* sums, bool zero) {
    for (int i = 0; i < kVecs; ++i) {
      even_[i] = zero ? Lanes{} : load_vector<Lanes>(sums + 2 * i * kLanes);
      odd_[i] = zero ? Lanes{} : load_vector<Lanes>(sums + (2 * i + 1) * kLanes);
    }
  }
  int64_t make_room(int64_t rows, float*) { return rows; }
  void add(const uint16_t* row) {
    for (int i = 0; i < kVecs; ++i) {
      const Words pairs = load_vector<Words>(row + 2 * i * kLanes);
      even_[i] += reinterpret_cast<Lanes>(pairs << 16);
      odd_[i] += reinterpret_cast<Lanes>(pairs & 0xffff0000u);
    }
  }
  void add_scaled(const uint16_t* row, float amplitude) {
    for (int i = 0; i < kVecs; ++i) {
      const Words pairs = load_vector<Words>(row + 2 * i * kLanes);
      even_[i] += amplitude * reinterpret_cast<Lanes>(pairs << 16);
      odd_[i] += amplitude * reinterpret_cast<Lanes>(pairs & 0xffff0000u);
    }
  }
  void store(float* sums) const {
    for (int i = 0; i < kVecs; ++i) {
      store_vector(sums + 2 * i * kLanes, even_[i]);
      store_vector(sums + (2 * i + 1) * kLanes, odd_[i]);
    }
  }
  static void unpack(const float* __restrict sums, int32_t, float* __restrict out) {
    for (int i = 0; i < kVecs; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        out[2 * (i * kLanes + lane)] = sums[2 * i * kLanes + lane];
        out[2 * (i * kLanes + lane) + 1] = sums[(2 * i + 1) * kLanes + lane];
      }
    }
  }

 private:
  static constexpr int kLanes = least(kFloats, kChannels / 2);
  static constexpr int kVecs = kChannels / (2 * kLanes);
  using Lanes = typename VectorOf<float, 4 * kLanes>::Type;
  using Words = typename VectorOf<uint32_t, 4 * kLanes>::Type;
  Lanes even_[kVecs];
  Lanes odd_[kVecs];
};

// int8: bytes that are 128 too large. A 16-bit lane reads two neighbouring bytes as one number,
// low + 256 * high. `pairs_` sums these numbers modulo 2^16, `high_` sums the high bytes, and
// pairs_ - 256 * high_ is the sum of the low bytes modulo 2^16. Up to kMostRows rows the sums of
// bytes are below 2^16; then they move to the 32-bit sums in memory.
template <int kChannels>
class Int8Sums {
 public:
  void load(int32_t* sums, bool zero) {
    if (zero) std::memset(sums, 0, kChannels * sizeof(int32_t));
    clear();
  }
  int64_t make_room(int64_t rows, int32_t* sums) {
    if (room_ == 0) {
      store(sums);
      clear();
    }
    const int64_t most = least(rows, room_);
    room_ -= most;
    return most;
  }
  void add(const uint8_t* row) {
    for (int i = 0; i < kVecs; ++i) {
      const Lanes pairs = load_vector<Lanes>(row + i * kBytes);
      pairs_[i] += pairs;
      high_[i] += pairs >> 8;
    }
  }
  void store(int32_t* sums) const {
    for (int i = 0; i < kVecs; ++i) {
      add_to(sums + i * kBytes, pairs_[i] - (high_[i] << 8));
      add_to(sums + i * kBytes + kLanes, high_[i]);
    }
  }
  static void unpack(const int32_t* __restrict sums, int32_t rows, float* __restrict out) {
    for (int i = 0; i < kVecs; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t* sum = sums + i * kBytes + lane;
        out[i * kBytes + 2 * lane] = static_cast<float>(sum[0] - 128 * rows);
        out[i * kBytes + 2 * lane + 1] = static_cast<float>(sum[kLanes] - 128 * rows);
      }
    }
  }

 private:
  static constexpr int64_t kMostRows = 65535 / 255;
  static constexpr int kBytes = least(64, kChannels);
  static constexpr int kLanes = kBytes / 2;
  static constexpr int kVecs = kChannels / kBytes;
  using Lanes = typename VectorOf<uint16_t, kBytes>::Type;
  using WideLanes = typename VectorOf<int32_t, 2 * kBytes>::Type;

  static void add_to(int32_t* sums, const Lanes& lanes) {
    const auto wide = __builtin_convertvector(lanes, WideLanes);
    store_vector(sums, load_vector<WideLanes>(sums) + wide);
  }
  void clear() {
    for (int i = 0; i < kVecs; ++i) pairs_[i] = high_[i] = Lanes{};
    room_ = kMostRows;
  }

  Lanes pairs_[kVecs];
  Lanes high_[kVecs];
  int64_t room_;
};

// Fewer channels than a vector has.
template <class Row>
class FewSums {
 public:
  using Sum = typename Row::Sum;
  explicit FewSums(int channels) : channels_(channels) {}
  void load(const Sum* sums, bool zero) {
    for (int i = 0; i < channels_; ++i) sums_[i] = zero ? Sum{} : sums[i];
  }
  int64_t make_room(int64_t rows, Sum*) { return rows; }
  void add(const typename Row::Weight* row) {
    for (int i = 0; i < channels_; ++i) sums_[i] += Row::widen(row[i]);
  }
  void add_scaled(const typename Row::Weight* row, float amplitude) {
    for (int i = 0; i < channels_; ++i) sums_[i] += amplitude * Row::widen(row[i]);
  }
  void store(Sum* sums) const { std::memcpy(sums, sums_, channels_ * sizeof(Sum)); }
  void unpack(const Sum* sums, int32_t rows, float* out) const {
    for (int i = 0; i < channels_; ++i) out[i] = static_cast<float>(sums[i] - Row::offset(rows));
  }

 private:
  Sum sums_[kFloats];
  int channels_;
};

// kBiased: every row that is added makes a sum too large by a constant. kTimesWidest: how many
// times kWidestChannels the registers hold; float32 rows are added from memory, while others take
// registers for their widened weights.
struct Float32Row {
  using Weight = float;
  using Sum = float;
  static constexpr bool kBiased = false;
  static constexpr int kTimesWidest = 2;
  template <int kChannels>
  using Sums = FloatSums<Float32Row, kChannels>;
  static float offset(int32_t) { return 0.0f; }
  static float widen(float weight) { return weight; }
  static Floats widen16(const float* row) { return load_vector<Floats>(row); }
};

struct Float16Row {
  using Weight = uint16_t;
  using Sum = float;
  static constexpr bool kBiased = false;
  static constexpr int kTimesWidest = 1;
  template <int kChannels>
  using Sums = FloatSums<Float16Row, kChannels>;
  static float offset(int32_t) { return 0.0f; }
  static float widen(uint16_t weight) { return Float16::widen(weight); }
  static Floats widen16(const uint16_t* row) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(
        _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))));
#else
    Floats wide;
#if defined(__F16C__)
    for (int i = 0; i < 2; ++i) {
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row) + i);
      const __m256 eight = _mm256_cvtph_ps(halves);
      std::memcpy(reinterpret_cast<char*>(&wide) + i * sizeof eight, &eight, sizeof eight);
    }
#else
    for (int i = 0; i < kFloats; ++i) wide[i] = Float16::widen(row[i]);
#endif
    return wide;
#endif
  }
};

struct BFloat16Row {
  using Weight = uint16_t;
  using Sum = float;
  static constexpr bool kBiased = false;
  static constexpr int kTimesWidest = 1;
  template <int kChannels>
  using Sums = BFloat16Sums<kChannels>;
  static float offset(int32_t) { return 0.0f; }
  static float widen(uint16_t weight) { return BFloat16::widen(weight); }
};

struct Int8Row {
  using Weight = uint8_t;
  using Sum = int32_t;
  static constexpr bool kBiased = true;
  static constexpr int kTimesWidest = 1;
  template <int kChannels>
  using Sums = Int8Sums<kChannels>;
  // How much too large the sum of `rows` weights is.
  static int32_t offset(int32_t rows) { return 128 * rows; }
  static int32_t widen(uint8_t weight) { return weight; }
};

// Calls f with a value of the type of the rows.
template <class F>
inline void with_row(DType weight_dtype, F f) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return f(Float32Row{});
    case DType::kFloat16:
      return f(Float16Row{});
    case DType::kBFloat16:
      return f(BFloat16Row{});
    case DType::kInt8:
      return f(Int8Row{});
  }
}

// Channels whose sums fit in the registers and leave some free.
#if defined(__AVX512F__)
constexpr int kWidestChannels = 128;
#elif defined(__AVX2__)
constexpr int kWidestChannels = 64;
#else
constexpr int kWidestChannels = 32;
#endif

template <int kChannels>
struct Channels {
  static constexpr int kCount = kChannels;
};

// Calls f(Channels<k>, c) for runs of k channels from channel c on that together are all
// `channels`. The last run, of fewer channels than a vector, is Channels<0>.
template <class Row, class F>
inline void for_each_run(int64_t channels, F f) {
  constexpr int kWidest = kWidestChannels * Row::kTimesWidest;
  int64_t c = 0;
  const auto runs_of = [&](auto run, int64_t k) {
    for (; channels - c >= k; c += k) f(run, c);
  };
  if constexpr (kWidest >= 256) runs_of(Channels<256>{}, 256);
  if constexpr (kWidest >= 128) runs_of(Channels<128>{}, 128);
  if constexpr (kWidest >= 64) runs_of(Channels<64>{}, 64);
  runs_of(Channels<32>{}, 32);
  runs_of(Channels<16>{}, 16);
  if (c < channels) f(Channels<0>{}, c);
}

// Calls f(sums, channel) for the sums that together hold `channels` channels.
template <class Row, class F>
void for_each_sums(int64_t channels, F f) {
  for_each_run<Row>(channels, [&](auto run, int64_t channel) {
    if constexpr (run.kCount == 0) {
      f(FewSums<Row>(static_cast<int>(channels - channel)), channel);
    } else {
      f(typename Row::template Sums<run.kCount>(), channel);
    }
  });
}

}  // namespace
}  // namespace realspike
