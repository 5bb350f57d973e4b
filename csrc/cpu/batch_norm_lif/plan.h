#pragma once

#include <cstdint>

#include "core/batch_norm_lif.h"
#include "core/lif.h"
#include "core/numbers.h"
#include "cpu/lif/tile.h"

// How the passes of batch norm are split. It depends on sizes alone, so that sums have one order
// for any number of threads.

namespace realspike {

// The moments of one task: `channels` channels of a range of rows. Contiguous, a row is a piece of
// at most kNormPiece pixels of one image; channels_last it is one pixel.
struct MomentsPlan {
  int64_t rows;
  int64_t pieces;          // rows of an image; contiguous
  int64_t channels;        // of a task, at most
  int64_t groups;          // tasks side by side: ceil(C / channels)
  int64_t rows_per_range;  // of a task
  int64_t ranges;          // ceil(rows / rows_per_range)
  bool channels_last;      // also where that is the same
};

constexpr int64_t kNormPiece = 4096;
constexpr int64_t kNormChannels = 2048;

// Channels whose sums a task of the backward pass has at most.
inline int64_t norm_slots(const BatchNorm& norm, int64_t width) {
  return least(norm.C, norm.channels_last ? width : (width - 2) / norm.P + 2);
}

// A task of the backward pass over neurons: `sums` are [2, slots], and slot s is of channel
// (norm_first_channel + s) % C.
struct NormTile {
  LifTile tile;
  double* sums;            // [2, slots]
  double* parameter_sums;  // [3]: of the gradients of amplitude, decay and v_threshold
  int64_t slots;
};

// grad_x = scale * (grad_current - shift - (x - mean) * slope), per channel.
struct NormGradients {
  const float* scale;  // [C]
  const float* shift;  // [C]
  const float* slope;  // [C]
};

inline int64_t norm_first_channel(const BatchNorm& norm, int64_t column) {
  return (norm.channels_last ? column : column / norm.P) % norm.C;
}

}  // namespace realspike
