#include "cpu/unshared_conv_tiles.h"

#include <algorithm>

namespace realspike {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

UnsharedConvTiles choose_unshared_conv_tiles(const UnsharedConvParams& p, int num_threads,
                                             int64_t widest_channels) {
  constexpr int64_t kPassBytes = 64 * 1024;            // of weights: they stay in the L2 cache
  constexpr int64_t kPrefetchBytes = 8 * 1024 * 1024;  // below it the weights stay in the L3 cache
  constexpr int64_t kLineFloats = 16;
  constexpr int64_t kTasksPerThread = 4;

  UnsharedConvTiles tiles{};
  tiles.lists.blocks = ceil_div(p.Cin_g, kChannelBlock);
  tiles.lists.per_row = p.W * p.G * tiles.lists.blocks;
  tiles.lists.row_capacity = p.W * p.G * p.Cin_g;

  tiles.channels = std::min(p.Cout_g, widest_channels);
  tiles.channel_tiles = ceil_div(p.Cout_g, tiles.channels);
  tiles.samples = std::min(p.N, kMostSamples);

  const int64_t wanted = num_threads == 1 ? 1 : kTasksPerThread * num_threads;
  const int64_t positions = p.OH * p.OW;
  const int64_t fixed_tasks = p.G * tiles.channel_tiles;
  // Few positions (a linear layer has one): share out the samples as well.
  if (positions * fixed_tasks * ceil_div(p.N, tiles.samples) < wanted) {
    tiles.samples = std::max<int64_t>(1, p.N * positions * fixed_tasks / wanted);
  }
  tiles.sample_tiles = ceil_div(p.N, tiles.samples);
  // A run of positions fills whole cache lines of a contiguous output.
  tiles.positions = std::clamp<int64_t>(positions * fixed_tasks * tiles.sample_tiles / wanted, 1,
                                        std::min(positions, kLineFloats));
  tiles.position_tiles = ceil_div(positions, tiles.positions);
  tiles.tasks = tiles.position_tiles * p.G * tiles.channel_tiles * tiles.sample_tiles;

  const int64_t block_bytes =
      std::min(p.Cin_g, kChannelBlock) * tiles.channels * int64_t{sizeof(float)};
  tiles.blocks_per_pass =
      std::clamp<int64_t>(kPassBytes / block_bytes, 1, p.KH * p.KW * tiles.lists.blocks);
  const int64_t weight_bytes =
      positions * p.G * p.KH * p.KW * p.Cin_g * p.Cout_g * int64_t{sizeof(float)};
  tiles.prefetch = p.weight_stride_p != 0 && weight_bytes > kPrefetchBytes;
  return tiles;
}

}  // namespace realspike
