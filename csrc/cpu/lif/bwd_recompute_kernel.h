#pragma once

#include <cstdint>

#include "cpu/lif/bwd_bits_kernel.h"

// Backward from x and a potential every kLifPotentialInterval timesteps: every surrogate, attached
// or detached reset, learnable decay and threshold.

namespace realspike {
namespace {

// The form of the neuron, uniform over a call. Binary spikes, whose parameters may stay in
// registers, have their own loops (what_varies).
template <Vary kVary>
struct Form {
  uint32_t ternary;
  uint32_t soft;
  uint32_t attached;
  float v_reset;

  explicit Form(const LifBackward& p)
      : ternary(kVary == Vary::kEverything ? mask_if(p.ternary) : 0u),
        soft(mask_if(p.reset == Reset::kSoft)),
        attached(mask_if(!p.detach_reset)),
        v_reset(p.v_reset) {}
};

// One timestep forward again.
struct Recomputed {
  float h;
  float v;  // after the reset
};

template <ResetForm kReset, Vary kVary>
inline Recomputed recompute_step(const Form<kVary>& form, float decay, float v_threshold, float v,
                                 float x) {
  const float h = charge(kReset, decay, v, x, v_threshold, form.ternary);
  const uint32_t sign = sign_of(h, form.ternary);
  const bool spike = with_sign(h, sign) >= v_threshold;
  return {h, reset(kReset, h, spike, form.v_reset, reset_shift(form.soft, v_threshold, sign))};
}

// Carries v over one timestep.
template <ResetForm kReset, Vary kVary>
void advance(const LifBackward& p, int64_t count, const float* __restrict x, const Lanes& lanes,
             int64_t lane, float* __restrict v) {
  const Form<kVary> form(p);
  const Parameter<float, kVary == Vary::kEverything> decay(lanes.decay, lane);
  const Parameter<float, kVary == Vary::kEverything> v_threshold(lanes.v_threshold, lane);
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    v[i] = recompute_step<kReset>(form, decay[i], v_threshold[i], v[i], x[i]).v;
  }
}

// kSteps timesteps, recomputed from x and the potential before them. kLearn: decay and threshold
// are learnable.
template <Surrogate kSurrogate, ResetForm kReset, Vary kVary, bool kLearn, int kSteps>
void lif_bwd_recompute_steps(const LifBackward& p, int64_t count, const Rows& rows,
                             const Lanes& lanes, int64_t lane, const float* __restrict v,
                             float* __restrict q, LaneSums& sums) {
  constexpr bool kSum = kVary != Vary::kNothing;
  constexpr bool kHardReset = kReset == ResetForm::kHard, kDelayed = kReset == ResetForm::kDelayed;
  const Form<kVary> form(p);
  const float scale = p.surrogate_scale;
  const float* __restrict x = rows.x;
  const float* __restrict grad_y = rows.grad_y;
  float* __restrict grad_x = rows.grad_x;
  const int64_t x_stride = rows.x_stride, grad_y_stride = rows.grad_y_stride;
  const int64_t grad_x_stride = rows.grad_x_stride;
  const Parameter<float, kVary != Vary::kNothing> amplitude(lanes.amplitude, lane);
  const Parameter<float, kVary == Vary::kEverything> decay(lanes.decay, lane);
  const Parameter<float, kVary == Vary::kEverything> v_threshold(lanes.v_threshold, lane);
  float* __restrict grad_amplitude = sums.amplitude + lane;
  float* __restrict grad_decay = sums.decay + lane;
  float* __restrict grad_v_threshold = sums.v_threshold + lane;
  // Two loops, because the processor overlaps the neurons of a short chain of operations.
  constexpr bool kPotentials = kLearn || kDelayed;
  alignas(64) float h_rows[kSteps][kBlock];
  alignas(64) float v_rows[kPotentials ? kSteps : 1][kPotentials ? kBlock : 1];
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float decay_i = decay[i], threshold_i = v_threshold[i];
    float v_i = v[i];
    for (int k = 0; k < kSteps; ++k) {
      if (kPotentials) v_rows[k][i] = v_i;
      const Recomputed step =
          recompute_step<kReset>(form, decay_i, threshold_i, v_i, x[k * x_stride + i]);
      h_rows[k][i] = step.h;
      v_i = step.v;
    }
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float amplitude_i = amplitude[i], decay_i = decay[i], threshold_i = v_threshold[i];
    float q_i = q[i];
    float sum_amplitude = kSum ? grad_amplitude[i] : 0.0f;
    // Sums of the stretch: one addition of many small ones keeps their precision.
    float sum_decay = 0.0f, sum_threshold = 0.0f;
    for (int k = kSteps - 1; k >= 0; --k) {
      const float h = h_rows[k][i], v_before = kPotentials ? v_rows[k][i] : 0.0f;
      const uint32_t sign = sign_of(h, form.ternary);
      const float magnitude = with_sign(h, sign);
      const bool spike = magnitude >= threshold_i;
      const float g = with_sign(grad_y[k * grad_y_stride + i], sign);
      // Gradient that reaches whether the neuron fires, through the spike and through the reset.
      const float by_reset = kHardReset ? form.v_reset - h : with_sign(-threshold_i, sign);
      const uint32_t attached = kDelayed ? 0u : form.attached;
      const float grad_fires = amplitude_i * g + masked(by_reset * q_i, attached);
      const float slope = surrogate_derivative<kSurrogate>(magnitude - threshold_i, scale);
      const float through_spike = slope == 0.0f ? 0.0f : grad_fires * slope;
      const float through_state = kHardReset && spike ? 0.0f : q_i;
      const float grad_h = with_sign(through_spike, sign) + through_state;
      grad_x[k * grad_x_stride + i] = grad_h;
      if (kLearn) {
        sum_decay += grad_h * v_before;
        const float subtracted = masked(with_sign(q_i, sign), form.soft);
        sum_threshold -= through_spike + (spike ? subtracted : 0.0f);
      }
      q_i = decay_i * grad_h;
      if (kDelayed) {
        // The timestep subtracted the threshold if the neuron had fired before.
        const uint32_t sign_before = sign_of(v_before, form.ternary);
        const float magnitude_before = with_sign(v_before, sign_before);
        const float g_before = with_sign(grad_h, sign_before);
        const float slope_before =
            surrogate_derivative<kSurrogate>(magnitude_before - threshold_i, scale);
        const float grad_fired = masked(-threshold_i * g_before, form.attached);
        const float through_reset = slope_before == 0.0f ? 0.0f : grad_fired * slope_before;
        q_i += with_sign(through_reset, sign_before);
        sum_threshold -= through_reset + (magnitude_before >= threshold_i ? g_before : 0.0f);
      }
      if (kSum) sum_amplitude += spike ? g : 0.0f;
    }
    q[i] = q_i;
    if (kSum) grad_amplitude[i] = sum_amplitude;
    if (kLearn) {
      grad_decay[i] += sum_decay;
      grad_v_threshold[i] += sum_threshold;
    }
  }
}

