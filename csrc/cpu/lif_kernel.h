#pragma once

#include <cstddef>
#include <cstdint>

#include "core/lif.h"
#include "cpu/element.h"

// A range of neurons is walked in blocks whose state stays in the L1 cache while time passes.
// Every inner loop runs over neighbouring neurons and is free of branches, so it vectorises.

namespace realspike {
namespace {

constexpr int64_t kBlock = 512;

// Amplitudes of the neurons [n, n + count), in the element type of the output.
template <class Element>
void gather_amplitude(const LifParams& p, int64_t n, int64_t count,
                      typename Element::Storage* amplitude) {
  if (p.amplitude == nullptr || p.amplitude_size == 1) {
    const auto all = Element::round(p.amplitude == nullptr ? 1.0f : p.amplitude[0]);
    for (int64_t i = 0; i < count; ++i) amplitude[i] = all;
    return;
  }
  int64_t within = n % p.amplitude_inner;
  int64_t index = (n / p.amplitude_inner) % p.amplitude_size;
  for (int64_t i = 0; i < count; ++i) {
    amplitude[i] = Element::round(p.amplitude[index]);
    if (++within == p.amplitude_inner) {
      within = 0;
      if (++index == p.amplitude_size) index = 0;
    }
  }
}

void load_potential(const float* source, int64_t n, int64_t count, float* v) {
  for (int64_t i = 0; i < count; ++i) v[i] = source == nullptr ? 0.0f : source[n + i];
}

inline bool in_window(float h, float v_threshold, float width) {
  return __builtin_fabsf(h - v_threshold) <= 0.5f * width;
}

// v[t] from h[t] (Eq. 6), without the multiplication: an infinite h resets like any other.
template <bool kSoftReset>
inline float reset(float h, bool spike, float v_threshold, float v_reset) {
  return spike ? (kSoftReset ? h - v_threshold : v_reset) : h;
}

// kSteps consecutive timesteps of `count` neurons; v stays in a register meanwhile.
template <class Element, bool kSaveBits, bool kSoftReset, int kSteps,
          class Storage = typename Element::Storage>
void lif_fwd_steps(const LifForward& p, int64_t count,
                   const Storage* __restrict x,          // [kSteps, count], x_stride_t apart
                   const Storage* __restrict amplitude,  // [count]
                   float* __restrict v,                  // [count]
                   Storage* __restrict y,                // [kSteps, count], N apart
                   uint8_t* __restrict bits) {           // [count]
  const float decay = p.decay, v_threshold = p.v_threshold, v_reset = p.v_reset;
  const float width = p.surrogate_scale;
  const int64_t x_stride = p.x_stride_t, y_stride = p.N;
  for (int64_t i = 0; i < count; ++i) {
    // Read whether or not it is emitted: a load under a condition would not vectorise.
    const Storage amplitude_i = amplitude[i];
    float v_i = v[i];
    uint32_t saved = 0;
    for (int k = 0; k < kSteps; ++k) {
      const float h = decay * v_i + Element::widen(x[k * x_stride + i]);
      const bool spike = h >= v_threshold;
      y[k * y_stride + i] = spike ? amplitude_i : Storage{};
      v_i = reset<kSoftReset>(h, spike, v_threshold, v_reset);
      if (kSaveBits) {
        saved |= (spike ? 1u : 0u) << (2 * k);
        saved |= (in_window(h, v_threshold, width) ? 2u : 0u) << (2 * k);
      }
    }
    v[i] = v_i;
    if (kSaveBits) bits[i] = static_cast<uint8_t>(saved);
  }
}

template <class Element, bool kSaveBits, bool kSoftReset>
void lif_fwd_block(const LifForward& p, int64_t n, int64_t count) {
  using Storage = typename Element::Storage;
  Storage amplitude[kBlock];
  float v[kBlock];
  gather_amplitude<Element>(p, n, count, amplitude);
  load_potential(p.v_init, n, count, v);
  const Storage* x = static_cast<const Storage*>(p.x) + n;
  Storage* y = static_cast<Storage*>(p.y) + n;
  for (int64_t t = 0; t < p.T; t += kLifBitsInterval) {
    if (p.save == LifSave::kPotentials && t > 0 && t % kLifPotentialInterval == 0) {
      float* saved = static_cast<float*>(p.saved) + (t / kLifPotentialInterval - 1) * p.N + n;
      for (int64_t i = 0; i < count; ++i) saved[i] = v[i];
    }
    uint8_t* bits =
        kSaveBits ? static_cast<uint8_t*>(p.saved) + t / kLifBitsInterval * p.N + n : nullptr;
    const Storage* x_t = x + t * p.x_stride_t;
    Storage* y_t = y + t * p.N;
    switch (p.T - t) {
      case 1:
        lif_fwd_steps<Element, kSaveBits, kSoftReset, 1>(p, count, x_t, amplitude, v, y_t, bits);
        break;
      case 2:
        lif_fwd_steps<Element, kSaveBits, kSoftReset, 2>(p, count, x_t, amplitude, v, y_t, bits);
        break;
      case 3:
        lif_fwd_steps<Element, kSaveBits, kSoftReset, 3>(p, count, x_t, amplitude, v, y_t, bits);
        break;
      default:
        lif_fwd_steps<Element, kSaveBits, kSoftReset, 4>(p, count, x_t, amplitude, v, y_t, bits);
    }
  }
  for (int64_t i = 0; i < count; ++i) p.v_last[n + i] = v[i];
}

template <class Element>
void lif_fwd_elements(const LifForward& p, int64_t begin, int64_t end) {
  const bool bits = p.save == LifSave::kBits;
  const auto block = bits ? (p.soft_reset ? lif_fwd_block<Element, true, true>
                                          : lif_fwd_block<Element, true, false>)
                          : (p.soft_reset ? lif_fwd_block<Element, false, true>
                                          : lif_fwd_block<Element, false, false>);
  for (int64_t n = begin; n < end; n += kBlock) block(p, n, end - n < kBlock ? end - n : kBlock);
}

void lif_fwd_range(const LifForward& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat16:
      return lif_fwd_elements<Float16>(p, begin, end);
    case DType::kBFloat16:
      return lif_fwd_elements<BFloat16>(p, begin, end);
    default:
      return lif_fwd_elements<Float32>(p, begin, end);
  }
}

// Backward. q is the gradient that reaches v[t]; it enters a step as dL/dv[t] and leaves it as
// decay * grad_h[t], which is dL/dv[t-1].

// kSteps timesteps from two bits each; the reset is detached.
template <class Element, bool kSoftReset, int kSteps, class Storage = typename Element::Storage>
void lif_bwd_bits_steps(const LifBackward& p, int64_t count,
                        const Storage* __restrict grad_y,   // [kSteps, count], N apart
                        const uint8_t* __restrict bits,     // [count]
                        const float* __restrict amplitude,  // [count]
                        float* __restrict q,                // [count]
                        float* __restrict grad_amplitude,   // [count]
                        Storage* __restrict grad_x) {       // [kSteps, count], N apart
  const float decay = p.decay;
  const float slope = 1.0f / p.surrogate_scale;
  const int64_t stride = p.N;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t saved = bits[i];
    const float amplitude_i = amplitude[i];
    float q_i = q[i];
    float sum = grad_amplitude[i];
    for (int k = kSteps - 1; k >= 0; --k) {
      const bool spike = (saved >> (2 * k)) & 1u;
      const bool window = (saved >> (2 * k + 1)) & 1u;
      const float g = Element::widen(grad_y[k * stride + i]);
      const float through_spike = window ? amplitude_i * g * slope : 0.0f;
      const float through_state = kSoftReset || !spike ? q_i : 0.0f;
      const float grad_h = through_spike + through_state;
      grad_x[k * stride + i] = Element::round(grad_h);
      q_i = decay * grad_h;
      sum += spike ? g : 0.0f;
    }
    q[i] = q_i;
    grad_amplitude[i] = sum;
  }
}

