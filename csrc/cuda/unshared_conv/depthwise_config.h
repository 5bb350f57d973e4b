#pragma once

#include <algorithm>
#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

// Channels of a spike word, which are the lanes of a warp.
constexpr int kUnsharedConvWordChannels = 32;
// Positions of a block, at most.
constexpr int kUnsharedConvDepthwiseWarps = 8;
// Spike words that a block holds at once, each with 32 bits for every channel.
constexpr int kUnsharedConvDepthwiseStage = 64;
// Samples whose sums change places before contiguous outputs are written.
constexpr int kUnsharedConvDepthwiseExchange = 8;

// From one position to the next while they do: as many neighbouring positions and channels as a
// warp has lanes lie in different banks of shared memory.
constexpr int depthwise_pitch(int warps) {
  return kUnsharedConvWordChannels + kUnsharedConvWordChannels / warps;
}

// And from one sample to the next.
constexpr int kUnsharedConvDepthwiseExchangePitch =
    kUnsharedConvDepthwiseWarps * depthwise_pitch(kUnsharedConvDepthwiseWarps);

// For the spike words, or for the sums.
constexpr int kUnsharedConvDepthwiseSharedBytes =
    4 * std::max(kUnsharedConvDepthwiseStage * kUnsharedConvWordChannels,
                 kUnsharedConvDepthwiseExchange* kUnsharedConvDepthwiseExchangePitch);

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
constexpr int kUnsharedConvFewSamples = 8;
constexpr int kUnsharedConvManySamples = 32;

// [N, OH, OW, Cout], float or int32_t; for neurons alone.
inline int64_t depthwise_workspace_bytes(const UnsharedConvParams& p) {
  return p.N * p.OH * p.OW * p.G * int64_t{sizeof(float)};
}

// A block computes `sample_tile` samples of the 32 channels of a spike word at `warps` neighbouring
// output positions of one row.
struct UnsharedConvDepthwiseConfig {
  int sample_tile;  // kUnsharedConvFewSamples or kUnsharedConvManySamples
  int warps;        // a power of two up to kUnsharedConvDepthwiseWarps
  int64_t sample_tiles;
  int64_t column_tiles;
  int64_t blocks;  // 0: there is nothing to compute
};

// The parts of a configuration that follow from the other ones.
inline UnsharedConvDepthwiseConfig complete_unshared_conv_depthwise_config(
    const UnsharedConvParams& p, UnsharedConvDepthwiseConfig config) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  config.sample_tiles = ceil_div(p.N, config.sample_tile);
  config.column_tiles = ceil_div(p.OW, config.warps);
  config.blocks = config.sample_tiles * p.words * config.column_tiles * p.OH;
  return config;
}

inline UnsharedConvDepthwiseConfig choose_unshared_conv_depthwise_config(
    const UnsharedConvParams& p) {
  // Two for each multiprocessor of a large device.
  constexpr int64_t kEnoughBlocks = 264;
  UnsharedConvDepthwiseConfig config{};
  config.warps = 1;
  while (config.warps < kUnsharedConvDepthwiseWarps && config.warps < p.OW) config.warps *= 2;
  // In larger tiles every weight is loaded and every spike word turned less often.
  config.sample_tile = kUnsharedConvManySamples;
  config = complete_unshared_conv_depthwise_config(p, config);
  if (p.N > kUnsharedConvManySamples / 2 && config.blocks >= kEnoughBlocks) return config;
  config.sample_tile = kUnsharedConvFewSamples;
  return complete_unshared_conv_depthwise_config(p, config);
}

}  // namespace realspike
