#pragma once

#include <algorithm>
#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"

namespace realspike {

// Channels of a spike word, which are the lanes of a warp.
constexpr int kWordChannels = 32;
// Positions of a block, at most.
constexpr int kDepthwiseWarps = 8;
// Spike words that a block holds at once, each with 32 bits for every channel.
constexpr int kDepthwiseStage = 64;
// Samples whose sums the warps exchange at once, before contiguous outputs are written.
constexpr int kDepthwiseExchange = 8;

// Numbers of shared memory from one position to the next in that exchange. A warp reads
// neighbouring positions and channels, 32 numbers in all; with this pitch they lie in 32 different
// banks.
constexpr int depthwise_pitch(int warps) { return kWordChannels + kWordChannels / warps; }

// Numbers from one sample to the next.
constexpr int kDepthwiseExchangePitch = kDepthwiseWarps * depthwise_pitch(kDepthwiseWarps);

// Shared memory holds spike words first, then the sums that are exchanged.
constexpr int kDepthwiseSharedBytes =
    4 * std::max(kDepthwiseStage * kWordChannels, kDepthwiseExchange* kDepthwiseExchangePitch);

// One input and one output channel per group: a row of weights would be one number.
inline bool is_depthwise(const UnsharedConvParams& p) { return p.Cin_g == 1 && p.Cout_g == 1; }

// Whether an int holds every spike word of a sample, every tap, the rows and columns that taps
// read, on the map or beside it, and the bits of one row of the map.
inline bool depthwise_fits(const UnsharedConvParams& p) {
  const auto fits = [](int64_t number) { return number < INT32_MAX; };
  return fits(p.H * p.W * p.words) && fits(p.W * 32) && fits(p.KH * p.KW) && fits(p.padding_h) &&
         fits(p.padding_w) && fits((p.OH - 1) * p.stride_h + (p.KH - 1) * p.dilation_h) &&
         fits((p.OW - 1) * p.stride_w + (p.KW - 1) * p.dilation_w);
}

// The two tiles that there are.
constexpr int kDepthwiseFewSamples = 8;
constexpr int kDepthwiseManySamples = 32;

// A block computes `sample_tile` samples of the 32 channels of a spike word at `warps` neighbouring
// output positions of one row.
struct DepthwiseConfig {
  int sample_tile;  // kDepthwiseFewSamples or kDepthwiseManySamples
  int warps;        // a power of two up to kDepthwiseWarps
  int64_t sample_tiles;
  int64_t column_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from the other ones.
inline DepthwiseConfig complete_depthwise_config(const UnsharedConvParams& p,
                                                 DepthwiseConfig config) {
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.column_tiles = ceil_div(p.OW, config.warps);
  config.blocks = config.sample_tiles * p.words * config.column_tiles * p.OH;
  return config;
}

inline DepthwiseConfig choose_depthwise_config(const UnsharedConvParams& p) {
  // Two blocks for each multiprocessor of a large device.
  constexpr int64_t kEnoughBlocks = 264;
  DepthwiseConfig config{};
  config.warps = 1;
  while (config.warps < kDepthwiseWarps && config.warps < p.OW) config.warps *= 2;
  // The more samples a block has, the fewer blocks load a weight and turn a spike word.
  config.sample_tile = kDepthwiseManySamples;
  config = complete_depthwise_config(p, config);
  if (p.N > kDepthwiseManySamples / 2 && config.blocks >= kEnoughBlocks) return config;
  config.sample_tile = kDepthwiseFewSamples;
  return complete_depthwise_config(p, config);
}

}  // namespace realspike