template <class Element, bool kSoftReset>
void lif_bwd_bits_block(const LifBackward& p, int64_t n, int64_t count, const float* amplitude,
                        float* q, float* grad_amplitude) {
  using Storage = typename Element::Storage;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const uint8_t* saved = static_cast<const uint8_t*>(p.saved) + n;
  for (int64_t t = (p.T - 1) / kLifBitsInterval * kLifBitsInterval; t >= 0; t -= kLifBitsInterval) {
    const Storage* grad_y_t = grad_y + t * p.N;
    Storage* grad_x_t = grad_x + t * p.N;
    const uint8_t* bits = saved + t / kLifBitsInterval * p.N;
    switch (p.T - t) {
      case 1:
        lif_bwd_bits_steps<Element, kSoftReset, 1>(p, count, grad_y_t, bits, amplitude, q,
                                                   grad_amplitude, grad_x_t);
        break;
      case 2:
        lif_bwd_bits_steps<Element, kSoftReset, 2>(p, count, grad_y_t, bits, amplitude, q,
                                                   grad_amplitude, grad_x_t);
        break;
      case 3:
        lif_bwd_bits_steps<Element, kSoftReset, 3>(p, count, grad_y_t, bits, amplitude, q,
                                                   grad_amplitude, grad_x_t);
        break;
      default:
        lif_bwd_bits_steps<Element, kSoftReset, 4>(p, count, grad_y_t, bits, amplitude, q,
                                                   grad_amplitude, grad_x_t);
    }
  }
}

