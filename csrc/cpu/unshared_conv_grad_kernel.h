#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv_kernel.h"
#include "cpu/unshared_conv_passes.h"
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
                                    const SpikeLists& lists, int64_t task) {
  const Task work(p, tiles, task * tiles.sample_tiles);
  Passes<float> passes(p, tiles, work.tile, p.grad_weight, work.begin, work.end);
  Pass<float> pass;
  float line[kMostSums];
  while (passes.next(&pass)) {
    for (int64_t sample_tile = 0; sample_tile < tiles.sample_tiles; ++sample_tile) {
      const Task of_tile(p, tiles, task * tiles.sample_tiles + sample_tile);
      const Tile& tile = of_tile.tile;
      const PassLists<float> selected(p, tiles, lists, of_tile, pass);
      for (int64_t s = 0; s < tile.samples; ++s) {
        gather_grad_out(p, tile, tile.first_sequence + s, pass.position, line);
        for (int64_t k = 0; k < selected.count; ++k) {
          const auto& tap = selected.taps[k];
          const uint8_t* end = tap.spikes + tap.starts[s + 1];
          for (const uint8_t* list = tap.spikes + tap.starts[s]; list != end; ++list) {
            float* __restrict row = pass.rows + (tap.row + *list) * p.Cout_g;
            for (int64_t c = 0; c < tile.channels; ++c) row[c] += line[c];
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace realspike
