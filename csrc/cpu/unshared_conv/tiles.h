#pragma once

#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {

// Channels of one group are cut into blocks of at most this many; a spike is a byte within its
// block.
constexpr int64_t kChannelBlock = 128;

// Output positions of a task, at most: contiguous outputs of one channel then fill a cache line.
constexpr int64_t kMostPositions = 16;

// Sums that a task holds, and the samples and (tap, block) pairs of one tile and pass, at most.
constexpr int64_t kMostSums = 32768;
constexpr int64_t kMostSamples = 256;
constexpr int64_t kMostTapsPerPass = 32;
constexpr int64_t kMostRowsPerPass = kMostTapsPerPass * kChannelBlock;

// Taps that a depthwise convolution may have to be done by masks, at most.
constexpr int64_t kMostDepthwiseTaps = 256;

// Taps that a convolution whose rows are all added may have, at most.
constexpr int64_t kMostMaskedTaps = 64;

// Memory that a task owns while it runs.
struct TaskMemory {
  float* currents;  // [samples, kept, channels]: finished ones
  void* weights;    // depthwise: [taps, channels, up to whole words], of 4 bytes
};

// How the work is cut. A task is a run of positions, for one group, one tile of output channels and
// one tile of samples. Within a position, the rows of `blocks_per_pass` (tap, block) pairs are
// added for every sample before the next ones, so that the weight rows of a pass stay in cache for
// all samples that fired them. A pass that holds all of a position is the order sample by sample.
// No choice here changes a bit of the result.
struct UnsharedConvTiles {
  int64_t timesteps;  // that a tile of samples has of each of its sequences: 1, or all of them
  int64_t positions;
  int64_t channels;
  int64_t samples;  // a multiple of timesteps; timestep outermost
  int64_t blocks_per_pass;
  int64_t kept;  // positions whose finished currents wait until they are written together
  bool prefetch;
  bool stream;  // the output leaves the caches before it is read
  int64_t position_tiles;
  int64_t channel_tiles;
  int64_t sample_tiles;
  int64_t tasks;
  int64_t blocks;  // of input channels: ceil(Cin_g / kChannelBlock)
};

// Where all rows are added, the sums of so many samples, of as many channels each, share a
// register.
constexpr int kQuad = 4;
inline int64_t sample_quads(const UnsharedConvTiles& tiles) {
  return (tiles.samples + kQuad - 1) / kQuad;
}

// Whether all rows are added under masks, where an instruction set can do that, instead of those
// that a list names. Pure likewise.
bool adds_all_rows(const UnsharedConvParams& params);

// Pure: depends on the sizes, the type of the weights and the number of threads alone.
UnsharedConvTiles choose_unshared_conv_tiles(const UnsharedConvParams& params, int64_t timesteps,
                                             int num_threads);

}  // namespace realspike