// d spike / d h, written once for C++; distance = h - v_threshold.
template <Surrogate kSurrogate>
inline float surrogate_derivative(float distance, float scale) {
  switch (kSurrogate) {
    case Surrogate::kRectangular:  // 1 / width on a window of that width
      return __builtin_fabsf(distance) <= 0.5f * scale ? 1.0f / scale : 0.0f;
    case Surrogate::kTriangle: {  // a tent of that width and area 1
      const float inside = 1.0f - 2.0f * __builtin_fabsf(distance) / scale;
      return inside > 0.0f ? inside * 2.0f / scale : 0.0f;
    }
    case Surrogate::kATan: {  // derivative of atan(pi / 2 * alpha * distance) / pi
      const float z = 1.57079632679489662f * scale * distance;
      return 0.5f * scale / (1.0f + z * z);
    }
    default: {  // derivative of sigmoid(alpha * distance)
      const float s = 1.0f / (1.0f + __builtin_expf(-scale * distance));
      return scale * s * (1.0f - s);
    }
  }
}

// Timesteps whose recomputed potentials a register can hold for every lane.
constexpr int kRecomputeSteps = 4;

// A stretch of at most kLifPotentialInterval timesteps in float32.
struct Stretch {
  const float* x;       // [steps, count], x_stride apart
  const float* grad_y;  // [steps, count], stride apart
  float* grad_x;        // [steps, count], stride apart
  int64_t x_stride;
  int64_t stride;
};

// Carries v over kRecomputeSteps timesteps.
template <bool kSoftReset>
void advance(const LifBackward& p, int64_t count,
             const float* __restrict x,  // [kRecomputeSteps, count], stride apart
             int64_t stride,
             float* __restrict v) {  // [count]
  const float decay = p.decay, v_threshold = p.v_threshold, v_reset = p.v_reset;
  for (int64_t i = 0; i < count; ++i) {
    float v_i = v[i];
    for (int k = 0; k < kRecomputeSteps; ++k) {
      const float h = decay * v_i + x[k * stride + i];
      v_i = reset<kSoftReset>(h, h >= v_threshold, v_threshold, v_reset);
    }
    v[i] = v_i;
  }
}

