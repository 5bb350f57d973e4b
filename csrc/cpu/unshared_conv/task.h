#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {

// Memory that a task owns while it runs.
struct TaskMemory {
  float* currents;  // [samples, kept, channels]: finished ones
  void* weights;    // depthwise: [taps, channels, up to whole words], of 4 bytes
};

namespace {

// The part of the output that a task owns, at each of its positions.
struct Tile {
  int64_t group;
  int64_t first_sequence;
  int64_t sequences;
  int64_t samples;        // all timesteps of its sequences, timestep outermost
  int64_t first_channel;  // within the group
  int64_t channels;
};

// Task number `task` of the grid that the tiles span.
struct Task {
  Task(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t task) {
    sample_tile = task % tiles.sample_tiles;
    task /= tiles.sample_tiles;
    const int64_t channel_tile = task % tiles.channel_tiles;
    task /= tiles.channel_tiles;
    tile.group = task % p.G;
    begin = task / p.G * tiles.positions;
    end = least(begin + tiles.positions, p.OH * p.OW);
    const int64_t per_tile = tiles.samples / tiles.timesteps;
    tile.first_sequence = sample_tile * per_tile;
    tile.sequences = least(p.N / tiles.timesteps - tile.first_sequence, per_tile);
    tile.samples = tile.sequences * tiles.timesteps;
    tile.first_channel = channel_tile * tiles.channels;
    tile.channels = least(p.Cout_g - tile.first_channel, tiles.channels);
  }

  int64_t sample_tile;
  Tile tile;
  int64_t begin;  // positions
  int64_t end;
};

// The number in the batch of sample s of a tile.
inline int64_t sample_of(const UnsharedConvParams& p, const UnsharedConvTiles& tiles,
                         const Tile& tile, int64_t s) {
  const int64_t t = s / tile.sequences, b = s % tile.sequences;
  return t * (p.N / tiles.timesteps) + tile.first_sequence + b;
}

}  // namespace
}  // namespace realspike
