#pragma once

#include <cstdint>

#include "core/lif.h"
#include "core/numbers.h"

// One timestep of one neuron, for the loops of the CPU and for the neurons behind a convolution on
// a GPU. Free of branches.

namespace realspike {
namespace {

// A condition that is uniform over a call, as a mask: a compiler makes a copy of a loop for every
// combination of the conditions that the loop tests.
REALSPIKE_HOST_DEVICE inline uint32_t mask_if(bool condition) { return condition ? ~0u : 0u; }

REALSPIKE_HOST_DEVICE inline float masked(float x, uint32_t mask) {
  return bits_float(float_bits(x) & mask);
}

// The sign bit of a ternary spike; a binary spike has none.
REALSPIKE_HOST_DEVICE inline uint32_t sign_of(float h, uint32_t ternary) {
  return float_bits(h) & 0x80000000u & ternary;
}

// `x` with its sign flipped where `sign` is set.
REALSPIKE_HOST_DEVICE inline float with_sign(float x, uint32_t sign) {
  return bits_float(float_bits(x) ^ sign);
}

inline bool in_window(float distance, float width) {
  return __builtin_fabsf(distance) <= 0.5f * width;
}

// The resets that loops over neurons are compiled for.
enum class ResetForm {
  kHard,
  kShift,    // soft, or none
  kDelayed,  // soft, by the next timestep
};

REALSPIKE_HOST_DEVICE inline ResetForm form_of(Reset reset) {
  return reset == Reset::kHard          ? ResetForm::kHard
         : reset == Reset::kSoftDelayed ? ResetForm::kDelayed
                                        : ResetForm::kShift;
}

// h[t] from v[t-1] and x[t]. Where the reset is delayed, v[t-1] still is h[t-1], which tells
// whether it fired.
REALSPIKE_HOST_DEVICE inline float charge(ResetForm form, float decay, float v, float x,
                                          float v_threshold, uint32_t ternary) {
  const float h = decay * v + x;
  if (form != ResetForm::kDelayed) return h;
  const uint32_t sign = sign_of(v, ternary);
  return with_sign(v, sign) >= v_threshold ? h + with_sign(-v_threshold, sign) : h;
}

// v[t] from h[t] (Eq. 6), without the multiplication: an infinite h resets like any other. After a
// hard reset the potential is v_reset; otherwise the spike adds `shift`.
REALSPIKE_HOST_DEVICE inline float reset(ResetForm form, float h, bool spike, float v_reset,
                                         float shift) {
  return spike ? (form == ResetForm::kHard ? v_reset : h + shift) : h;
}

// A reset that is not hard adds this to the potential of a neuron that fires: minus the threshold
// if it is soft and not delayed, otherwise 0.
REALSPIKE_HOST_DEVICE inline float reset_shift(uint32_t soft, float v_threshold, uint32_t sign) {
  return masked(with_sign(-v_threshold, sign), soft);
}

constexpr float kInfinity = __builtin_inff();

// d spike / d h, written once for C++; distance = |h| - v_threshold for ternary spikes and
// h - v_threshold for binary ones.
template <Surrogate kSurrogate>
inline float surrogate_derivative(float distance, float scale) {
  switch (kSurrogate) {
    case Surrogate::kRectangular:  // 1 / width on a window of that width
      return in_window(distance, scale) ? 1.0f / scale : 0.0f;
    case Surrogate::kTriangle: {  // a tent of that width and area 1
      const float inside = scale - 2.0f * __builtin_fabsf(distance);
      return inside > 0.0f ? inside / scale * 2.0f / scale : 0.0f;
    }
    case Surrogate::kATan: {  // derivative of atan(pi / 2 * alpha * distance) / pi
      const float z = 1.57079632679489662f * (scale * distance);
      const float square = z * z;
      // The square may overflow where the quotient, then 1 / (2 (pi/2)^2 alpha d^2), does not.
      return square < kInfinity ? 0.5f * scale / (1.0f + square)
                                : 0.202642367f / distance / scale / distance;
    }
    default: {  // derivative of sigmoid(alpha * distance)
      // The same on both sides of the threshold. In float the exponent's rounding would count.
      const double e = __builtin_exp(-__builtin_fabs(double{scale} * distance));
      return static_cast<float>(scale * e / ((1.0 + e) * (1.0 + e)));
    }
  }
}

}  // namespace
}  // namespace realspike
