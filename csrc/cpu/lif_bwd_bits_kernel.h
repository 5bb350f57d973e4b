#pragma once

#include <cstdint>

#include "cpu/lif_fwd_kernel.h"

// Backward. q is the gradient that reaches v[t]; it enters a step as dL/dv[t] and leaves it as
// decay * grad_h[t], which is dL/dv[t-1].

namespace realspike {
namespace {

// Sums over time and rows for the columns of a tile.
struct LaneSums {
  float amplitude[kLifTileWidth];
  float decay[kLifTileWidth];
  float v_threshold[kLifTileWidth];
};

using BackwardBlock = void (*)(const LifBackward&, int64_t n, int64_t count, int64_t lane,
                               const Lanes&, float* q, LaneSums&);

// kSteps timesteps from the saved bits; the reset is detached and the surrogate rectangular.
template <class Element, bool kTernary, bool kHardReset, int kSteps,
          class Storage = typename Element::Storage,
          class Word = typename SavedBits<kTernary>::Word>
void lif_bwd_bits_steps(const LifBackward& p, int64_t count,
                        const Storage* __restrict grad_y,   // [kSteps, count], N apart
                        const Word* __restrict bits,        // [count]
                        const float* __restrict amplitude,  // [count]
                        const float* __restrict decay,      // [count]
                        float* __restrict q,                // [count]
                        float* __restrict grad_amplitude,   // [count]
                        Storage* __restrict grad_x) {       // [kSteps, count], N apart
  constexpr int kBits = SavedBits<kTernary>::kPerStep;
  const float slope = 1.0f / p.surrogate_scale;
  const int64_t stride = p.N;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t saved = bits[i];
    const float amplitude_i = amplitude[i], decay_i = decay[i];
    float q_i = q[i];
    float sum = grad_amplitude[i];
    for (int k = kSteps - 1; k >= 0; --k) {
      const bool spike = (saved >> (kBits * k)) & 1u;
      const bool window = (saved >> (kBits * k + 1)) & 1u;
      const float g = Element::widen(grad_y[k * stride + i]);
      const float through_spike = window ? amplitude_i * g * slope : 0.0f;
      const float through_state = kHardReset && spike ? 0.0f : q_i;
      const float grad_h = through_spike + through_state;
      grad_x[k * stride + i] = Element::round(grad_h);
      q_i = decay_i * grad_h;
      const uint32_t sign = kTernary ? (saved >> (kBits * k + 2)) << 31 : 0u;
      sum += spike ? with_sign(g, sign) : 0.0f;
    }
    q[i] = q_i;
    grad_amplitude[i] = sum;
  }
}

template <class Element, bool kTernary, bool kHardReset>
void lif_bwd_bits_block(const LifBackward& p, int64_t n, int64_t count, int64_t lane,
                        const Lanes& lanes, float* q, LaneSums& sums) {
  using Storage = typename Element::Storage;
  using Word = typename SavedBits<kTernary>::Word;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const Word* saved = static_cast<const Word*>(p.saved) + n;
  for (int64_t t = (p.T - 1) / kLifBitsInterval * kLifBitsInterval; t >= 0; t -= kLifBitsInterval) {
    const auto steps = [&](auto function) {
      function(p, count, grad_y + t * p.N, saved + t / kLifBitsInterval * p.N,
               lanes.amplitude + lane, lanes.decay + lane, q, sums.amplitude + lane,
               grad_x + t * p.N);
    };
    switch (p.T - t) {
      case 1:
        steps(lif_bwd_bits_steps<Element, kTernary, kHardReset, 1>);
        break;
      case 2:
        steps(lif_bwd_bits_steps<Element, kTernary, kHardReset, 2>);
        break;
      case 3:
        steps(lif_bwd_bits_steps<Element, kTernary, kHardReset, 3>);
        break;
      default:
        steps(lif_bwd_bits_steps<Element, kTernary, kHardReset, 4>);
    }
  }
}

template <class Element>
BackwardBlock choose_bits(const LifBackward& p) {
  if (p.reset == Reset::kHard) {
    return p.ternary ? lif_bwd_bits_block<Element, true, true>
                     : lif_bwd_bits_block<Element, false, true>;
  }
  return p.ternary ? lif_bwd_bits_block<Element, true, false>
                   : lif_bwd_bits_block<Element, false, false>;
}

}  // namespace
}  // namespace realspike
