#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

constexpr int kUnsharedConvMaxThreads = 256;
constexpr int kUnsharedConvMaxSampleTile = 16;
// Samples whose partial sums lie in shared memory at the same time.
constexpr int kUnsharedConvReduceTile = 4;

// A block computes `sample_tile` samples x `lanes * vec` channels of one output position and group.
// It is cut into threads / lanes streams, which share the work on the receptive field.
struct UnsharedConvConfig {
  int vec;          // neighbouring output channels per thread: 4 (16-byte loads) or 1
  int sample_tile;  // 1, 2, 4, 8 or 16
  int lanes;        // threads per stream: a power of two up to 32
  int threads;      // per block: a multiple of 32 up to kUnsharedConvMaxThreads
  int shared_bytes;
  int64_t sample_tiles;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from the other ones.
inline UnsharedConvConfig complete_unshared_conv_config(const UnsharedConvParams& p,
                                                        UnsharedConvConfig config) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  config.shared_bytes = std::min(config.sample_tile, kUnsharedConvReduceTile) * config.threads *
                        config.vec * static_cast<int>(sizeof(float));
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.channel_tiles = ceil_div(p.Cout_g, int64_t{config.lanes} * config.vec);
  config.blocks = config.sample_tiles * config.channel_tiles * p.G * p.OH * p.OW;
  return config;
}

inline UnsharedConvConfig choose_unshared_conv_config(const UnsharedConvParams& p) {
  UnsharedConvConfig config{};
  const bool rows_are_aligned = p.Cout_g % 4 == 0 && p.weight_stride_p % 4 == 0 &&
                                reinterpret_cast<uintptr_t>(p.weight) % 16 == 0;
  config.vec = rows_are_aligned ? 4 : 1;

  // A touched row is loaded once for all samples of the tile.
  config.sample_tile = 1;
  while (config.sample_tile < std::min<int64_t>(p.N, kUnsharedConvMaxSampleTile)) {
    config.sample_tile *= 2;
  }

  // A narrow row leaves no lane idle: the warp works on several rows at once.
  config.lanes = 1;
  while (config.lanes < 32 && int64_t{config.lanes} * config.vec < p.Cout_g) config.lanes *= 2;

  // Small maps have too few positions for a large device: 128 bytes of a row per stream still are
  // whole cache lines, and the narrower streams share the receptive field among more of them.
  constexpr int64_t kWantedBlocks = 256;
  constexpr int kCacheLineFloats = 32;
  config.threads = 32;
  while (config.lanes * config.vec > kCacheLineFloats &&
         complete_unshared_conv_config(p, config).blocks < kWantedBlocks) {
    config.lanes /= 2;
  }

  // No more streams than the receptive field of a group has words.
  const int64_t words = p.KH * p.KW * ((p.Cin_g + 31) / 32);
  const int64_t warps = (words * config.lanes + 31) / 32;
  config.threads =
      32 * static_cast<int>(std::clamp<int64_t>(warps, 1, kUnsharedConvMaxThreads / 32));
  return complete_unshared_conv_config(p, config);
}

}  // namespace realspike
