#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv/pass_lists.h"
#include "cpu/unshared_conv/passes.h"
#include "cpu/unshared_conv/rows.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

// The gradients of a sample's outputs at one position, side by side: where they lie, or in `line`.
inline const float* grad_out_of(const UnsharedConvGradWeight& p, const Tile& tile, int64_t n,
                                int64_t position, float* __restrict line) {
  const int64_t first = tile.group * p.Cout_g + tile.first_channel;
  const float* from =
      p.grad_out + n * p.out_stride_n + first * p.out_stride_c + position * p.out_stride_p;
  if (p.out_stride_c == 1) return from;
  for (int64_t c = 0; c < tile.channels; ++c) line[c] = from[c * p.out_stride_c];
  return line;
}

template <int kChannels>
inline void add_to_rows(const float* line, float* rows, int64_t row_stride, const uint16_t* list,
                        int64_t length) {
  constexpr int kVecs = kChannels / kFloats;
  Floats grad[kVecs];
  for (int i = 0; i < kVecs; ++i) grad[i] = load_vector<Floats>(line + i * kFloats);
  for (int64_t k = 0; k < length; ++k) {
    float* const row = rows + list[k] * row_stride;
    for (int i = 0; i < kVecs; ++i) {
      store_vector(row + i * kFloats, load_vector<Floats>(row + i * kFloats) + grad[i]);
    }
  }
}

// Adds the gradients of the outputs to the listed rows, from which the forward pass reads. All
// samples in ascending order; the rows of a pass stay in cache for them.
void unshared_conv_grad_weight_task(const UnsharedConvGradWeight& p, const UnsharedConvTiles& tiles,
                                    const SpikeLists& lists, int64_t task) {
  const Task work(p, tiles, task * tiles.sample_tiles);
  Passes<float> passes(p, tiles, work.tile, p.grad_weight, work.begin, work.end);
  Pass<float> pass;
  float line[kMostSums];
  uint16_t list[kMostRowsPerPass + kListPadding];
  while (passes.next(&pass)) {
    for (int64_t sample_tile = 0; sample_tile < tiles.sample_tiles; ++sample_tile) {
      const Task of_tile(p, tiles, task * tiles.sample_tiles + sample_tile);
      const Tile& tile = of_tile.tile;
      const PassLists<float> selected(p, tiles, lists, of_tile, pass);
      for (int64_t s = 0; s < tile.samples; ++s) {
        const int64_t length = selected.rows_of(s, list);
        const float* grad = grad_out_of(p, tile, tile.first_sequence + s, pass.position, line);
        for_each_run<Float32Row>(tile.channels, [&](auto run, int64_t channel) {
          float* const rows = pass.rows + channel;
          if constexpr (run.kCount > 0) {
            return add_to_rows<run.kCount>(grad + channel, rows, p.Cout_g, list, length);
          }
          for (int64_t k = 0; k < length; ++k) {
            float* __restrict row = rows + list[k] * p.Cout_g;
            for (int64_t c = 0; c < tile.channels - channel; ++c) row[c] += grad[channel + c];
          }
        });
      }
    }
  }
}

}  // namespace
}  // namespace realspike
