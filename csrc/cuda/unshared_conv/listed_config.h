#pragma once

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cuda/unshared_conv/rows_config.h"

namespace realspike {

// A stream of `lanes` threads lists the rows of `lanes` spike words at a time and takes them in
// groups of at most this many; the last one is filled up.
constexpr int kUnsharedConvListFill = 16;

// A block computes `sample_tile` samples x `lanes * vec` channels of one output position and group.
// If `splits` is more than 1, so many blocks share the terms of these sums. A block is cut into
// streams of `lanes` threads; `shares` streams share the terms of a sample.
struct ListedConfig {
  int vec;          // neighbouring output channels per thread: kUnsharedConvVec, or 1
  int sample_tile;  // of a block; a power of two
  int lanes;        // threads per stream: a power of two up to 32
  int shares;       // streams of a sample: a power of two
  bool keep_rows;   // in the L1 cache, for other samples of the block
  int threads;      // per block: a multiple of 32
  int splits;       // blocks that share the receptive field; a second pass adds their sums
  int shared_bytes;
  int64_t sample_tiles;
  int64_t channel_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from the other ones.
inline ListedConfig complete_listed_config(const UnsharedConvParams& p, ListedConfig config) {
  config.threads = config.lanes * config.sample_tile * config.shares;
  const int partial = config.shares > 1 ? config.threads * config.vec * 4 : 0;
  const int lists = config.threads * 32 + config.threads / config.lanes * kUnsharedConvListFill;
  config.shared_bytes = std::max(partial, lists * 4);
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.channel_tiles = ceil_div(p.Cout_g, int64_t{config.lanes} * config.vec);
  config.blocks = config.sample_tiles * config.channel_tiles * config.splits * p.G * p.OH * p.OW;
  return config;
}

inline ListedConfig choose_listed_config(const UnsharedConvParams& p) {
  ListedConfig config{};
  const int bytes = bytes_of(p.weight_dtype);
  config.vec = vec_of_rows(p);
  config.lanes = lanes_of_a_row(p, config.vec);
  const bool long_rows = bytes == 4;
  // Rows are cut into slices where that leaves room for more samples: these find each other's rows
  // in the cache.
  constexpr int kSliceBytes = 256;
  if (p.N > 4 && config.lanes * config.vec * bytes > kSliceBytes) config.lanes /= 2;
  config.keep_rows = p.N * bytes >= 32;
  const int streams = (long_rows ? kUnsharedConvMaxThreads : 128) / config.lanes;
  config.sample_tile = 1;
  while (config.sample_tile < p.N && config.sample_tile < streams) config.sample_tile *= 2;
  config.shares = std::max(1, 32 / (config.lanes * config.sample_tile));
  config.splits = 1;

  // Few samples and positions leave a large device idle. Then streams share the receptive field of
  // a sample: more of them instead of other samples, and instead of more than a cache line of a
  // row. If that is not enough, blocks share it. A share has six words, or two where most of the
  // device would be idle.
  constexpr int kCacheLine = 128;
  const int64_t wanted_warps = long_rows ? 8192 : 4096;
  const int64_t words = p.KH * p.KW * ceil_div(p.Cin_g, 32);
  const auto warps = [&] {
    const ListedConfig complete = complete_listed_config(p, config);
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
  return complete_listed_config(p, config);
}

}  // namespace realspike
