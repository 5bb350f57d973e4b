#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

// From finished sums to the output.

namespace realspike {
namespace {

// Neighbouring values of channels, side by side: where they lie, or copied to `buffer`.
inline const float* side_by_side(const float* values, int64_t stride, int64_t channels,
                                 float* buffer) {
  if (stride == 1) return values;
  for (int64_t c = 0; c < channels; ++c) buffer[c] = values[c * stride];
  return buffer;
}

// Turns the sums of one position, [channels], into currents.
class ScaleAndBias {
 public:
  ScaleAndBias(const UnsharedConvParams& p, const Tile& tile) : p_(p), tile_(tile) {}

  void go_to(int64_t position) {
    if (p_.bias == nullptr) return;
    const float* bias = p_.bias + first() * p_.bias_stride_c + position * p_.bias_stride_p;
    bias_ = side_by_side(bias, p_.bias_stride_c, tile_.channels, buffer_);
  }

  void apply(float* currents) const {
    if (p_.scale != nullptr) {
      const float* scale = p_.scale + first();
      for (int64_t c = 0; c < tile_.channels; ++c) currents[c] *= scale[c];
    }
    if (p_.bias != nullptr) {
      for (int64_t c = 0; c < tile_.channels; ++c) currents[c] += bias_[c];
    }
  }

 private:
  int64_t first() const { return tile_.group * p_.Cout_g + tile_.first_channel; }

  const UnsharedConvParams& p_;
  const Tile& tile_;
  const float* bias_ = nullptr;
  float buffer_[kMostChannels];
};

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
