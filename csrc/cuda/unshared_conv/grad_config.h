#pragma once

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cuda/unshared_conv/rows_config.h"

namespace realspike {

// A block computes `lanes * vec` channels of one of `splits` shares of the rows of one output
// position and group. It takes all samples, `sample_tile` of them at a time. A stream of `lanes`
// threads owns a row at a time.
struct GradConfig {
  int vec;  // neighbouring channels per thread: 16 bytes of them, or 1
  int sample_tile;
  int lanes;    // threads per stream: a power of two up to 32
  int threads;  // per block: a multiple of 32
  int splits;
  int shared_bytes;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from the other ones.
inline GradConfig complete_grad_config(const UnsharedConvParams& p, GradConfig config) {
  const int64_t tile_channels = int64_t{config.lanes} * config.vec;
  const int bits = config.threads / 32 * static_cast<int>(ceil_div(config.sample_tile, 32)) * 32;
  config.shared_bytes =
      static_cast<int>(config.sample_tile * tile_channels + bits) * static_cast<int>(sizeof(float));
  config.channel_tiles = ceil_div(p.Cout_g, tile_channels);
  const bool has_rows = p.KH * p.KW * p.Cin_g > 0;
  config.blocks = has_rows ? config.channel_tiles * config.splits * p.G * p.OH * p.OW : 0;
  return config;
}

// p.weight_dtype is that of the gradient: float32, float16 or bfloat16.
inline GradConfig choose_grad_config(const UnsharedConvParams& p, const void* grad_weight) {
  GradConfig config{};
  const int bytes = bytes_of(p.weight_dtype);
  config.vec = rows_are_aligned(p, grad_weight, 16 / bytes, bytes) ? 16 / bytes : 1;
  config.sample_tile = static_cast<int>(std::clamp<int64_t>(p.N, 1, kUnsharedConvGradSamples));

  // More samples leave room for fewer channels: all that a block reads again is in shared memory.
  constexpr int kMostStagedBytes = 32 << 10;
  config.lanes = lanes_of_a_row(p, config.vec);
  while (config.sample_tile * config.lanes * config.vec * static_cast<int>(sizeof(float)) >
         kMostStagedBytes) {
    config.lanes /= 2;
  }

  // No more warps than the receptive field of a group has words.
  const int64_t words = p.KH * p.KW * ceil_div(p.Cin_g, 32);
  const int64_t warps = std::clamp<int64_t>(words, 1, kUnsharedConvMaxThreads / 32);
  config.threads = 32 * static_cast<int>(warps);

  // On a small map the blocks of all positions do not fill a large device.
  config.splits = 1;
  const int64_t blocks = complete_grad_config(p, config).blocks;
  if (blocks > 0 && blocks < kWantedBlocks) {
    config.splits = static_cast<int>(
        std::clamp<int64_t>(std::min(kWantedBlocks / blocks, words / warps), 1, kMostSplits));
  }
  return complete_grad_config(p, config);
}

}  // namespace realspike