// kSteps timesteps, recomputed from x and the potential before them.
template <Surrogate kSurrogate, bool kSoftReset, bool kDetachReset, int kSteps>
void lif_bwd_recompute_steps(const LifBackward& p, int64_t count,
                             const float* __restrict x,       // [kSteps, count], x_stride apart
                             const float* __restrict grad_y,  // [kSteps, count], stride apart
                             float* __restrict grad_x,        // [kSteps, count], stride apart
                             int64_t x_stride, int64_t stride,
                             const float* __restrict amplitude,   // [count]
                             const float* __restrict v,           // [count]
                             float* __restrict q,                 // [count]
                             float* __restrict grad_amplitude) {  // [count]
  const float decay = p.decay, v_threshold = p.v_threshold, v_reset = p.v_reset;
  const float scale = p.surrogate_scale;
  for (int64_t i = 0; i < count; ++i) {
    const float amplitude_i = amplitude[i];
    float h[kSteps];
    float v_i = v[i];
    for (int k = 0; k < kSteps; ++k) {
      h[k] = decay * v_i + x[k * x_stride + i];
      v_i = reset<kSoftReset>(h[k], h[k] >= v_threshold, v_threshold, v_reset);
    }
    float q_i = q[i];
    float sum = grad_amplitude[i];
    for (int k = kSteps - 1; k >= 0; --k) {
      const float g = grad_y[k * stride + i];
      const bool spike = h[k] >= v_threshold;
      float grad_o = amplitude_i * g;
      if (!kDetachReset) grad_o += (kSoftReset ? -v_threshold : v_reset - h[k]) * q_i;
      const float slope = surrogate_derivative<kSurrogate>(h[k] - v_threshold, scale);
      const float through_spike = slope == 0.0f ? 0.0f : grad_o * slope;
      const float through_state = kSoftReset || !spike ? q_i : 0.0f;
      const float grad_h = through_spike + through_state;
      grad_x[k * stride + i] = grad_h;
      q_i = decay * grad_h;
      sum += spike ? g : 0.0f;
    }
    q[i] = q_i;
    grad_amplitude[i] = sum;
  }
}

using RecomputeSteps = void (*)(const LifBackward&, int64_t count, const float* x,
                                const float* grad_y, float* grad_x, int64_t x_stride,
                                int64_t stride, const float* amplitude, const float* v, float* q,
                                float* grad_amplitude);

// The functions for 1 ... kRecomputeSteps timesteps of one form of the neuron.
struct Recompute {
  RecomputeSteps steps[kRecomputeSteps];
};

template <Surrogate kSurrogate, bool kSoftReset, bool kDetachReset>
constexpr Recompute kRecompute = {{
    lif_bwd_recompute_steps<kSurrogate, kSoftReset, kDetachReset, 1>,
    lif_bwd_recompute_steps<kSurrogate, kSoftReset, kDetachReset, 2>,
    lif_bwd_recompute_steps<kSurrogate, kSoftReset, kDetachReset, 3>,
    lif_bwd_recompute_steps<kSurrogate, kSoftReset, kDetachReset, 4>,
}};

template <Surrogate kSurrogate>
const Recompute& choose_reset(const LifBackward& p) {
  if (p.soft_reset) {
    return p.detach_reset ? kRecompute<kSurrogate, true, true>
                          : kRecompute<kSurrogate, true, false>;
  }
  return p.detach_reset ? kRecompute<kSurrogate, false, true>
                        : kRecompute<kSurrogate, false, false>;
}

const Recompute& choose_recompute(const LifBackward& p) {
  switch (p.surrogate) {
    case Surrogate::kATan:
      return choose_reset<Surrogate::kATan>(p);
    case Surrogate::kSigmoid:
      return choose_reset<Surrogate::kSigmoid>(p);
    case Surrogate::kTriangle:
      return choose_reset<Surrogate::kTriangle>(p);
    default:
      return choose_reset<Surrogate::kRectangular>(p);
  }
}

// One stretch, its second half first: the potential in its middle is recomputed on the way.
void lif_bwd_stretch(const LifBackward& p, const Recompute& recompute, int64_t count, int steps,
                     const Stretch& rows, const float* amplitude, const float* v, float* q,
                     float* grad_amplitude) {
  if (steps > kRecomputeSteps) {
    float middle[kBlock];
    for (int64_t i = 0; i < count; ++i) middle[i] = v[i];
    (p.soft_reset ? advance<true> : advance<false>)(p, count, rows.x, rows.x_stride, middle);
    recompute.steps[steps - kRecomputeSteps - 1](
        p, count, rows.x + kRecomputeSteps * rows.x_stride,
        rows.grad_y + kRecomputeSteps * rows.stride, rows.grad_x + kRecomputeSteps * rows.stride,
        rows.x_stride, rows.stride, amplitude, middle, q, grad_amplitude);
    steps = kRecomputeSteps;
  }
  recompute.steps[steps - 1](p, count, rows.x, rows.grad_y, rows.grad_x, rows.x_stride, rows.stride,
                             amplitude, v, q, grad_amplitude);
}

