#pragma once

#include <cstdint>

#include "core/neuron.h"
#include "cpu/common/element.h"
#include "cpu/common/stream.h"
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
                   const Storage* __restrict x,  // [kSteps, count], x_stride_t apart
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
  const int64_t x_stride = p.x_stride_t;
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

template <class Form>
void lif_fwd_block(const LifForward& p, const Lanes& lanes, const typename Form::Storage* amplitude,
                   int64_t n, int64_t lane, int64_t count, bool stream) {
  using Storage = typename Form::Storage;
  using Word = typename Form::Word;
  alignas(64) float v[kBlock];
  alignas(64) Storage streamed[kLifBitsInterval][kBlock];
  alignas(64) Word streamed_bits[kBlock];
  load_potential(p.v_init, n, count, v);
  const Storage* x = static_cast<const Storage*>(p.x) + n;
  Storage* y = static_cast<Storage*>(p.y) + n;
  for_each_stretch(p.T, [&](int64_t t, auto steps) {
    if (p.save == LifSave::kPotentials && t > 0 && t % kLifPotentialInterval == 0) {
      float* saved = static_cast<float*>(p.saved) + (t / kLifPotentialInterval - 1) * p.N + n;
      for (int64_t i = 0; i < count; ++i) saved[i] = v[i];
    }
    Word* saved =
        Form::kSaveBits ? static_cast<Word*>(p.saved) + t / kLifBitsInterval * p.N + n : nullptr;
    lif_fwd_steps<Form, steps.value>(
        p, count, x + t * p.x_stride_t, {amplitude, lane}, {lanes.decay, lane},
        {lanes.v_threshold, lane}, v, stream ? streamed[0] : y + t * p.N, stream ? kBlock : p.N,
        stream ? streamed_bits : saved,
        static_cast<int>(t % kLifBitsInterval) * SavedBits<Form::kTernary>::kPerStep);
    if (!stream) return;
    for (int k = 0; k < steps.value; ++k) {
      stream_copy(y + (t + k) * p.N, streamed[k], count * sizeof(Storage));
    }
    const int64_t end = t + steps.value;
    if (Form::kSaveBits && (end % kLifBitsInterval == 0 || end == p.T)) {
      stream_copy(saved, streamed_bits, count * sizeof(Word));
    }
  });
  if (p.v_last == nullptr) return;
  for (int64_t i = 0; i < count; ++i) p.v_last[n + i] = v[i];
}

template <class Form>
void lif_fwd_form(const LifForward& p, const LifTile& tile) {
  using Storage = typename Form::Storage;
  Lanes lanes;
  gather_lanes(p, tile, Form::kVary, lanes);
  // In the element type of the output.
  alignas(64) Storage amplitude[kLifTileWidth];
  const int64_t amplitudes = Form::kVary == Vary::kNothing ? 1 : tile.width;
  for (int64_t i = 0; i < amplitudes; ++i) amplitude[i] = Form::Element::round(lanes.amplitude[i]);
  for_each_block(p, tile, [&](int64_t n, int64_t lane, int64_t count) {
    lif_fwd_block<Form>(p, lanes, amplitude, n, lane, count, tile.stream);
  });
  if (tile.stream) end_stream();
}

using ForwardTile = void (*)(const LifForward&, const LifTile&);

template <class Element, bool kSaveBits>
ForwardTile choose_forward(const LifForward& p) {
  constexpr Vary kEverything = Vary::kEverything;
  constexpr ResetForm kHard = ResetForm::kHard, kShift = ResetForm::kShift;
  constexpr ResetForm kDelayed = ResetForm::kDelayed;
  if (p.reset == Reset::kSoftDelayed) {
    return p.ternary ? lif_fwd_form<NeuronForm<Element, kSaveBits, true, kDelayed, kEverything>>
                     : lif_fwd_form<NeuronForm<Element, kSaveBits, false, kDelayed, kEverything>>;
  }
  if (p.reset != Reset::kHard) {
    return p.ternary ? lif_fwd_form<NeuronForm<Element, kSaveBits, true, kShift, kEverything>>
                     : lif_fwd_form<NeuronForm<Element, kSaveBits, false, kShift, kEverything>>;
  }
  if (p.ternary) return lif_fwd_form<NeuronForm<Element, kSaveBits, true, kHard, kEverything>>;
  switch (what_varies(p)) {
    case Vary::kNothing:
      return lif_fwd_form<NeuronForm<Element, kSaveBits, false, kHard, Vary::kNothing>>;
    case Vary::kAmplitude:
      return lif_fwd_form<NeuronForm<Element, kSaveBits, false, kHard, Vary::kAmplitude>>;
    default:
      return lif_fwd_form<NeuronForm<Element, kSaveBits, false, kHard, kEverything>>;
  }
}

template <class Element>
void lif_fwd_elements(const LifForward& p, const LifTile& tile) {
  const bool bits = p.save == LifSave::kBits;
  (bits ? choose_forward<Element, true>(p) : choose_forward<Element, false>(p))(p, tile);
}

inline void lif_fwd_tile(const LifForward& p, const LifTile& tile) {
  with_element(p.dtype, [&](auto element) { lif_fwd_elements<decltype(element)>(p, tile); });
}

}  // namespace
}  // namespace realspike
