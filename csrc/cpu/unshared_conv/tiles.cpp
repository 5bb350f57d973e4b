#include "cpu/unshared_conv/tiles.h"

#include <algorithm>

#include "core/numbers.h"

namespace realspike {
namespace {

// Bytes of the weights of one pass. The weights of two passes share the L2 cache: this one's and
// the next one's, which are fetched meanwhile. With few samples small passes are best, because they
// spread the fetches evenly. With many samples a pass has to be worth its setup, which loads and
// stores all sums: the narrower a weight, the faster a row is added, and the more rows that takes.
int64_t pass_bytes(int64_t weight_bytes, bool few_samples) {
  if (few_samples) return 48 * 1024;
  switch (weight_bytes) {
    case 4:
      return 64 * 1024;
    case 2:
      return 128 * 1024;
    default:
      return 160 * 1024;
  }
}

}  // namespace

UnsharedConvTiles choose_unshared_conv_tiles(const UnsharedConvParams& p, int64_t timesteps,
                                             int num_threads) {
  constexpr int64_t kFewSamples = 16;
  constexpr int64_t kNarrowTile = 128;
  constexpr int64_t kPrefetchBytes = 8 * 1024 * 1024;  // below it the weights stay in the L3 cache
  constexpr int64_t kKeptFloats = 64;
  constexpr int64_t kTasksPerThread = 4;
  constexpr int64_t kWordBits = 32;  // a tile's spikes fill whole words

  UnsharedConvTiles tiles{};
  tiles.blocks = ceil_div(p.Cin_g, kChannelBlock);

  tiles.timesteps = timesteps;
  const int64_t sequences = p.N / timesteps;
  int64_t sequences_per_tile = std::min(sequences, kMostSamples / timesteps);
  tiles.samples = sequences_per_tile * timesteps;

  // With many samples, wide rows spread the setup of a list over more channels. With few, memory
  // decides: narrow tiles of one position follow each other, and each finds in the L3 cache what
  // the hardware fetched beyond the rows of the tile before.
  const bool few_samples = p.N <= kFewSamples;
  tiles.channels =
      few_samples ? kNarrowTile : std::clamp(kMostSums / tiles.samples, kNarrowTile, kMostChannels);
  tiles.channels -= tiles.channels % kWordBits;
  tiles.channels = std::min(p.Cout_g, tiles.channels);
  tiles.channel_tiles = ceil_div(p.Cout_g, tiles.channels);

  const int64_t wanted = num_threads == 1 ? 1 : kTasksPerThread * num_threads;
  const int64_t positions = p.OH * p.OW;
  const int64_t fixed_tasks = p.G * tiles.channel_tiles;
  // Few positions (a linear layer has one): share out the samples as well.
  if (positions * fixed_tasks * ceil_div(sequences, sequences_per_tile) < wanted) {
    sequences_per_tile = std::max<int64_t>(1, sequences * positions * fixed_tasks / wanted);
    tiles.samples = sequences_per_tile * timesteps;
  }
  tiles.sample_tiles = ceil_div(sequences, sequences_per_tile);
  // A run of positions fills whole cache lines of a contiguous output.
  tiles.positions = std::clamp<int64_t>(positions * fixed_tasks * tiles.sample_tiles / wanted, 1,
                                        std::min(positions, kMostPositions));
  tiles.position_tiles = ceil_div(positions, tiles.positions);
  // The outputs of the next sample lie far away, and powers of two apart, which caches map to few
  // places. So a sample's are written when they fill a line or, channels side by side, a few.
  const int64_t side_by_side =
      p.out_stride_c == 1 ? ceil_div(kKeptFloats, tiles.channels) : kMostPositions;
  tiles.kept = std::min(tiles.positions, side_by_side);
  tiles.tasks = tiles.position_tiles * p.G * tiles.channel_tiles * tiles.sample_tiles;

  // Equal passes: a short one would leave too little time to fetch the rows of a long one.
  const int64_t weight_bytes = bytes_of(p.weight_dtype);
  const int64_t block_bytes = std::min(p.Cin_g, kChannelBlock) * tiles.channels * weight_bytes;
  const int64_t blocks = std::max<int64_t>(1, p.KH * p.KW * tiles.blocks);
  const int64_t most =
      std::clamp<int64_t>(pass_bytes(weight_bytes, few_samples) / std::max<int64_t>(1, block_bytes),
                          1, std::min(blocks, kMostTapsPerPass));
  tiles.blocks_per_pass = ceil_div(blocks, ceil_div(blocks, most));

  const int64_t weights = positions * p.G * p.KH * p.KW * p.Cin_g * p.Cout_g;
  tiles.prefetch = p.weight_stride_p != 0 && weights * weight_bytes > kPrefetchBytes;
  return tiles;
}

int64_t choose_emitted_positions(const UnsharedConvTiles& tiles) {
  constexpr int64_t kCurrents = 4096;  // they leave the L1 cache some room
  constexpr int64_t kPixels = 16;      // of all sequences: more are worth the loops' setup anyway
  const int64_t sequences = tiles.samples / tiles.timesteps;
  const int64_t most = std::min(kCurrents / (tiles.samples * tiles.channels), kPixels / sequences);
  return std::clamp<int64_t>(most, 1, tiles.positions);
}

}  // namespace realspike
