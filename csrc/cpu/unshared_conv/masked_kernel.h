#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cpu/common/stream.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/emit_spikes.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/masked_bytes.h"
#include "cpu/unshared_conv/masked_floats.h"
#include "cpu/unshared_conv/masked_taps.h"
#include "cpu/unshared_conv/output.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

#if defined(__AVX512F__)

// Few weights: to list the rows that a sample fired, and to leave the loop over them, takes longer
// than to add them. Here every row is added to sums in registers, under a mask of the lanes whose
// sample fired it. There are as many additions as a position has weights, but nothing to look up
// and no branch to predict.

namespace realspike {
namespace {

// Calls f with a mask and a weight of the types that a convolution has.
template <class F>
inline void with_mask(const UnsharedConvParams& p, F f) {
  if (p.weight_dtype == DType::kInt8) return f(uint8_t{}, uint8_t{});
  f(uint16_t{}, float{});
}

void mask_pixels(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const PixelRun& run,
                 void* all_masks) {
  const uint32_t* samples[kMostSamples];
  int64_t count = 0;
  for_each_sample(p, tiles, run, [&](int64_t s, int64_t n) {
    samples[s] = p.spikes + n * p.H * p.W * p.words;
    ++count;
  });
  const int64_t per_group = masks_per_group(p, tiles);
  with_mask(p, [&](auto mask, auto) {
    auto* masks = static_cast<decltype(mask)*>(all_masks);
    masks += run.sample_tile * p.H * p.W * p.G * per_group;
    for (int64_t pixel = run.begin; pixel < run.end; ++pixel) {
      for (int64_t g = 0; g < p.G; ++g) {
        mask_group(p, samples, count, pixel, g, masks + (pixel * p.G + g) * per_group);
      }
    }
  });
}

// All positions of a task. `at` goes from one to the next, and add_channels sums what it has found.
template <class Position>
void run_positions(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                   const UnsharedConvTiles& tiles, const Task& work, Position& at,
                   float* all_currents) {
  const Tile& tile = work.tile;
  ScaleAndBias scale_and_bias(p, tile);
  KeptPositions kept(tiles.kept, work.begin, work.end);
  const int64_t stride_s = tiles.kept * tile.channels;
  for (int64_t position = work.begin; position < work.end; ++position) {
    at.go_to(position);
    scale_and_bias.go_to(position);
    float* const currents = all_currents + (position - kept.first) * tile.channels;
    add_channels(p, at, tile, currents, stride_s);
    const bool whole = kept.ends_with(position);
    for (int64_t s = 0; s < tile.samples; ++s) {
      scale_and_bias.apply(currents + s * stride_s);
      if (neurons == nullptr && whole) {
        write_out(p, tiles.stream, tile, kept, s, all_currents + s * stride_s);
      }
    }
    if (!whole) continue;
    if (neurons != nullptr) emit_spikes(*neurons, tile, kept, all_currents);
    kept = kept.next();
  }
  if (tiles.stream) end_stream();
}

void unshared_conv_masked_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                               const UnsharedConvTiles& tiles, const void* masks, int64_t task,
                               float* currents) {
  with_mask(p, [&](auto mask, auto weight) {
    using Mask = decltype(mask);
    const Task work(p, tiles, task);
    MaskedPosition<Mask, decltype(weight)> at(p, tiles, work, static_cast<const Mask*>(masks));
    run_positions(p, neurons, tiles, work, at, currents);
  });
}

}  // namespace
}  // namespace realspike

#endif
