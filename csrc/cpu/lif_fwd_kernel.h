#pragma once

#include <cstdint>

#include "cpu/lif_lanes.h"
#include "cpu/lif_step.h"

// Inner loops run over neighbouring neurons and are free of branches, so they vectorise.

namespace realspike {
namespace {

// A timestep's saved bits, and the word that holds those of four timesteps.
template <bool kTernary>
struct SavedBits {
  using Word = uint8_t;
  static constexpr int kPerStep = 2;
};
template <>
struct SavedBits<true> {
  using Word = uint16_t;
  static constexpr int kPerStep = 4;
};

// kSteps consecutive timesteps of `count` neurons; v stays in a register meanwhile.
template <class Element, bool kSaveBits, bool kTernary, bool kHardReset, int kSteps,
          class Storage = typename Element::Storage,
          class Word = typename SavedBits<kTernary>::Word>
void lif_fwd_steps(const LifForward& p, int64_t count,
                   const Storage* __restrict x,          // [kSteps, count], x_stride_t apart
                   const Storage* __restrict amplitude,  // [count]
                   const float* __restrict decay,        // [count]
                   const float* __restrict v_threshold,  // [count]
                   float* __restrict v,                  // [count]
                   Storage* __restrict y,                // [kSteps, count], N apart
                   Word* __restrict bits) {              // [count]
  const float v_reset = p.v_reset, width = p.surrogate_scale;
  const uint32_t soft = mask_if(p.reset == Reset::kSoft);
  const int64_t x_stride = p.x_stride_t, y_stride = p.N;
  for (int64_t i = 0; i < count; ++i) {
    // Read whether or not it is emitted: a load under a condition would not vectorise.
    const Storage amplitude_i = amplitude[i];
    const float decay_i = decay[i], threshold_i = v_threshold[i];
    float v_i = v[i];
    uint32_t saved = 0;
    for (int k = 0; k < kSteps; ++k) {
      const float h = decay_i * v_i + Element::widen(x[k * x_stride + i]);
      const uint32_t sign = sign_of(h, mask_if(kTernary));
      const float magnitude = with_sign(h, sign);
      const bool spike = magnitude >= threshold_i;
      const Storage emitted = kTernary ? Element::with_sign(amplitude_i, sign) : amplitude_i;
      y[k * y_stride + i] = spike ? emitted : Storage{};
      v_i = reset<kHardReset>(h, spike, v_reset,
                              kHardReset ? 0.0f : reset_shift(soft, threshold_i, sign));
      if (kSaveBits) {
        constexpr int kBits = SavedBits<kTernary>::kPerStep;
        saved |= (spike ? 1u : 0u) << (kBits * k);
        saved |= (in_window(magnitude - threshold_i, width) ? 2u : 0u) << (kBits * k);
        if (kTernary) saved |= (sign >> 31) << (kBits * k + 2);
      }
    }
    v[i] = v_i;
    if (kSaveBits) bits[i] = static_cast<Word>(saved);
  }
}

template <class Element, bool kSaveBits, bool kTernary, bool kHardReset>
void lif_fwd_block(const LifForward& p, int64_t n, int64_t count,
                   const typename Element::Storage* amplitude, const float* decay,
                   const float* v_threshold) {
  using Storage = typename Element::Storage;
  using Word = typename SavedBits<kTernary>::Word;
  float v[kBlock];
  load_potential(p.v_init, n, count, v);
  const Storage* x = static_cast<const Storage*>(p.x) + n;
  Storage* y = static_cast<Storage*>(p.y) + n;
  for (int64_t t = 0; t < p.T; t += kLifBitsInterval) {
    if (p.save == LifSave::kPotentials && t > 0 && t % kLifPotentialInterval == 0) {
      float* saved = static_cast<float*>(p.saved) + (t / kLifPotentialInterval - 1) * p.N + n;
      for (int64_t i = 0; i < count; ++i) saved[i] = v[i];
    }
    const auto steps = [&](auto function) {
      Word* bits =
          kSaveBits ? static_cast<Word*>(p.saved) + t / kLifBitsInterval * p.N + n : nullptr;
      function(p, count, x + t * p.x_stride_t, amplitude, decay, v_threshold, v, y + t * p.N, bits);
    };
    switch (p.T - t) {
      case 1:
        steps(lif_fwd_steps<Element, kSaveBits, kTernary, kHardReset, 1>);
        break;
      case 2:
        steps(lif_fwd_steps<Element, kSaveBits, kTernary, kHardReset, 2>);
        break;
      case 3:
        steps(lif_fwd_steps<Element, kSaveBits, kTernary, kHardReset, 3>);
        break;
      default:
        steps(lif_fwd_steps<Element, kSaveBits, kTernary, kHardReset, 4>);
    }
  }
  if (p.v_last == nullptr) return;
  for (int64_t i = 0; i < count; ++i) p.v_last[n + i] = v[i];
}

template <class Element>
using ForwardBlock = void (*)(const LifForward&, int64_t n, int64_t count,
                              const typename Element::Storage* amplitude, const float* decay,
                              const float* v_threshold);

template <class Element, bool kSaveBits>
ForwardBlock<Element> choose_forward(const LifForward& p) {
  if (p.reset == Reset::kHard) {
    return p.ternary ? lif_fwd_block<Element, kSaveBits, true, true>
                     : lif_fwd_block<Element, kSaveBits, false, true>;
  }
  return p.ternary ? lif_fwd_block<Element, kSaveBits, true, false>
                   : lif_fwd_block<Element, kSaveBits, false, false>;
}

template <class Element>
void lif_fwd_elements(const LifForward& p, const LifTile& tile) {
  Lanes lanes;
  gather_lanes(p, tile, lanes);
  // In the element type of the output.
  typename Element::Storage amplitude[kLifTileWidth];
  for (int64_t i = 0; i < tile.width; ++i) amplitude[i] = Element::round(lanes.amplitude[i]);
  const auto block = p.save == LifSave::kBits ? choose_forward<Element, true>(p)
                                              : choose_forward<Element, false>(p);
  for_each_block(p, tile, [&](int64_t n, int64_t lane, int64_t count) {
    block(p, n, count, amplitude + lane, lanes.decay + lane, lanes.v_threshold + lane);
  });
}

void lif_fwd_tile(const LifForward& p, const LifTile& tile) {
  switch (p.dtype) {
    case DType::kFloat16:
      return lif_fwd_elements<Float16>(p, tile);
    case DType::kBFloat16:
      return lif_fwd_elements<BFloat16>(p, tile);
    default:
      return lif_fwd_elements<Float32>(p, tile);
  }
}

}  // namespace
}  // namespace realspike
