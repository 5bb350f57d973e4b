#pragma once

#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

// Channels of one group are cut into blocks of at most this many; a spike is a byte within its
// block.
constexpr int64_t kChannelBlock = 128;

// Sums that a task holds, and the samples and (tap, block) pairs of one tile and pass, at most.
constexpr int64_t kMostSums = 32768;
constexpr int64_t kMostSamples = 256;
constexpr int64_t kMostTapsPerPass = 32;
constexpr int64_t kMostRowsPerPass = kMostTapsPerPass * kChannelBlock;

// Bytes of lists that are read at once, hence may be read beyond the last list.
constexpr int64_t kListPadding = 32;

// The spikes of each pixel as lists of channel numbers, decoded once and read by every output
// position whose window covers the pixel. List (n, h, w, g, block) is
//   spikes[begin ... end) with begin = starts[row * (per_row + 1) + i], end = the next entry,
// row = n * H + h, i = (w * G + g) * blocks + block, and spikes counted from row * row_capacity.
struct SpikeLists {
  const uint32_t* starts;  // [N * H, per_row + 1]
  const uint8_t* spikes;   // [N * H, row_capacity]
  const uint32_t* fired;   // [sample_tiles, H, W, words]: in any sample of the tile
  int64_t per_row;         // W * G * blocks
  int64_t row_capacity;    // W * G * Cin_g, padded: powers of two would share one set of the cache
  int64_t blocks;          // ceil(Cin_g / kChannelBlock)
};

// How the work is cut. A task is a run of positions, for one group, one tile of output channels and
// one tile of samples. Within a position, the rows of `blocks_per_pass` (tap, block) pairs are
// added for every sample before the next ones, so that the weight rows of a pass stay in cache for
// all samples that fired them. A pass that holds all of a position is the order sample by sample.
// No choice here changes a bit of the result.
struct UnsharedConvTiles {
  int64_t positions;
  int64_t channels;
  int64_t samples;
  int64_t blocks_per_pass;
  bool prefetch;
  int64_t position_tiles;
  int64_t channel_tiles;
  int64_t sample_tiles;
  int64_t tasks;
  SpikeLists lists;
};

// Pure: depends on the sizes, the type of the weights and the number of threads alone.
UnsharedConvTiles choose_unshared_conv_tiles(const UnsharedConvParams& params, int num_threads);

}  // namespace realspike
