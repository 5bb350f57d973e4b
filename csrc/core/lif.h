#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace realspike {

// What the forward pass keeps for the backward pass.
enum class LifSave : int32_t {
  kNothing = 0,     // inference
  kBits = 1,        // two bits per neuron and timestep: spike and surrogate window
  kPotentials = 2,  // v before timesteps 8, 16, ...; the rest is recomputed from x
};

// Derivative of the spike with respect to h; docs/lif.md has the formulas.
enum class Surrogate : int32_t {
  kRectangular = 0,
  kATan = 1,
  kSigmoid = 2,
  kTriangle = 3,
};

// Timesteps per plane of saved bits, and between two saved potentials.
constexpr int64_t kLifBitsInterval = 4;
constexpr int64_t kLifPotentialInterval = 8;

// N neurons side by side in memory order. Neuron n has the amplitude
// amplitude[(n / amplitude_inner) % amplitude_size], which covers layer, channel and element
// granularity in both memory formats.
struct LifParams {
  const void* x;           // [T, N]
  const float* amplitude;  // [amplitude_size], or nullptr for binary spikes
  const float* v_init;     // [N], or nullptr for zeros
  void* saved;             // kBits: uint8 [ceil(T / 4), N], bits 2k (spike) and 2k + 1 (window) of
                // plane j belong to timestep 4j + k; kPotentials: float [ceil(T / 8) - 1, N]
  DType dtype;  // of x, y and their gradients
  LifSave save;
  int64_t T;
  int64_t N;
  int64_t x_stride_t;  // N, or 0 for an input that is constant over time
  int64_t amplitude_inner;
  int64_t amplitude_size;
  float decay;
  float v_threshold;
  float v_reset;
  bool soft_reset;    // subtract v_threshold after a spike instead of setting v_reset
  bool detach_reset;  // no gradient through the reset
  Surrogate surrogate;
  float surrogate_scale;  // rectangular, triangle: width; atan, sigmoid: alpha
};

struct LifForward : LifParams {
  void* y;        // [T, N]
  float* v_last;  // [N]
};

struct LifBackward : LifParams {
  const void* grad_y;                // [T, N]
  const float* grad_v_last;          // [N], or nullptr for zeros
  void* grad_x;                      // [T, N]
  float* grad_v_init;                // [N], or nullptr
  float* grad_amplitude_per_neuron;  // [N]: sum over t of grad_y * o, or nullptr
};

void lif_fwd_cpu(const LifForward& params, int num_threads);
void lif_bwd_cpu(const LifBackward& params, int num_threads);

}  // namespace realspike
