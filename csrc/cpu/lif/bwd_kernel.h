#pragma once

#include <cstdint>

#include "cpu/lif/bwd_bits_kernel.h"
#include "cpu/lif/bwd_recompute_kernel.h"

namespace realspike {
namespace {

template <class Element>
void lif_bwd_elements(const LifBackward& p, const LifTile& tile) {
  Lanes lanes;
  gather_lanes(p, tile, what_varies(p), lanes);
  LaneSums sums;
  load_potential(nullptr, 0, tile.width, sums.amplitude);
  load_potential(nullptr, 0, tile.width, sums.decay);
  load_potential(nullptr, 0, tile.width, sums.v_threshold);
  const BackwardBlock block =
      p.save == LifSave::kBits ? choose_bits<Element>(p) : lif_bwd_recompute_block<Element>;
  for_each_block(p, tile, [&](int64_t n, int64_t lane, int64_t count) {
    alignas(64) float q[kBlock];
    load_potential(p.grad_v_last, n, count, q);
    block(p, n, count, lane, lanes, q, sums, tile.stream);
    if (p.grad_v_init == nullptr) return;
    for (int64_t i = 0; i < count; ++i) p.grad_v_init[n + i] = q[i];
  });
  if (tile.stream) end_stream();
  const auto store = [&](float* partial, const float* sum) {
    if (partial == nullptr) return;
    partial += tile.chunk * tile.row + tile.column;
    for (int64_t i = 0; i < tile.width; ++i) partial[i] = sum[i];
  };
  store(p.grad_amplitude, sums.amplitude);
  store(p.grad_decay, sums.decay);
  store(p.grad_v_threshold, sums.v_threshold);
}

void lif_bwd_tile(const LifBackward& p, const LifTile& tile) {
  with_element(p.dtype, [&](auto element) { lif_bwd_elements<decltype(element)>(p, tile); });
}

}  // namespace
}  // namespace realspike
