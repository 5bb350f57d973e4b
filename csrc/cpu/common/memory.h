#pragma once

#include <cstdint>

namespace realspike {

// The size of the last level of caches: REALSPIKE_CPU_CACHE_BYTES if set, else the system's answer,
// else a guess.
int64_t last_level_cache_bytes();

// Asks the system to back a large output by huge pages, as far as nobody has touched it yet: a page
// fault for every 4 KiB costs more time than the neurons do. Small outputs are left alone.
void prefer_huge_pages(void* begin, int64_t bytes);

}  // namespace realspike
