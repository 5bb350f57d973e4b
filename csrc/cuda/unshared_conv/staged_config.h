#pragma once

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cuda/unshared_conv/rows_config.h"

namespace realspike {

constexpr int kStageRows = 32;  // those of one spike word

// A block is cut into streams of `lanes` threads. A stream computes `stream_samples` samples x
// `lanes` * 4 channels of one output position and group.
struct StagedConfig {
  int stream_samples;
  int sample_tile;  // of a block
  int lanes;        // a power of two up to 32
  int threads;      // per block: a multiple of 32
  int shared_bytes;
  int64_t sample_tiles;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from stream_samples, lanes and threads.
inline StagedConfig complete_staged_config(const UnsharedConvParams& p, StagedConfig config) {
  config.sample_tile = config.threads / config.lanes * config.stream_samples;
  // Two stages, a row of zeros before each; a weight takes two bytes (int8) or four.
  const int of_lane = kUnsharedConvVec * (p.weight_dtype == DType::kInt8 ? 2 : 4);
  config.shared_bytes = 2 * (1 + kStageRows) * config.lanes * of_lane;
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.channel_tiles = ceil_div(p.Cout_g, int64_t{config.lanes} * kUnsharedConvVec);
  config.blocks = config.sample_tiles * config.channel_tiles * p.G * p.OH * p.OW;
  return config;
}

// At least eight streams: each brings the rows of four to shared memory.
inline StagedConfig choose_staged_config(const UnsharedConvParams& p) {
  StagedConfig config{};
  config.lanes = lanes_of_a_row(p, kUnsharedConvVec);
  config.threads = std::max(8 * config.lanes, 64);
  config.stream_samples = config.lanes >= 8 ? 8 : 4;
  return complete_staged_config(p, config);
}

// Whether rows are staged in shared memory: for more than 32 samples when the cache is too slow,
// which it is for float32 rows of more than 32 channels and for any type's rows of 9 to 16.
inline bool stages_rows(const UnsharedConvParams& p) {
  constexpr int64_t kEnoughBlocks = 192;  // for a device
  const int lanes = lanes_of_a_row(p, kUnsharedConvVec);
  const bool slow = (p.weight_dtype == DType::kFloat32 && lanes >= 16) || lanes == 4;
  return vec_of_rows(p) == kUnsharedConvVec && p.N > 32 && slow &&
         choose_staged_config(p).blocks >= kEnoughBlocks;
}

}  // namespace realspike
