#pragma once

#include <cstdint>

#include "cpu/lif/fwd_kernel.h"
#include "cpu/pack_spikes/kernel.h"

// LIF inference that emits one bit per neuron. The same loops as with real-valued spikes write an
// emission of 1 into a buffer in the L1 cache, and what fired there is packed.

namespace realspike {
namespace {

// Neurons that are packed together: 32 channels of so many pixels.
constexpr int64_t kPackedNeurons = 32 * kLifPackedPixels;

template <class Element>
struct PackedBuffers {
  alignas(64) float v[kPackedNeurons];
  alignas(64) typename Element::Storage spikes[kLifBitsInterval][kPackedNeurons];
  alignas(64) float decay[kPackedNeurons];
  alignas(64) float v_threshold[kPackedNeurons];
};

// The bits of a stored spike: comparing and masking bits is exact for floats, too.
template <class Storage>
using SpikeBits = std::conditional_t<sizeof(Storage) == 4, uint32_t, uint16_t>;

// The stored value that becomes a set bit.
template <class Bits>
struct SpikeOf {
  Bits value;
  bool fired(Bits spike) const { return spike == value; }
  bool strange(Bits) const { return false; }
};

// `rows` rows of `count` neighbouring neurons, from neuron n on and row_stride apart; their
// currents begin at x and lie x_row_stride apart, in `spikes` they lie `count` apart. pack(t,
// spikes) takes what fired at timestep t.
template <class Element, bool kTernary, ResetForm kReset, class Pack>
void lif_packed_rows(const LifPacked& p, PackedBuffers<Element>& buffers,
                     const typename Element::Storage* x, int64_t x_row_stride, int64_t n,
                     int64_t rows, int64_t count, int64_t row_stride, Pack pack) {
  using Form = NeuronForm<Element, false, kTernary, kReset, Vary::kEverything>;
  using Storage = typename Element::Storage;
  LifForward forward{p, nullptr, nullptr};
  Storage one[kPackedNeurons];
  for (int64_t i = 0; i < count; ++i) one[i] = Element::round(1.0f);
  for (int64_t r = 0; r < rows; ++r) {
    load_potential(p.v_init, n + r * row_stride, count, buffers.v + r * count);
    gather(p.decay, n + r * row_stride, count, buffers.decay + r * count);
    gather(p.v_threshold, n + r * row_stride, count, buffers.v_threshold + r * count);
  }
  for_each_stretch(p.T, [&](int64_t t, auto steps) {
    for (int64_t r = 0; r < rows; ++r) {
      lif_fwd_steps<Form, steps.value>(forward, count, x + t * p.x_stride_t + r * x_row_stride,
                                       p.x_stride_t, {one, 0}, {buffers.decay, r * count},
                                       {buffers.v_threshold, r * count}, buffers.v + r * count,
                                       buffers.spikes[0] + r * count, kPackedNeurons,
                                       static_cast<typename Form::Word*>(nullptr), 0);
    }
    for (int k = 0; k < steps; ++k) pack(t + k, buffers.spikes[k]);
  });
  if (p.v_last == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) {
    float* v_last = p.v_last + n + r * row_stride;
    for (int64_t i = 0; i < count; ++i) v_last[i] = buffers.v[r * count + i];
  }
}

// Packs `pixels` pixels of up to 32 channels into word w of each: pixel `pixel` of [B, P] and those
// that follow pixel_step apart. Where negative spikes exist, those go to a second plane of words.
template <class Element>
void pack_timestep(const LifPacked& p, int64_t t, const typename Element::Storage* spikes,
                   int64_t channels, int64_t pixels, int64_t stride_c, int64_t stride_p,
                   int64_t pixel, int64_t pixel_step, int64_t w) {
  using Bits = SpikeBits<typename Element::Storage>;
  // The spikes lie in a buffer of ours, as floats whose bits are looked at.
  const Bits* bits = reinterpret_cast<const Bits*>(spikes);
  const int64_t all_pixels = p.N / p.C;
  uint32_t word[kLifPackedPixels];
  for (int plane = 0; plane < (p.ternary ? 2 : 1); ++plane) {
    Bits one;
    const typename Element::Storage emitted = Element::round(plane == 0 ? 1.0f : -1.0f);
    std::memcpy(&one, &emitted, sizeof one);
    const SpikeOf<Bits> spike{one};
    uint32_t* packed = p.packed + ((plane * p.T + t) * all_pixels + pixel) * p.words + w;
    for (int64_t begin = 0; begin < pixels; begin += kLifPackedPixels) {
      const int64_t some = least(pixels - begin, kLifPackedPixels);
      pack_word(spike, bits + begin * stride_p, channels, some, stride_c, stride_p, word);
      for (int64_t i = 0; i < some; ++i) packed[(begin + i) * pixel_step * p.words] = word[i];
    }
  }
}

// Task of the grid [B, words, ceil(P / kLifPackedPixels)] (contiguous), or a run of pixels of [B *
// P] (channels_last).
template <class Element, bool kTernary, ResetForm kReset>
void lif_packed_form(const LifPacked& p, int64_t task) {
  using Storage = typename Element::Storage;
  PackedBuffers<Element> buffers;
  const Storage* x = static_cast<const Storage*>(p.x);
  if (p.channels_last) {
    const int64_t per_task = lif_packed_pixels_per_task(p);
    const int64_t pixels_in_all = p.N / p.C;
    const int64_t end = least((task + 1) * per_task, pixels_in_all);
    const int64_t at_once = kPackedNeurons / p.C > 1 ? kPackedNeurons / p.C : 1;
    for (int64_t pixel = task * per_task; pixel < end; pixel += at_once) {
      const int64_t pixels = least(end - pixel, at_once);
      // Channels of one pixel at a time where they do not all fit.
      const int64_t channels_at_once = least(p.C, kPackedNeurons);
      for (int64_t c = 0; c < p.C; c += channels_at_once) {
        const int64_t some = least(p.C - c, channels_at_once);
        lif_packed_rows<Element, kTernary, kReset>(
            p, buffers, x + pixel * p.C + c, 0, pixel * p.C + c, 1, pixels * some, 0,
            [&](int64_t t, const Storage* spikes) {
              for (int64_t w = 0; w * 32 < some; ++w) {
                const int64_t channels = least(some - 32 * w, 32);
                pack_timestep<Element>(p, t, spikes + 32 * w, channels, pixels, 1, some, pixel, 1,
                                       c / 32 + w);
              }
            });
      }
    }
    return;
  }
  const int64_t P = p.P, blocks = ceil_div(P, kLifPackedPixels);
  const int64_t b = task / (p.words * blocks), w = task / blocks % p.words;
  const int64_t pixel = task % blocks * kLifPackedPixels;
  const int64_t pixels = least(P - pixel, kLifPackedPixels);
  const int64_t channels = least(p.C - 32 * w, 32);
  const int64_t n = (b * p.C + 32 * w) * P + pixel;
  lif_packed_rows<Element, kTernary, kReset>(
      p, buffers, x + n, P, n, channels, pixels, P, [&](int64_t t, const Storage* spikes) {
        pack_timestep<Element>(p, t, spikes, channels, pixels, pixels, 1, b * P + pixel, 1, w);
      });
}

// The function of `Functions` for these neurons; Functions::form<kTernary, kReset>.
template <class Functions>
auto choose_packed(const LifPacked& p) {
  using R = ResetForm;
  switch (p.reset) {
    case Reset::kHard:
      return p.ternary ? Functions::template form<true, R::kHard>
                       : Functions::template form<false, R::kHard>;
    case Reset::kSoftDelayed:
      return p.ternary ? Functions::template form<true, R::kDelayed>
                       : Functions::template form<false, R::kDelayed>;
    default:
      return p.ternary ? Functions::template form<true, R::kShift>
                       : Functions::template form<false, R::kShift>;
  }
}

template <class Element>
struct PackedForms {
  template <bool kTernary, ResetForm kReset>
  static constexpr auto form = lif_packed_form<Element, kTernary, kReset>;
};

template <class Element>
void lif_packed_elements(const LifPacked& p, int64_t task) {
  choose_packed<PackedForms<Element>>(p)(p, task);
}

inline void lif_packed_task(const LifPacked& p, int64_t task) {
  with_element(p.dtype, [&](auto element) { lif_packed_elements<decltype(element)>(p, task); });
}

}  // namespace
}  // namespace realspike
