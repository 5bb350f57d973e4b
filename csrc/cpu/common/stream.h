#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Copies past the caches. A line that is written through the caches is read into them first; for an
// output that leaves them before anyone reads it, that reading is wasted.

namespace realspike {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kStreamBytes = 64;
inline void stream_once(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(__AVX__)
constexpr int64_t kStreamBytes = 32;
inline void stream_once(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to),
                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__SSE2__)
constexpr int64_t kStreamBytes = 16;
inline void stream_once(char* to, const char* from) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to),
                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
constexpr int64_t kStreamBytes = 64;
inline void stream_once(char* to, const char* from) { std::memcpy(to, from, kStreamBytes); }
#endif

// Whole cache lines go past the caches. The partial lines at both ends are copied through them.
inline void stream_copy(void* to, const void* from, int64_t bytes) {
  char* out = static_cast<char*>(to);
  const char* in = static_cast<const char*>(from);
  int64_t head = -reinterpret_cast<intptr_t>(out) & 63;
  if (head > bytes) head = bytes;
  std::memcpy(out, in, head);
  int64_t i = head;
  for (; bytes - i >= 64; i += 64) {
    for (int64_t part = 0; part < 64; part += kStreamBytes) {
      stream_once(out + i + part, in + i + part);
    }
  }
  std::memcpy(out + i, in + i, bytes - i);
}

// Other threads see what was streamed only after this.
inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace realspike
