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
};

}  // namespace realspike
