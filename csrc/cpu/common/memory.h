#pragma once

#include <cstdint>

namespace realspike {

// What the last level of caches holds: REALSPIKE_CPU_CACHE_BYTES if set, else what the system says,
// or a guess where it does not.
int64_t last_level_cache_bytes();

// Asks the system to back a large output by huge pages where nothing has touched it yet: a page
// fault for every 4 KiB costs more than the neurons do. A hint alone; small outputs are left alone.
void prefer_huge_pages(void* begin, int64_t bytes);

}  // namespace realspike
