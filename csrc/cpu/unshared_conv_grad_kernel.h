#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv_passes.h"
#include "cpu/unshared_conv_spikes.h"
#include "cpu/unshared_conv_tiles.h"

namespace realspike {
namespace {

// The gradients of a sample's outputs at one position, side by side.
inline void gather_grad_out(const UnsharedConvGradWeight& p, const Tile& tile, int64_t n,
                            int64_t position, float* __restrict line) {
  const int64_t first = tile.group * p.Cout_g + tile.first_channel;
  const float* from =
      p.grad_out + n * p.out_stride_n + first * p.out_stride_c + position * p.out_stride_p;
  for (int64_t c = 0; c < tile.channels; ++c) line[c] = from[c * p.out_stride_c];
}

// The forward task the other way round: the listed rows are added to. All samples, one after the
// other; the rows of a pass stay in cache for them.
void unshared_conv_grad_weight_task(const UnsharedConvGradWeight& p, const UnsharedConvTiles& tiles,
                                    int64_t task) {
  const Task work(p, tiles, task * tiles.sample_tiles);
  const Tile& tile = work.tile;
  Passes<float> passes(p, tiles, tile, p.grad_weight, work.begin, work.end);
  Pass<float> pass;
  RowList list;
  float line[kMostSums];
  while (passes.next(&pass)) {
    for (int64_t n = 0; n < p.N; ++n) {
      list.collect(p, tiles.lists, tile, pass, n);
      if (list.size == 0) continue;
      gather_grad_out(p, tile, n, pass.position, line);
      for (int64_t j = 0; j < list.size; ++j) {
        float* __restrict row = pass.rows + list.rows[j] * p.Cout_g;
        for (int64_t c = 0; c < tile.channels; ++c) row[c] += line[c];
      }
    }
  }
}

}  // namespace
}  // namespace realspike
