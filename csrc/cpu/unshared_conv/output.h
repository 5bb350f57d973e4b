#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/task.h"

// From finished sums to the output.

namespace realspike {
namespace {

// Turns the sums of one position, [channels], into currents.
void scale_and_bias(const UnsharedConvParams& p, const Tile& tile, int64_t position,
                    float* currents) {
  const int64_t first = tile.group * p.Cout_g + tile.first_channel;
  if (p.scale != nullptr) {
    for (int64_t c = 0; c < tile.channels; ++c) currents[c] *= p.scale[first + c];
  }
  if (p.bias != nullptr) {
    const float* bias = p.bias + first * p.bias_stride_c + position * p.bias_stride_p;
    for (int64_t c = 0; c < tile.channels; ++c) currents[c] += bias[c * p.bias_stride_c];
  }
}

// The positions of a task whose finished currents wait to be written together.
struct KeptPositions {
  KeptPositions(int64_t kept, int64_t begin, int64_t end) : most(kept), first(begin), end(end) {
    count = least(most, end - first);
  }
  bool ends_with(int64_t position) const { return position == first + count - 1; }
  KeptPositions next() const { return {most, first + count, end}; }

  int64_t most;
  int64_t first;
  int64_t end;  // of the task
  int64_t count;
};

inline void copy_out(bool stream, float* to, const float* from, int64_t count) {
  if (stream) {
    stream_copy(to, from, count * sizeof(float));
  } else {
    std::memcpy(to, from, count * sizeof(float));
  }
}

// currents [positions, channels] of one sample.
void write_out(const UnsharedConvParams& p, bool stream, const Tile& tile,
               const KeptPositions& kept, int64_t s, const float* currents) {
  float* const out = p.out + (tile.first_sequence + s) * p.out_stride_n +
                     (tile.group * p.Cout_g + tile.first_channel) * p.out_stride_c +
                     kept.first * p.out_stride_p;
  if (p.out_stride_c == 1) {
    const bool dense = p.out_stride_p == tile.channels;
    const int64_t runs = dense ? 1 : kept.count;
    const int64_t channels = tile.channels * (dense ? kept.count : 1);
    for (int64_t i = 0; i < runs; ++i) {
      copy_out(stream, out + i * p.out_stride_p, currents + i * tile.channels, channels);
    }
    return;
  }
  // The lines lie far apart, and no hardware fetches them ahead. Ask for those of the next sample.
  for (int64_t c = 0; c < tile.channels; ++c) {
    float* const line = out + c * p.out_stride_c;
    __builtin_prefetch(line + p.out_stride_n, 1);
    for (int64_t i = 0; i < kept.count; ++i) {
      line[i * p.out_stride_p] = currents[i * tile.channels + c];
    }
  }
}

}  // namespace
}  // namespace realspike
