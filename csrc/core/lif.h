#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace realspike {

// The memory of the forward pass for the backward pass.
enum class LifSave : int32_t {
  kNothing = 0,     // inference
  kBits = 1,        // two bits per neuron and timestep (four for ternary spikes)
  kPotentials = 2,  // v before timesteps 8, 16, ...; the rest is recomputed from x
};

// The effect of a spike on the potential.
enum class Reset : int32_t {
  kHard = 0,         // sets v_reset
  kSoft = 1,         // subtracts the threshold, with the sign of the spike
  kNone = 2,         // nothing
  kSoftDelayed = 3,  // the next timestep subtracts the threshold, after the decay
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

// A parameter of the neurons: neuron n has values[(n / inner) % size], which covers layer, channel
// and element granularity in both memory formats, or `all` where values is nullptr.
struct PerNeuron {
  const float* values;
  float all;
  int64_t inner;
  int64_t size;
};

// N neurons side by side in memory order.
struct LifParams {
  const void* x;        // [T, N]
  const float* v_init;  // [N], or nullptr for zeros; kSoftDelayed: before the reset
  void* saved;  // kBits: [ceil(T / 4), N], uint8 where bits 2k (spike) and 2k + 1 (window) of
                // plane j belong to timestep 4j + k; ternary: uint16, bits 4k (spike), 4k + 1
                // (window) and 4k + 2 (negative); kPotentials: float [ceil(T / 8) - 1, N]
  PerNeuron amplitude;
  PerNeuron decay;
  PerNeuron v_threshold;
  DType dtype;  // of x, y and their gradients
  LifSave save;
  int64_t T;
  int64_t N;
  int64_t x_stride_t;  // N, or 0 for an input that is constant over time
  int64_t period;      // neurons after which all parameters repeat; 1 when none of them varies
  float v_reset;
  Reset reset;
  bool detach_reset;  // no gradient through the reset
  bool ternary;       // a potential of -v_threshold or less fires a negative spike
  Surrogate surrogate;
  float surrogate_scale;  // rectangular, triangle: width; atan, sigmoid: alpha
};

struct LifForward : LifParams {
  void* y;        // [T, N]
  float* v_last;  // [N], or nullptr
};

// The gradient of a parameter is a sum over time and over neurons that lie `period` apart;
// LifTiling splits it into chunks. nullptr: that gradient is not wanted. The last two need
// LifSave::kPotentials.
struct LifBackward : LifParams {
  const void* grad_y;        // [T, N]
  const float* grad_v_last;  // [N], or nullptr for zeros
  void* grad_x;              // [T, N]
  float* grad_v_init;        // [N], or nullptr
  float* grad_amplitude;     // [chunks, row]
  float* grad_decay;         // [chunks, row]
  float* grad_v_threshold;   // [chunks, row]
};

// Inference that emits bits; the layout of the words is that of core/pack_spikes.h. The amplitude
// is not looked at, and nothing is saved.
struct LifPacked : LifParams {
  uint32_t* packed;    // [T, B, P, words]; ternary: [2, T, B, P, words], negative spikes last
  float* v_last;       // [N], or nullptr
  int64_t C;           // channels
  int64_t P;           // pixels; N = B * C * P
  int64_t words;       // ceil(C / 32)
  bool channels_last;  // neurons lie [B, P, C], else [B, C, P]
};

// How the neurons are split. It depends on sizes alone, so that sums have one order for any number
// of threads. The neurons are cut into rows of `row` neurons, a multiple of the period; the last
// row may be short. A tile is `width` columns of `rows_per_chunk` rows. All neurons of a column
// have the same parameters.
struct LifTiling {
  int64_t row;
  int64_t width;
  int64_t rows_per_chunk;
  int64_t chunks;  // ceil(rows / rows_per_chunk)
};

// Columns of a tile at most.
constexpr int64_t kLifTileWidth = 512;
// Pixels whose bits are packed together where they are neighbours.
constexpr int64_t kLifPackedPixels = 64;

LifTiling lif_tiling(int64_t T, int64_t N, int64_t period);

void lif_fwd_cpu(const LifForward& params, int num_threads);
// y once more, from the bits that a forward pass saved (LifSave::kBits).
void lif_spikes_cpu(const LifForward& params, int num_threads);
void lif_bwd_cpu(const LifBackward& params, int num_threads);
void lif_packed_cpu(const LifPacked& params, int num_threads);

}  // namespace realspike
