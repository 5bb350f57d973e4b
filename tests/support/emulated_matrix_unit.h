// The matrix unit of a CPU (AMX) in plain code, so that sanitizers see what it reads and writes,
// and CPUs without one run the kernel that uses it. In a sanitized build every file of
// the AVX-512 set includes it first.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace emulated {

struct Register {
  int rows;
  int bytes;
  uint8_t data[16][64];
};

inline thread_local Register registers[8];

inline void shape(const void* from) {
  uint16_t bytes[16];
  uint8_t rows[16];
  std::memcpy(bytes, static_cast<const uint8_t*>(from) + 16, sizeof bytes);
  std::memcpy(rows, static_cast<const uint8_t*>(from) + 48, sizeof rows);
  for (int i = 0; i < 8; ++i) registers[i] = {rows[i], bytes[i], {}};
}

inline void load(int to, const void* from, int64_t stride) {
  Register& r = registers[to];
  for (int i = 0; i < r.rows; ++i) {
    std::memcpy(r.data[i], static_cast<const uint8_t*>(from) + i * stride, r.bytes);
  }
}

inline void store(int from, void* to, int64_t stride) {
  const Register& r = registers[from];
  for (int i = 0; i < r.rows; ++i) {
    std::memcpy(static_cast<uint8_t*>(to) + i * stride, r.data[i], r.bytes);
  }
}

// sums[m, n] += left[m, k] * right[k / 4, n, k % 4]; a shape that does not fit traps, as the unit.
inline void multiply(int sums, int left, int right) {
  Register &c = registers[sums], &a = registers[left], &b = registers[right];
  if (c.rows == 0 || c.rows != a.rows || c.bytes != b.bytes || a.bytes != 4 * b.rows) {
    __builtin_trap();
  }
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.bytes / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, c.data[m] + 4 * n, sizeof sum);
      for (int k = 0; k < a.bytes; ++k) {
        sum +=
            static_cast<int8_t>(a.data[m][k]) * static_cast<int8_t>(b.data[k / 4][4 * n + k % 4]);
      }
      std::memcpy(c.data[m] + 4 * n, &sum, sizeof sum);
    }
  }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_release
#define _tile_loadconfig(from) emulated::shape(from)
#define _tile_loadd(to, from, stride) emulated::load(to, from, stride)
#define _tile_stored(from, to, stride) emulated::store(from, to, stride)
#define _tile_zero(n) \
  std::memset(emulated::registers[n].data, 0, sizeof emulated::registers[n].data)
#define _tile_dpbssd(sums, left, right) emulated::multiply(sums, left, right)
#define _tile_release() (void)0
