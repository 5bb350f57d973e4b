#pragma once

#include <cstdint>

#include "cpu/common/element.h"
#include "cpu/lif/fwd_kernel.h"

// The spikes of a forward pass, made again from the bits that it saved.

namespace realspike {
namespace {

// kSteps timesteps of `count` neurons, whose bits begin at `first_bit` of their words.
template <class Element, bool kTernary, int kSteps, class Storage = typename Element::Storage>
void lif_spikes_steps(int64_t count,
                      const typename SavedBits<kTernary>::Word* __restrict bits,  // [count]
                      int first_bit,
                      const Storage* __restrict amplitude,      // [count]
                      Storage* __restrict y, int64_t stride) {  // [kSteps, count], stride apart
  constexpr int kBits = SavedBits<kTernary>::kPerStep;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t saved = static_cast<uint32_t>(bits[i]) >> first_bit;
    const Storage amplitude_i = amplitude[i];
    for (int k = 0; k < kSteps; ++k) {
      const uint32_t sign = saved >> (kBits * k + 2) << 31;
      const Storage emitted = kTernary ? Element::with_sign(amplitude_i, sign) : amplitude_i;
      y[k * stride + i] = (saved >> (kBits * k) & 1u) != 0 ? emitted : Storage{};
    }
  }
}

template <class Element, bool kTernary>
void lif_spikes_tile(const LifForward& p, const LifTile& tile) {
  using Storage = typename Element::Storage;
  alignas(64) float gathered[kLifTileWidth];
  alignas(64) Storage amplitude[kLifTileWidth];
  gather(p.amplitude, tile.column, tile.width, gathered);
  for (int64_t i = 0; i < tile.width; ++i) amplitude[i] = Element::round(gathered[i]);
  const auto* saved = static_cast<const typename SavedBits<kTernary>::Word*>(p.saved);
  for_each_block(p.N, tile, [&](int64_t n, int64_t lane, int64_t count) {
    Storage* y = static_cast<Storage*>(p.y) + n;
    for_each_stretch(p.T, [&](int64_t t, auto steps) {
      lif_spikes_steps<Element, kTernary, steps.value>(
          count, saved + t / kLifBitsInterval * p.N + n,
          static_cast<int>(t % kLifBitsInterval) * SavedBits<kTernary>::kPerStep, amplitude + lane,
          y + t * p.N, p.N);
    });
  });
}

}  // namespace
}  // namespace realspike
