#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

// Neighbouring output channels of a thread.
constexpr int kUnsharedConvVec = 4;

constexpr int kUnsharedConvMaxThreads = 256;

// A stream of `lanes` threads lists the rows of `lanes` spike words at a time and takes them in
// groups of at most this many; the last one is filled up.
constexpr int kUnsharedConvListFill = 16;

// Whether an int numbers the rows of a receptive field and the spike words of a sample.
inline bool field_fits(const UnsharedConvParams& p) {
  return p.KH * p.KW * p.Cin_g <= INT32_MAX && p.H * p.W * p.words <= INT32_MAX;
}

constexpr int kStageRows = 32;  // those of one spike word

// A block computes `sample_tile` samples x `lanes * vec` channels of one output position and group,
// or one of `splits` shares of their terms. It is cut into streams of `lanes` threads: one for each
// of `shares` shares of the terms of each sample.
//
// With many samples the rows are staged in shared memory instead: every stream then takes the whole
// receptive field, for `stream_samples` samples of its own.
struct UnsharedConvConfig {
  bool staged;
  int vec;             // neighbouring output channels per thread: kUnsharedConvVec, or 1
  int stream_samples;  // if staged
  int sample_tile;     // of a block; a power of two unless staged
  int lanes;           // threads per stream: a power of two up to 32
  int shares;          // streams of a sample: a power of two, 1 if staged
  bool keep_rows;      // in the L1 cache, for other samples of the block
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
    // Two stages, a row of zeros before each; a weight takes two bytes (int8) or four.
    const int of_lane = kUnsharedConvVec * (p.weight_dtype == DType::kInt8 ? 2 : 4);
    config.shared_bytes = 2 * (1 + kStageRows) * config.lanes * of_lane;
  } else {
    config.threads = config.lanes * config.sample_tile * config.shares;
    const int partial = config.shares > 1 ? config.threads * config.vec * 4 : 0;
    const int lists = config.threads * 32 + config.threads / config.lanes * kUnsharedConvListFill;
    config.shared_bytes = std::max(partial, lists * 4);
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

// Many samples whose rows would be read from the cache too slowly: of float32, or so narrow that a
// list is short. At least eight streams, of which each has the rows of four to be brought to shared
// memory, and blocks enough for a device.
inline bool choose_staged(const UnsharedConvParams& p, UnsharedConvConfig& config) {
  constexpr int64_t kEnoughBlocks = 192;
  const bool wide = p.weight_dtype == DType::kFloat32 && config.lanes >= 16;
  const bool narrow = config.lanes == 4;
  if (config.vec == 1 || p.N <= 32 || !(wide || narrow)) return false;
  UnsharedConvConfig staged = config;
  staged.staged = true;
  staged.splits = staged.shares = 1;
  staged.threads = std::max(8 * config.lanes, 64);
  staged.stream_samples = config.lanes >= 8 ? 8 : 4;
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

  const bool long_rows = bytes == 4;
  // Slices of a row that leave room for more samples, which find each other's rows in the cache.
  constexpr int kSliceBytes = 256;
  if (p.N > 4 && config.lanes * config.vec * bytes > kSliceBytes) config.lanes /= 2;
  config.keep_rows = p.N * bytes >= 32;
  const int streams = (long_rows ? kUnsharedConvMaxThreads : 128) / config.lanes;
  config.sample_tile = 1;
  while (config.sample_tile < p.N && config.sample_tile < streams) config.sample_tile *= 2;
  config.shares = std::max(1, 32 / (config.lanes * config.sample_tile));
  config.splits = 1;

  // Few samples and positions leave a large device idle: then streams share the receptive field of
  // a sample, rather than take other samples or more than a cache line of a row, and, if these are
  // not enough, blocks do. A share has six words, or two where most of the device would be idle.
  constexpr int kCacheLine = 128;
  const int64_t wanted_warps = long_rows ? 8192 : 4096;
  const int64_t words = p.KH * p.KW * ((p.Cin_g + 31) / 32);
  const auto warps = [&] {
    const UnsharedConvConfig complete = complete_unshared_conv_config(p, config);
    return complete.blocks * (complete.threads / 32);
  };
  const auto wants_more_shares = [&] {
    const int64_t few_words = warps() < wanted_warps / 2 ? 2 : 6;
    return warps() > 0 && warps() < wanted_warps &&
           2 * few_words * config.shares * config.splits <= words;
  };
  while (wants_more_shares()) {
    if (config.lanes * config.sample_tile * config.shares == kUnsharedConvMaxThreads) {
      if (config.sample_tile > 1) {
        config.sample_tile /= 2;
      } else if (config.lanes * config.vec * bytes > kCacheLine) {
        config.lanes /= 2;
      } else {
        break;
      }
    }
    config.shares *= 2;
  }
  while (wants_more_shares() && warps() < wanted_warps / 2 && config.splits < kMostSplits) {
    config.splits *= 2;
  }
  return complete_unshared_conv_config(p, config);
}

// Sums go through memory to a second pass if several blocks share them.
inline bool needs_second_pass(const UnsharedConvConfig& config) { return config.splits > 1; }

// [splits, N, OH, OW, Cout], float or int32_t.
inline int64_t workspace_bytes(const UnsharedConvParams& p, const UnsharedConvConfig& config) {
  return config.splits * p.N * p.G * p.Cout_g * p.OH * p.OW * int64_t{sizeof(float)};
}

inline int64_t unshared_conv_workspace_bytes(const UnsharedConvParams& p,
                                             const UnsharedConvConfig& config) {
  return needs_second_pass(config) ? workspace_bytes(p, config) : 0;
}

}  // namespace realspike
