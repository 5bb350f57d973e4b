#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/unshared_conv/config.h"

namespace realspike {

// How a block of the gradient of the weight works: as UnsharedConvConfig says, but one block takes
// all samples (sample_tiles is 1), `sample_tile` of them at a time, and the splits share the rows,
// so that their results do not meet.

// The parts of a configuration that follow from the other ones.
inline UnsharedConvConfig complete_unshared_conv_grad_config(const UnsharedConvParams& p,
                                                             UnsharedConvConfig config) {
  const int64_t tile_channels = int64_t{config.lanes} * config.vec;
  const int bits = config.threads / 32 * ((config.sample_tile + 31) / 32) * 32;
  config.shared_bytes =
      static_cast<int>(config.sample_tile * tile_channels + bits) * static_cast<int>(sizeof(float));
  config.sample_tiles = config.shares = 1;
  config.channel_tiles = (p.Cout_g + tile_channels - 1) / tile_channels;
  const bool has_rows = p.KH * p.KW * p.Cin_g > 0;
  config.blocks = has_rows ? config.channel_tiles * config.splits * p.G * p.OH * p.OW : 0;
  return config;
}

// p.weight_dtype is that of the gradient: float32, float16 or bfloat16.
inline UnsharedConvConfig choose_unshared_conv_grad_config(const UnsharedConvParams& p,
                                                           const void* grad_weight) {
  UnsharedConvConfig config{};
  const int bytes = bytes_of_weight(p.weight_dtype);
  config.vec = rows_are_aligned(p, grad_weight, 16 / bytes, bytes) ? 16 / bytes : 1;
  config.sample_tile = static_cast<int>(std::clamp<int64_t>(p.N, 1, kUnsharedConvGradSamples));

  // Fewer channels for more samples: what a block stages is read again from shared memory alone.
  constexpr int kMostStagedBytes = 32 << 10;
  config.lanes = lanes_of_a_row(p, config.vec);
  while (config.sample_tile * config.lanes * config.vec * static_cast<int>(sizeof(float)) >
         kMostStagedBytes) {
    config.lanes /= 2;
  }

  // No more warps than the receptive field of a group has words.
  const int64_t words = p.KH * p.KW * ((p.Cin_g + 31) / 32);
  const int64_t warps = std::clamp<int64_t>(words, 1, kUnsharedConvMaxThreads / 32);
  config.threads = 32 * static_cast<int>(warps);

  // Small maps have too few positions for a large device.
  config.splits = 1;
  const int64_t blocks = complete_unshared_conv_grad_config(p, config).blocks;
  if (blocks > 0 && blocks < kWantedBlocks) {
    config.splits = static_cast<int>(
        std::clamp<int64_t>(std::min(kWantedBlocks / blocks, words / warps), 1, kMostSplits));
  }
  return complete_unshared_conv_grad_config(p, config);
}

}  // namespace realspike