template <Surrogate kSurrogate, ResetForm kReset, Vary kVary, bool kLearn>
constexpr RecomputeLoops kRecompute = {
    {lif_bwd_recompute_steps<kSurrogate, kReset, kVary, kLearn, 1>,
     lif_bwd_recompute_steps<kSurrogate, kReset, kVary, kLearn, 2>,
     lif_bwd_recompute_steps<kSurrogate, kReset, kVary, kLearn, 4>},
    advance<kReset, kVary>,
};

template <Surrogate kSurrogate>
const RecomputeLoops& recompute_with(const LifBackward& p) {
  constexpr Vary kEverything = Vary::kEverything;
  constexpr ResetForm kHard = ResetForm::kHard, kShift = ResetForm::kShift;
  const bool learn = p.grad_decay != nullptr || p.grad_v_threshold != nullptr;
  if (p.reset == Reset::kSoftDelayed) {
    return kRecompute<kSurrogate, ResetForm::kDelayed, kEverything, true>;
  }
  if (p.reset != Reset::kHard) {
    return learn ? kRecompute<kSurrogate, kShift, kEverything, true>
                 : kRecompute<kSurrogate, kShift, kEverything, false>;
  }
  if (learn) return kRecompute<kSurrogate, kHard, kEverything, true>;
  switch (what_varies(p)) {
    case Vary::kNothing:
      return kRecompute<kSurrogate, kHard, Vary::kNothing, false>;
    case Vary::kAmplitude:
      return kRecompute<kSurrogate, kHard, Vary::kAmplitude, false>;
    default:
      return kRecompute<kSurrogate, kHard, kEverything, false>;
  }
}

const RecomputeLoops& recompute_for(const LifBackward& p) {
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

}  // namespace
}  // namespace realspike
