#pragma once

#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

// Channels of one group are cut into blocks of at most this many; a spike is a byte within its
// block.
constexpr int64_t kChannelBlock = 128;

// Output positions of a task, at most: contiguous outputs of one channel then fill a cache line.
constexpr int64_t kMostPositions = 16;

// Output channels of a task, at most.
constexpr int64_t kMostChannels = 512;

// Sums that a task holds, and the samples and (tap, block) pairs of one tile and pass, at most.
constexpr int64_t kMostSums = 32768;
constexpr int64_t kMostSamples = 256;
constexpr int64_t kMostTapsPerPass = 32;
constexpr int64_t kMostRowsPerPass = kMostTapsPerPass * kChannelBlock;

// How the work is cut. A task is a run of positions, for one group, one tile of output channels and
// one tile of samples. A position is worked through in passes of `blocks_per_pass` (tap, block)
// pairs: all samples add the rows of a pass before the next pass begins, so that these rows stay in
// cache for all samples that fired them. No choice here changes a bit of the result.
struct UnsharedConvTiles {
  int64_t timesteps;  // that a tile of samples has of each of its sequences: 1, or all of them
  int64_t positions;
  int64_t channels;
  int64_t samples;  // a multiple of timesteps; timestep outermost
  int64_t blocks_per_pass;
  int64_t kept;  // positions whose finished currents wait until they are used together
  bool prefetch;
  bool stream;  // the output leaves the caches before it is read
  int64_t position_tiles;
  int64_t channel_tiles;
  int64_t sample_tiles;
  int64_t tasks;
  int64_t blocks;  // of input channels: ceil(Cin_g / kChannelBlock)
};

// Pure: it depends on the sizes, the type of the weights and the number of threads alone.
UnsharedConvTiles choose_unshared_conv_tiles(const UnsharedConvParams& params, int64_t timesteps,
                                             int num_threads);

// Pure. How many positions' currents wait for the neurons behind them.
int64_t choose_emitted_positions(const UnsharedConvTiles& tiles);

}  // namespace realspike
