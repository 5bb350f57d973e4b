#pragma once

#include <cstdint>

#include "cpu/lif_tile.h"

namespace realspike {
namespace {

// Neurons whose state stays in the L1 cache while time passes.
constexpr int64_t kBlock = 512;

// The parameters of a tile's columns.
struct Lanes {
  float amplitude[kLifTileWidth];
  float decay[kLifTileWidth];
  float v_threshold[kLifTileWidth];
};

void gather(const PerNeuron& parameter, int64_t n, int64_t count, float* lanes) {
  if (parameter.values == nullptr || parameter.size == 1) {
    const float all = parameter.values == nullptr ? parameter.all : parameter.values[0];
    for (int64_t i = 0; i < count; ++i) lanes[i] = all;
    return;
  }
  int64_t within = n % parameter.inner;
  int64_t index = (n / parameter.inner) % parameter.size;
  for (int64_t i = 0; i < count; ++i) {
    lanes[i] = parameter.values[index];
    if (++within == parameter.inner) {
      within = 0;
      if (++index == parameter.size) index = 0;
    }
  }
}

void gather_lanes(const LifParams& p, const LifTile& tile, Lanes& lanes) {
  gather(p.amplitude, tile.column, tile.width, lanes.amplitude);
  gather(p.decay, tile.column, tile.width, lanes.decay);
  gather(p.v_threshold, tile.column, tile.width, lanes.v_threshold);
}

// Calls block(n, lane, count) for every block of the tile: neurons [n, n + count), which have the
// parameters of the lanes from `lane` on. Rows in ascending order.
template <class Block>
void for_each_block(const LifParams& p, const LifTile& tile, Block block) {
  for (int64_t r = tile.row_begin; r < tile.row_end; ++r) {
    for (int64_t lane = 0; lane < tile.width; lane += kBlock) {
      const int64_t n = r * tile.row + tile.column + lane;
      int64_t count = tile.width - lane < kBlock ? tile.width - lane : kBlock;
      if (count > p.N - n) count = p.N - n;
      if (count > 0) block(n, lane, count);
    }
  }
}

void load_potential(const float* source, int64_t n, int64_t count, float* v) {
  for (int64_t i = 0; i < count; ++i) v[i] = source == nullptr ? 0.0f : source[n + i];
}

}  // namespace
}  // namespace realspike
