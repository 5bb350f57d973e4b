#pragma once

#include <cstdint>

#include "cpu/lif_bwd_bits_kernel.h"

// Backward from x and a potential every kLifPotentialInterval timesteps: every surrogate, attached
// or detached reset, learnable decay and threshold.

namespace realspike {
namespace {

// Timesteps whose recomputed potentials a register can hold for every lane.
constexpr int kRecomputeSteps = 4;

// Rows of timesteps in float32.
struct Rows {
  const float* x;       // x_stride apart
  const float* grad_y;  // stride apart
  float* grad_x;        // stride apart
  int64_t x_stride;
  int64_t stride;
};

// The form of the neuron, uniform over a call.
struct Form {
  uint32_t ternary;
  uint32_t soft;
  uint32_t attached;
  float v_reset;

  explicit Form(const LifBackward& p)
      : ternary(mask_if(p.ternary)),
        soft(mask_if(p.reset == Reset::kSoft)),
        attached(mask_if(!p.detach_reset)),
        v_reset(p.v_reset) {}
};

// One timestep forward again.
struct Recomputed {
  float h;
  float v;  // after the reset
};

template <bool kHardReset>
inline Recomputed recompute_step(const Form& form, float decay, float v_threshold, float v,
                                 float x) {
  const float h = decay * v + x;
  const uint32_t sign = sign_of(h, form.ternary);
  const bool spike = with_sign(h, sign) >= v_threshold;
  const float shift = kHardReset ? 0.0f : reset_shift(form.soft, v_threshold, sign);
  return {h, reset<kHardReset>(h, spike, form.v_reset, shift)};
}

// Carries v over kRecomputeSteps timesteps.
template <bool kHardReset>
void advance(const LifBackward& p, int64_t count,
             const float* __restrict x,  // [kRecomputeSteps, count], stride apart
             int64_t stride,
             const float* __restrict decay,        // [count]
             const float* __restrict v_threshold,  // [count]
             float* __restrict v) {                // [count]
  const Form form(p);
  for (int64_t i = 0; i < count; ++i) {
    const float decay_i = decay[i], threshold_i = v_threshold[i];
    float v_i = v[i];
    for (int k = 0; k < kRecomputeSteps; ++k) {
      v_i = recompute_step<kHardReset>(form, decay_i, threshold_i, v_i, x[k * stride + i]).v;
    }
    v[i] = v_i;
  }
}

// kSteps timesteps, recomputed from x and the potential before them. kLearn: decay and threshold
// are learnable.
template <Surrogate kSurrogate, bool kHardReset, bool kLearn, int kSteps>
void lif_bwd_recompute_steps(const LifBackward& p, int64_t count,
                             const float* __restrict x,       // [kSteps, count], x_stride apart
                             const float* __restrict grad_y,  // [kSteps, count], stride apart
                             float* __restrict grad_x,        // [kSteps, count], stride apart
                             int64_t x_stride, int64_t stride,
                             const float* __restrict amplitude,     // [count]
                             const float* __restrict decay,         // [count]
                             const float* __restrict v_threshold,   // [count]
                             const float* __restrict v,             // [count]
                             float* __restrict q,                   // [count]
                             float* __restrict grad_amplitude,      // [count]
                             float* __restrict grad_decay,          // [count]
                             float* __restrict grad_v_threshold) {  // [count]
  const Form form(p);
  const float scale = p.surrogate_scale;
  for (int64_t i = 0; i < count; ++i) {
    const float amplitude_i = amplitude[i], decay_i = decay[i], threshold_i = v_threshold[i];
    float h[kSteps], v_before[kSteps];
    float v_i = v[i];
    for (int k = 0; k < kSteps; ++k) {
      v_before[k] = v_i;
      const Recomputed step =
          recompute_step<kHardReset>(form, decay_i, threshold_i, v_i, x[k * x_stride + i]);
      h[k] = step.h;
      v_i = step.v;
    }
    float q_i = q[i];
    float sum_amplitude = grad_amplitude[i];
    float sum_decay = 0.0f, sum_threshold = 0.0f;
    for (int k = kSteps - 1; k >= 0; --k) {
      const uint32_t sign = sign_of(h[k], form.ternary);
      const float magnitude = with_sign(h[k], sign);
      const bool spike = magnitude >= threshold_i;
      const float g = with_sign(grad_y[k * stride + i], sign);
      // Gradient that reaches whether the neuron fires, through the spike and through the reset.
      const float by_reset = kHardReset ? form.v_reset - h[k] : with_sign(-threshold_i, sign);
      const float grad_fires = amplitude_i * g + masked(by_reset * q_i, form.attached);
      const float slope = surrogate_derivative<kSurrogate>(magnitude - threshold_i, scale);
      const float through_spike = slope == 0.0f ? 0.0f : grad_fires * slope;
      const float through_state = kHardReset && spike ? 0.0f : q_i;
      const float grad_h = with_sign(through_spike, sign) + through_state;
      grad_x[k * stride + i] = grad_h;
      if (kLearn) {
        sum_decay += grad_h * v_before[k];
        const float subtracted = masked(with_sign(q_i, sign), form.soft);
        sum_threshold -= through_spike + (spike ? subtracted : 0.0f);
      }
      q_i = decay_i * grad_h;
      sum_amplitude += spike ? g : 0.0f;
    }
    q[i] = q_i;
    grad_amplitude[i] = sum_amplitude;
    if (kLearn) {
      grad_decay[i] += sum_decay;
      grad_v_threshold[i] += sum_threshold;
    }
  }
}

using RecomputeSteps = void (*)(const LifBackward&, int64_t count, const float* x,
                                const float* grad_y, float* grad_x, int64_t x_stride,
                                int64_t stride, const float* amplitude, const float* decay,
                                const float* v_threshold, const float* v, float* q,
                                float* grad_amplitude, float* grad_decay, float* grad_v_threshold);

// The functions of one form of the neuron, for 1 ... kRecomputeSteps timesteps.
struct Recompute {
  RecomputeSteps steps[kRecomputeSteps];
  void (*advance)(const LifBackward&, int64_t count, const float* x, int64_t stride,
                  const float* decay, const float* v_threshold, float* v);
};

template <Surrogate kSurrogate, bool kHardReset, bool kLearn>
constexpr Recompute kRecompute = {{
                                      lif_bwd_recompute_steps<kSurrogate, kHardReset, kLearn, 1>,
                                      lif_bwd_recompute_steps<kSurrogate, kHardReset, kLearn, 2>,
                                      lif_bwd_recompute_steps<kSurrogate, kHardReset, kLearn, 3>,
                                      lif_bwd_recompute_steps<kSurrogate, kHardReset, kLearn, 4>,
                                  },
                                  advance<kHardReset>};

template <Surrogate kSurrogate>
const Recompute& recompute_with(const LifBackward& p) {
  const bool learn = p.grad_decay != nullptr || p.grad_v_threshold != nullptr;
  if (p.reset == Reset::kHard) {
    return learn ? kRecompute<kSurrogate, true, true> : kRecompute<kSurrogate, true, false>;
  }
  return learn ? kRecompute<kSurrogate, false, true> : kRecompute<kSurrogate, false, false>;
}

const Recompute& recompute_for(const LifBackward& p) {
  switch (p.surrogate) {
    case Surrogate::kATan:
      return recompute_with<Surrogate::kATan>(p);
    case Surrogate::kSigmoid:
      return recompute_with<Surrogate::kSigmoid>(p);
    case Surrogate::kTriangle:
      return recompute_with<Surrogate::kTriangle>(p);
    default:
      return recompute_with<Surrogate::kRectangular>(p);
  }
}

// A stretch of at most kLifPotentialInterval timesteps, its second half first: the potential in its
// middle is recomputed on the way.
void lif_bwd_stretch(const LifBackward& p, const Recompute& recompute, int64_t count, int64_t lane,
                     int steps, const Rows& rows, const Lanes& lanes, const float* v, float* q,
                     LaneSums& sums) {
  const auto run = [&](int first, int count_steps, const float* v_first) {
    recompute.steps[count_steps - 1](
        p, count, rows.x + first * rows.x_stride, rows.grad_y + first * rows.stride,
        rows.grad_x + first * rows.stride, rows.x_stride, rows.stride, lanes.amplitude + lane,
        lanes.decay + lane, lanes.v_threshold + lane, v_first, q, sums.amplitude + lane,
        sums.decay + lane, sums.v_threshold + lane);
  };
  if (steps > kRecomputeSteps) {
    float middle[kBlock];
    for (int64_t i = 0; i < count; ++i) middle[i] = v[i];
    recompute.advance(p, count, rows.x, rows.x_stride, lanes.decay + lane, lanes.v_threshold + lane,
                      middle);
    run(kRecomputeSteps, steps - kRecomputeSteps, middle);
    steps = kRecomputeSteps;
  }
  run(0, steps, v);
}

// The rows of a stretch as float32: where they lie, or widened into buffers and rounded back.
template <class Element>
struct StretchRows {
  using Storage = typename Element::Storage;
  float x[kLifPotentialInterval][kBlock];
  float grad_y[kLifPotentialInterval][kBlock];
  float grad_x[kLifPotentialInterval][kBlock];