// The rows of a stretch as float32: where they lie, or widened into buffers and rounded back.
template <class Element>
struct StretchRows {
  using Storage = typename Element::Storage;
  float x[kLifPotentialInterval][kBlock];
  float grad_y[kLifPotentialInterval][kBlock];
  float grad_x[kLifPotentialInterval][kBlock];

  Stretch load(const LifBackward& p, int64_t count, int steps, const Storage* x_t,
               const Storage* grad_y_t, Storage*) {
    for (int k = 0; k < steps; ++k) {
      for (int64_t i = 0; i < count; ++i) {
        x[k][i] = Element::widen(x_t[k * p.x_stride_t + i]);
        grad_y[k][i] = Element::widen(grad_y_t[k * p.N + i]);
      }
    }
    return {x[0], grad_y[0], grad_x[0], kBlock, kBlock};
  }

  void store(const LifBackward& p, int64_t count, int steps, Storage* grad_x_t) const {
    for (int k = 0; k < steps; ++k) {
      for (int64_t i = 0; i < count; ++i) grad_x_t[k * p.N + i] = Element::round(grad_x[k][i]);
    }
  }
};

template <>
struct StretchRows<Float32> {
  Stretch load(const LifBackward& p, int64_t, int, const float* x_t, const float* grad_y_t,
               float* grad_x_t) {
    return {x_t, grad_y_t, grad_x_t, p.x_stride_t, p.N};
  }
  void store(const LifBackward&, int64_t, int, float*) const {}
};

template <class Element>
void lif_bwd_recompute_block(const LifBackward& p, const Recompute& recompute, int64_t n,
                             int64_t count, const float* amplitude, float* q,
                             float* grad_amplitude) {
  using Storage = typename Element::Storage;
  constexpr int64_t kInterval = kLifPotentialInterval;
  const Storage* x = static_cast<const Storage*>(p.x) + n;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const float* saved = static_cast<const float*>(p.saved);
  StretchRows<Element> rows;
  float v[kBlock];
  for (int64_t t = (p.T - 1) / kInterval * kInterval; t >= 0; t -= kInterval) {
    const int steps = static_cast<int>(p.T - t < kInterval ? p.T - t : kInterval);
    load_potential(t == 0 ? p.v_init : saved + (t / kInterval - 1) * p.N, n, count, v);
    Storage* grad_x_t = grad_x + t * p.N;
    const Stretch stretch =
        rows.load(p, count, steps, x + t * p.x_stride_t, grad_y + t * p.N, grad_x_t);
    lif_bwd_stretch(p, recompute, count, steps, stretch, amplitude, v, q, grad_amplitude);
    rows.store(p, count, steps, grad_x_t);
  }
}

template <class Element>
void lif_bwd_elements(const LifBackward& p, int64_t begin, int64_t end) {
  const Recompute& recompute = choose_recompute(p);
  for (int64_t n = begin; n < end; n += kBlock) {
    const int64_t count = end - n < kBlock ? end - n : kBlock;
    float amplitude[kBlock];
    float q[kBlock];
    float grad_amplitude[kBlock];
    gather_amplitude<Float32>(p, n, count, amplitude);
    load_potential(p.grad_v_last, n, count, q);
    load_potential(nullptr, n, count, grad_amplitude);
    if (p.save == LifSave::kPotentials) {
      lif_bwd_recompute_block<Element>(p, recompute, n, count, amplitude, q, grad_amplitude);
    } else if (p.soft_reset) {
      lif_bwd_bits_block<Element, true>(p, n, count, amplitude, q, grad_amplitude);
    } else {
      lif_bwd_bits_block<Element, false>(p, n, count, amplitude, q, grad_amplitude);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (p.grad_v_init != nullptr) p.grad_v_init[n + i] = q[i];
      if (p.grad_amplitude_per_neuron != nullptr) {
        p.grad_amplitude_per_neuron[n + i] = grad_amplitude[i];
      }
    }
  }
}

void lif_bwd_range(const LifBackward& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case DType::kFloat16:
      return lif_bwd_elements<Float16>(p, begin, end);
    case DType::kBFloat16:
      return lif_bwd_elements<BFloat16>(p, begin, end);
    default:
      return lif_bwd_elements<Float32>(p, begin, end);
  }
}

}  // namespace
}  // namespace realspike
