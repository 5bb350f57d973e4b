#pragma once

#include <cstdint>

#include "core/neuron.h"
#include "cpu/common/element.h"
#include "cpu/lif/lanes.h"

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

// The neuron that a loop is compiled for. kSaveBits: bits are saved for backward.
template <class ElementType, bool kSaveBitsValue, bool kTernaryValue, ResetForm kResetValue,
          Vary kVaryValue>
struct NeuronForm {
  using Element = ElementType;
  using Storage = typename Element::Storage;
  using Word = typename SavedBits<kTernaryValue>::Word;
  static constexpr bool kSaveBits = kSaveBitsValue;
  static constexpr bool kTernary = kTernaryValue;
  static constexpr ResetForm kReset = kResetValue;
  static constexpr Vary kVary = kVaryValue;
};

// kSteps consecutive timesteps of `count` neurons; v stays in a register meanwhile. The bits of
// `bits` above those of earlier timesteps are 0.
template <class Form, int kSteps, class Storage = typename Form::Storage,
          class Word = typename Form::Word>
void lif_fwd_steps(const LifForward& p, int64_t count,
                   const Storage* __restrict x,  // [kSteps, count], x_stride apart
                   int64_t x_stride,
                   const Parameter<Storage, Form::kVary != Vary::kNothing> amplitude,     // [count]
                   const Parameter<float, Form::kVary == Vary::kEverything> decay,        // [count]
                   const Parameter<float, Form::kVary == Vary::kEverything> v_threshold,  // [count]
                   float* __restrict v,                                                   // [count]
                   Storage* __restrict y,  // [kSteps, count], y_stride apart
                   int64_t y_stride,
                   Word* __restrict bits,  // [count]
                   int first_bit) {        // of bits; 0: nothing is there yet
  using Element = typename Form::Element;
  const float v_reset = p.v_reset, width = p.surrogate_scale;
  const uint32_t soft = mask_if(p.reset == Reset::kSoft);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    // Read whether or not it is emitted: a load under a condition would not vectorise.
    const Storage amplitude_i = amplitude[i];
    const float decay_i = decay[i], threshold_i = v_threshold[i];
    float v_i = v[i];
    uint32_t saved = 0;
    for (int k = 0; k < kSteps; ++k) {
      const float h = charge(Form::kReset, decay_i, v_i, Element::widen(x[k * x_stride + i]),
                             threshold_i, mask_if(Form::kTernary));
      const uint32_t sign = sign_of(h, mask_if(Form::kTernary));
      const float magnitude = with_sign(h, sign);
      const bool spike = magnitude >= threshold_i;
      const Storage emitted = Form::kTernary ? Element::with_sign(amplitude_i, sign) : amplitude_i;
      y[k * y_stride + i] = spike ? emitted : Storage{};
      v_i = reset(Form::kReset, h, spike, v_reset, reset_shift(soft, threshold_i, sign));
      if (Form::kSaveBits) {
        constexpr int kBits = SavedBits<Form::kTernary>::kPerStep;
        saved |= (spike ? 1u : 0u) << (kBits * k);
        saved |= (in_window(magnitude - threshold_i, width) ? 2u : 0u) << (kBits * k);
        if (Form::kTernary) saved |= (sign >> 31) << (kBits * k + 2);
      }
    }
    v[i] = v_i;
    if (Form::kSaveBits) {
      bits[i] = static_cast<Word>(
          kSteps == kLifBitsInterval || first_bit == 0 ? saved : bits[i] | (saved << first_bit));
    }
  }
}

// The same, as ForwardLoops have it.
template <class Form, int kSteps>
void lif_fwd_lanes(const LifForward& p, int64_t count, const void* x, int64_t x_stride,
                   const void* amplitude, const Lanes& lanes, int64_t lane, float* v, void* y,
                   int64_t y_stride, void* bits, int first_bit) {
  using Storage = typename Form::Storage;
  lif_fwd_steps<Form, kSteps>(p, count, static_cast<const Storage*>(x), x_stride,
                              {static_cast<const Storage*>(amplitude), lane}, {lanes.decay, lane},
                              {lanes.v_threshold, lane}, v, static_cast<Storage*>(y), y_stride,
                              static_cast<typename Form::Word*>(bits), first_bit);
}

template <class Element, bool kSaveBits, bool kTernary, ResetForm kReset, Vary kVary>
constexpr ForwardLoops kForwardLoops = {
    {lif_fwd_lanes<NeuronForm<Element, kSaveBits, kTernary, kReset, kVary>, 1>,
     lif_fwd_lanes<NeuronForm<Element, kSaveBits, kTernary, kReset, kVary>, 2>,
     lif_fwd_lanes<NeuronForm<Element, kSaveBits, kTernary, kReset, kVary>, 4>},
    kVary,
    kSaveBits ? SavedBits<kTernary>::kPerStep : 0,
    sizeof(typename SavedBits<kTernary>::Word),
};

template <class Element, bool kSaveBits>
const ForwardLoops& choose_forward(const LifForward& p) {
  constexpr Vary kEverything = Vary::kEverything;
  constexpr ResetForm kHard = ResetForm::kHard, kShift = ResetForm::kShift;
  constexpr ResetForm kDelayed = ResetForm::kDelayed;
  if (p.reset == Reset::kSoftDelayed) {
    return p.ternary ? kForwardLoops<Element, kSaveBits, true, kDelayed, kEverything>
                     : kForwardLoops<Element, kSaveBits, false, kDelayed, kEverything>;
  }
  if (p.reset != Reset::kHard) {
    return p.ternary ? kForwardLoops<Element, kSaveBits, true, kShift, kEverything>
                     : kForwardLoops<Element, kSaveBits, false, kShift, kEverything>;
  }
  if (p.ternary) return kForwardLoops<Element, kSaveBits, true, kHard, kEverything>;
  switch (what_varies(p)) {
    case Vary::kNothing:
      return kForwardLoops<Element, kSaveBits, false, kHard, Vary::kNothing>;
    case Vary::kAmplitude:
      return kForwardLoops<Element, kSaveBits, false, kHard, Vary::kAmplitude>;
    default:
      return kForwardLoops<Element, kSaveBits, false, kHard, kEverything>;
  }
}

template <class Element>
const ForwardLoops& choose_forward(const LifForward& p) {
  return p.save == LifSave::kBits ? choose_forward<Element, true>(p)
                                  : choose_forward<Element, false>(p);
}

}  // namespace
}  // namespace realspike
