#pragma once

#include <cstdint>

#include "core/lif.h"

namespace realspike {

// Columns [column, column + width) of the rows [row_begin, row_end); see LifTiling.
struct LifTile {
  int64_t chunk;
  int64_t row;
  int64_t row_begin;
  int64_t row_end;
  int64_t column;
  int64_t width;
  bool stream;  // y or grad_x is larger than the caches and is written past them
};

// Pixels of a task of the packed forward pass, channels_last.
inline int64_t lif_packed_pixels_per_task(const LifPacked& p) {
  constexpr int64_t kWork = 65536;
  const int64_t pixels = kWork / (p.C * p.T);
  return pixels > 1 ? pixels : 1;
}

}  // namespace realspike