  Rows load(const LifBackward& p, int64_t count, int steps, const Storage* x_t,
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
  Rows load(const LifBackward& p, int64_t, int, const float* x_t, const float* grad_y_t,
            float* grad_x_t) {
    return {x_t, grad_y_t, grad_x_t, p.x_stride_t, p.N};
  }
  void store(const LifBackward&, int64_t, int, float*) const {}
};

template <class Element>
void lif_bwd_recompute_block(const LifBackward& p, int64_t n, int64_t count, int64_t lane,
                             const Lanes& lanes, float* q, LaneSums& sums) {
  using Storage = typename Element::Storage;
  constexpr int64_t kInterval = kLifPotentialInterval;
  const Recompute& recompute = recompute_for(p);
  const Storage* x = static_cast<const Storage*>(p.x) + n;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const float* saved = static_cast<const float*>(p.saved);
  StretchRows<Element> buffers;
  float v[kBlock];
  for (int64_t t = (p.T - 1) / kInterval * kInterval; t >= 0; t -= kInterval) {
    const int steps = static_cast<int>(p.T - t < kInterval ? p.T - t : kInterval);
    load_potential(t == 0 ? p.v_init : saved + (t / kInterval - 1) * p.N, n, count, v);
    Storage* grad_x_t = grad_x + t * p.N;
    const Rows rows =
        buffers.load(p, count, steps, x + t * p.x_stride_t, grad_y + t * p.N, grad_x_t);
    lif_bwd_stretch(p, recompute, count, lane, steps, rows, lanes, v, q, sums);
    buffers.store(p, count, steps, grad_x_t);
  }
}

template <class Element>
BackwardBlock choose_recompute(const LifBackward&) {
  return lif_bwd_recompute_block<Element>;
}

}  // namespace
}  // namespace realspike
