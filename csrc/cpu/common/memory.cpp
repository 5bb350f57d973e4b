#include "cpu/common/memory.h"

#include <cstdio>
#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace realspike {

namespace {

int64_t find_last_level_cache_bytes() {
  if (const char* asked = std::getenv("REALSPIKE_CPU_CACHE_BYTES")) {
    const int64_t bytes = std::atoll(asked);
    if (bytes > 0) return bytes;
  }
  // sysconf adds up the caches of a whole package; what one core can fill is in sysfs.
  if (std::FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    long kibibytes = 0;
    const int read = std::fscanf(file, "%ldK", &kibibytes);
    std::fclose(file);
    if (read == 1 && kibibytes > 0) return int64_t{kibibytes} << 10;
  }
  return int64_t{32} << 20;
}

}  // namespace

int64_t last_level_cache_bytes() {
  static const int64_t bytes = find_last_level_cache_bytes();
  return bytes;
}

void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kSmallest = int64_t{4} << 20;
  if (bytes < kSmallest) return;
  static const intptr_t page = sysconf(_SC_PAGESIZE);
  const intptr_t first = (reinterpret_cast<intptr_t>(begin) + page - 1) / page * page;
  const intptr_t last = (reinterpret_cast<intptr_t>(begin) + bytes) / page * page;
  // A kernel without huge pages refuses, and nothing is lost.
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace realspike
