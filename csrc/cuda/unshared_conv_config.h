#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

constexpr int kUnsharedConvMaxThreads = 256;
// Samples whose partial sums lie in shared memory at the same time.
constexpr int kUnsharedConvReduceTile = 4;

// A block computes `sample_tile` samples x `lanes * vec` channels of one output position and group,
// or one of `splits` shares of their terms. It is cut into threads / lanes streams, which share the
// work on the receptive field.
//
// With many samples the rows are staged in shared memory instead: every stream then takes the whole
// receptive field, for samples of its own.
struct UnsharedConvConfig {
  bool staged;
  int vec;          // neighbouring output channels per thread: 16 bytes of weights, or 1
  int sample_tile;  // of a block; unless staged, a power of two up to most_samples
  int lanes;        // threads per stream: a power of two up to 32
  int threads;      // per block: a multiple of 32 up to most_threads
  int splits;       // blocks that share the receptive field; their sums meet in a second pass
  int shared_bytes;
  int64_t sample_tiles;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// How much of the work the types of weights allow to a thread and a block.
struct UnsharedConvLimits {
  int bytes;           // of a weight
  int most_samples;    // whose sums fit in the registers
  int most_threads;    // int8: the sums of all threads lie in shared memory
  int staged_samples;  // of a stream
};

inline UnsharedConvLimits unshared_conv_limits(DType weight_dtype) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return {4, 16, kUnsharedConvMaxThreads, 8};
    case DType::kInt8:
      return {1, kUnsharedConvReduceTile, kUnsharedConvMaxThreads / 2, 4};
    default:
      return {2, 8, kUnsharedConvMaxThreads, 8};
  }
}

// The parts of a configuration that follow from the other ones.
inline UnsharedConvConfig complete_unshared_conv_config(const UnsharedConvParams& p,
                                                        UnsharedConvConfig config) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  constexpr int kStageBytes = 32 * 16;  // of one lane: the rows of a spike word
  config.shared_bytes = config.staged
                            ? kStageBytes * config.lanes
                            : std::min(config.sample_tile, kUnsharedConvReduceTile) *
                                  config.threads * config.vec * static_cast<int>(sizeof(float));
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.channel_tiles = ceil_div(p.Cout_g, int64_t{config.lanes} * config.vec);
  config.blocks = config.sample_tiles * config.channel_tiles * config.splits * p.G * p.OH * p.OW;
  return config;
}

// Whether every row of `rows` starts at a multiple of 16 bytes.
inline bool rows_are_aligned(const UnsharedConvParams& p, const void* rows, int in_16_bytes) {
  return p.Cout_g % in_16_bytes == 0 && p.weight_stride_p % in_16_bytes == 0 &&
         reinterpret_cast<uintptr_t>(rows) % 16 == 0;
}

// Threads per stream: a narrow row leaves no lane idle, the warp works on several rows at once.
inline int lanes_of_a_row(const UnsharedConvParams& p, int vec) {
  int lanes = 1;
  while (lanes < 32 && int64_t{lanes} * vec < p.Cout_g) lanes *= 2;
  return lanes;
}

// Blocks that a large device needs, and how many may share a receptive field to come near it.
constexpr int64_t kWantedBlocks = 256;
constexpr int64_t kMostSplits = 16;

inline UnsharedConvConfig choose_unshared_conv_config(const UnsharedConvParams& p) {
  UnsharedConvConfig config{};
  const UnsharedConvLimits limits = unshared_conv_limits(p.weight_dtype);
  const int in_16_bytes = 16 / limits.bytes;
  const bool aligned = rows_are_aligned(p, p.weight, in_16_bytes);
  config.vec = aligned ? in_16_bytes : 1;

  // A touched row is loaded once for all samples of the tile.
  config.sample_tile = 1;
  while (config.sample_tile < std::min<int64_t>(p.N, limits.most_samples)) {
    config.sample_tile *= 2;
  }

  config.lanes = lanes_of_a_row(p, config.vec);

  // Above this, a streaming block would not hold all samples, and rows would be read again.
  constexpr int64_t kFewSamples = 16;
  if (p.N > kFewSamples && aligned) {
    UnsharedConvConfig staged = config;
    staged.staged = true;
    staged.splits = 1;
    staged.threads = kUnsharedConvMaxThreads;
    staged.sample_tile = staged.threads / staged.lanes * limits.staged_samples;
    staged = complete_unshared_conv_config(p, staged);
    if (staged.blocks >= kWantedBlocks / 2) return staged;
  }

  // Small maps have too few positions for a large device: 128 bytes of a row per stream still are
  // whole cache lines, and the narrower streams share the receptive field among more of them.
  constexpr int kCacheLine = 128;
  config.threads = 32;
  config.splits = 1;
  while (config.lanes * config.vec * limits.bytes > kCacheLine &&
         complete_unshared_conv_config(p, config).blocks < kWantedBlocks) {
    config.lanes /= 2;
  }

  // No more streams than the receptive field of a group has words.
  const int64_t words = p.KH * p.KW * ((p.Cin_g + 31) / 32);
  const int64_t warps = (words * config.lanes + 31) / 32;
  config.threads = 32 * static_cast<int>(std::clamp<int64_t>(warps, 1, limits.most_threads / 32));

  // Still too few blocks: they share the receptive field, as long as every stream has a word.
  const int64_t streams = config.threads / config.lanes;
  const int64_t blocks = complete_unshared_conv_config(p, config).blocks;
  if (blocks > 0 && blocks < kWantedBlocks) {
    config.splits = static_cast<int>(
        std::clamp<int64_t>(std::min(kWantedBlocks / blocks, words / streams), 1, kMostSplits));
  }
  return complete_unshared_conv_config(p, config);
}

// Sums go through memory to a second pass if several blocks share them, or if they are scaled:
// the first pass only adds.
inline bool needs_second_pass(const UnsharedConvParams& p, const UnsharedConvConfig& config) {
  return config.splits > 1 || p.scale != nullptr;
}

// [splits, N, OH, OW, Cout], float or int32_t.
inline int64_t workspace_bytes(const UnsharedConvParams& p, const UnsharedConvConfig& config) {
  return config.splits * p.N * p.G * p.Cout_g * p.OH * p.OW * int64_t{sizeof(float)};
}

inline int64_t unshared_conv_workspace_bytes(const UnsharedConvParams& p,
                                             const UnsharedConvConfig& config) {
  return needs_second_pass(p, config) ? workspace_bytes(p, config) : 0;
}

}  // namespace realspike
