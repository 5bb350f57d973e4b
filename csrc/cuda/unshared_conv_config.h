#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

constexpr int kUnsharedConvMaxThreads = 256;
// Neighbouring output channels of a thread.
constexpr int kUnsharedConvVec = 4;

// What a block of few samples shares: the rows of some spike words that one of them uses, and these
// words.
constexpr int kUnsharedConvListWords = 64;
constexpr int kUnsharedConvListSamples = 4;
constexpr int kUnsharedConvMostInFlight = 8;  // rows of a group
template <int S_TILE>
struct UnsharedConvShared {
  uint32_t
      list[kUnsharedConvListWords * 32 + kUnsharedConvMostInFlight];  // the last group is filled up
  uint32_t fired[S_TILE][kUnsharedConvListWords];
  int row[kUnsharedConvListWords];  // of bit 0
};

// Whether the entries of that list hold every row of a receptive field, and an int every spike word
// of a sample.
inline bool field_fits(const UnsharedConvParams& p) {
  return p.KH * p.KW * p.Cin_g < int64_t{1} << (32 - kUnsharedConvListSamples) &&
         p.H * p.W * p.words <= INT32_MAX;
}

constexpr int kStageRows = 32;  // those of one spike word

// A block computes `sample_tile` samples x `lanes * vec` channels of one output position and group,
// or one of `splits` shares of their terms. It is cut into threads / lanes streams, which share the
// work on the receptive field.
//
// With many samples the rows are staged in shared memory instead: every stream then takes the whole
// receptive field, for `stream_samples` samples of its own.
struct UnsharedConvConfig {
  bool staged;
  int vec;             // neighbouring output channels per thread: kUnsharedConvVec, or 1
  int stream_samples;  // if staged
  int sample_tile;     // of a block
  int lanes;           // threads per stream: a power of two up to 32
  int threads;         // per block: a multiple of 32
  int splits;          // blocks that share the receptive field; their sums meet in a second pass
  int shared_bytes;
  int64_t sample_tiles;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

inline int bytes_of_weight(DType weight_dtype) {
  return weight_dtype == DType::kFloat32 ? 4 : weight_dtype == DType::kInt8 ? 1 : 2;
}

// The parts of a configuration that follow from the other ones.
inline UnsharedConvConfig complete_unshared_conv_config(const UnsharedConvParams& p,
                                                        UnsharedConvConfig config) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  if (config.staged) {
    config.sample_tile = config.threads / config.lanes * config.stream_samples;
    // Two stages; a weight takes two bytes (int8) or four.
    const int of_lane = kUnsharedConvVec * (p.weight_dtype == DType::kInt8 ? 2 : 4);
    config.shared_bytes = 2 * kStageRows * config.lanes * of_lane;
  } else {
    const int partial = config.sample_tile * config.threads * config.vec * 4;
    const int list = config.sample_tile == 1 ? sizeof(UnsharedConvShared<1>)
                                             : sizeof(UnsharedConvShared<kUnsharedConvListSamples>);
    config.shared_bytes = std::max(partial, list);
  }
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.channel_tiles = ceil_div(p.Cout_g, int64_t{config.lanes} * config.vec);
  config.blocks = config.sample_tiles * config.channel_tiles * config.splits * p.G * p.OH * p.OW;
  return config;
}

// Whether every row of `rows` starts at a multiple of `weights` weights of `bytes` bytes.
inline bool rows_are_aligned(const UnsharedConvParams& p, const void* rows, int weights,
                             int bytes) {
  return p.Cout_g % weights == 0 && p.weight_stride_p % weights == 0 &&
         reinterpret_cast<uintptr_t>(rows) % (weights * bytes) == 0;
}

// Threads per stream: a narrow row leaves no lane idle, the warp works on several rows at once.
inline int lanes_of_a_row(const UnsharedConvParams& p, int vec) {
  int lanes = 1;
  while (lanes < 32 && int64_t{lanes} * vec < p.Cout_g) lanes *= 2;
  return lanes;
}

// Blocks that a large device needs, and how many may share a receptive field to come near it.
constexpr int64_t kWantedBlocks = 512;
constexpr int64_t kMostSplits = 16;
constexpr int64_t kMostWarps = kUnsharedConvMaxThreads / 32;

// Many samples, if the blocks are enough for a device: at least eight streams, of which each has
// the rows of four to be brought to shared memory.
inline bool choose_staged(const UnsharedConvParams& p, UnsharedConvConfig& config) {
  constexpr int64_t kEnoughBlocks = 192;
  const int64_t few_samples = config.lanes < 16 ? 8 : 16;
  if (config.vec == 1 || config.lanes < 4 || p.N <= few_samples) return false;
  UnsharedConvConfig staged = config;
  staged.staged = true;
  staged.splits = 1;
  staged.threads = std::max(8 * config.lanes, 64);
  staged.stream_samples = config.lanes >= 8 && p.N > 32 ? 8 : 4;
  staged = complete_unshared_conv_config(p, staged);
  if (staged.blocks < kEnoughBlocks) return false;
  config = staged;
  return true;
}

inline UnsharedConvConfig choose_unshared_conv_config(const UnsharedConvParams& p) {
  UnsharedConvConfig config{};
  const int bytes = bytes_of_weight(p.weight_dtype);
  config.vec = rows_are_aligned(p, p.weight, kUnsharedConvVec, bytes) ? kUnsharedConvVec : 1;
  config.lanes = lanes_of_a_row(p, config.vec);
  if (choose_staged(p, config)) return config;

  // More samples in a tile would read no row less often from memory: the tiles of a position run
  // together and find it in the cache.
  config.sample_tile = p.N == 1 ? 1 : kUnsharedConvListSamples;

  // Small maps have too few positions for a large device: 128 bytes of a row per stream still are
  // whole cache lines, and the narrower streams share the receptive field among more of them.
  constexpr int kCacheLine = 128;
  config.threads = 32;
  config.splits = 1;
  while (config.lanes * config.vec * bytes > kCacheLine &&
         complete_unshared_conv_config(p, config).blocks < kWantedBlocks) {
    config.lanes /= 2;
  }

  // A warp for eight words of the receptive field of a group, or, with few blocks, as many as find
  // four rows for each of their streams.
  const int64_t words = p.KH * p.KW * ((p.Cin_g + 31) / 32);
  const int64_t blocks = complete_unshared_conv_config(p, config).blocks;
  const int64_t warps = std::clamp<int64_t>(
      blocks < kWantedBlocks ? words * 8 * config.lanes / 32 : words / 8, 2, kMostWarps);
  config.threads = 32 * static_cast<int>(warps);

  // Still too few blocks: they share the receptive field, as long as every stream has a word.
  const int64_t streams = config.threads / config.lanes;
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
