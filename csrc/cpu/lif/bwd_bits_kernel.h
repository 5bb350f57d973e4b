#pragma once

#include <cstdint>

#include "cpu/lif/fwd_kernel.h"

// Backward. q is the gradient that reaches v[t]; it enters a step as dL/dv[t] and leaves it as
// decay * grad_h[t], which is dL/dv[t-1].

namespace realspike {
namespace {

// The neuron that backward from bits is compiled for. Nobody wants the gradient of a parameter that
// counts as not varying (what_varies).
template <class Element, bool kTernary, ResetForm kReset, Vary kVary>
using BitsForm = NeuronForm<Element, true, kTernary, kReset, kVary>;

// kSteps timesteps from the saved bits; the reset is detached and the surrogate rectangular.
template <class Form, int kSteps, class Storage = typename Form::Storage,
          class Word = typename Form::Word>
void lif_bwd_bits_steps(const LifBackward& p, int64_t count,
                        const Storage* __restrict grad_y,  // [kSteps, count], N apart
                        const Word* __restrict bits,       // [count]
                        int first_bit,
                        const Parameter<float, Form::kVary != Vary::kNothing> amplitude,  // [count]
                        const Parameter<float, Form::kVary == Vary::kEverything> decay,   // [count]
                        float* __restrict q,                                              // [count]
                        float* __restrict grad_amplitude,  // [count], kVary alone
                        Storage* __restrict grad_x,        // [kSteps, count], grad_x_stride apart
                        int64_t grad_x_stride) {
  using Element = typename Form::Element;
  constexpr int kBits = SavedBits<Form::kTernary>::kPerStep;
  constexpr bool kSum = Form::kVary != Vary::kNothing;
  const float slope = 1.0f / p.surrogate_scale;
  const int64_t stride = p.N;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t saved = static_cast<uint32_t>(bits[i]) >> first_bit;
    const float amplitude_i = amplitude[i], decay_i = decay[i];
    float q_i = q[i];
    float sum = kSum ? grad_amplitude[i] : 0.0f;
    for (int k = kSteps - 1; k >= 0; --k) {
      const bool spike = saved & (1u << (kBits * k));
      const bool window = saved & (2u << (kBits * k));
      const float g = Element::widen(grad_y[k * stride + i]);
      const float through_spike = window ? amplitude_i * g * slope : 0.0f;
      const float through_state = Form::kReset == ResetForm::kHard && spike ? 0.0f : q_i;
      const float grad_h = through_spike + through_state;
      grad_x[k * grad_x_stride + i] = Element::round(grad_h);
      q_i = decay_i * grad_h;
      const uint32_t sign = Form::kTernary ? (saved >> (kBits * k + 2)) << 31 : 0u;
      if (kSum) sum += spike ? with_sign(g, sign) : 0.0f;
    }
    q[i] = q_i;
    if (kSum) grad_amplitude[i] = sum;
  }
}

// The same, as BitsLoops have it.
template <class Form, int kSteps>
void lif_bwd_bits_lanes(const LifBackward& p, int64_t count, const void* grad_y, const void* bits,
                        int first_bit, const Lanes& lanes, int64_t lane, float* q, LaneSums& sums,
                        void* grad_x, int64_t grad_x_stride) {
  using Storage = typename Form::Storage;
  lif_bwd_bits_steps<Form, kSteps>(
      p, count, static_cast<const Storage*>(grad_y), static_cast<const typename Form::Word*>(bits),
      first_bit, {lanes.amplitude, lane}, {lanes.decay, lane}, q, sums.amplitude + lane,
      static_cast<Storage*>(grad_x), grad_x_stride);
}

template <class Element, bool kTernary, ResetForm kReset, Vary kVary>
constexpr BitsLoops kBitsLoops = {
    {lif_bwd_bits_lanes<BitsForm<Element, kTernary, kReset, kVary>, 1>,
     lif_bwd_bits_lanes<BitsForm<Element, kTernary, kReset, kVary>, 2>,
     lif_bwd_bits_lanes<BitsForm<Element, kTernary, kReset, kVary>, 4>},
    SavedBits<kTernary>::kPerStep,
    sizeof(typename SavedBits<kTernary>::Word),
};

template <class Element>
const BitsLoops& choose_bits(const LifBackward& p) {
  constexpr Vary kEverything = Vary::kEverything;
  constexpr ResetForm kHard = ResetForm::kHard, kShift = ResetForm::kShift;
  // A detached reset that is not hard has no part in backward, whenever it comes.
  if (p.reset != Reset::kHard) {
    return p.ternary ? kBitsLoops<Element, true, kShift, kEverything>
                     : kBitsLoops<Element, false, kShift, kEverything>;
  }
  if (p.ternary) return kBitsLoops<Element, true, kHard, kEverything>;
  switch (what_varies(p)) {
    case Vary::kNothing:
      return kBitsLoops<Element, false, kHard, Vary::kNothing>;
    case Vary::kAmplitude:
      return kBitsLoops<Element, false, kHard, Vary::kAmplitude>;
    default:
      return kBitsLoops<Element, false, kHard, kEverything>;
  }
}

}  // namespace
}  // namespace realspike
