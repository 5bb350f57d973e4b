#pragma once

#include <cstdint>

#include "core/lif.h"

namespace realspike {

// A tensor [T, B, C, pixels]: its timesteps are dense, [B, C, P] or, channels_last, [B, P, C].
struct NormShape {
  DType dtype;
  int64_t T;
  int64_t B;
  int64_t C;
  int64_t P;
  bool channels_last;
};

// The current of a neuron of channel c is (x - mean[c]) * scale[c] + bias[c], then + residual; in
// float32, each operation rounded by itself.
struct BatchNorm {
  const float* mean;        // [C]
  const float* inv_std;     // [C]
  const float* weight;      // [C], or nullptr; scale = weight * inv_std, or inv_std
  const float* bias;        // [C], or nullptr for zeros
  const void* residual;     // [T, N], or nullptr
  int64_t residual_stride;  // N, or 0 for a residual that is constant over time
  int64_t C;
  int64_t P;
  bool channels_last;
};

struct BatchNormMoments : NormShape {
  const void* x;
  int64_t x_stride_t;  // B * C * P, or 0
  double* moments;     // [2 * C + 1]: means, biased variances, and how many values those are of
};

// The mean and the deviation that x is normalised by, of its moments. The running statistics step
// towards those moments.
struct BatchNormStatistics {
  const double* moments;  // [2 * C + 1]
  float* running_mean;    // [C], or nullptr; a count of 0 leaves it
  float* running_var;     // [C], or nullptr
  float* mean;            // [C]
  float* inv_std;         // [C]
  int64_t C;
  double momentum;
  double eps;
};

struct BatchNormLifForward {
  LifForward lif;  // its x goes through the norm
  BatchNorm norm;
};

// Where no parameter varies, its gradient is one sum, [1, 1], and not partial ones.
struct BatchNormLifBackward {
  LifBackward lif;  // grad_x is the gradient of the current
  BatchNorm norm;
  double* sums;        // [2, C], or nullptr: of grad_x, and of grad_x * (x - mean)
  float* grad_weight;  // [C], or nullptr
  float* grad_bias;    // [C], or nullptr
  // The gradient of x, as of BatchNormBackward, where these sums are all there are; or nullptr.
  void* grad_input;     // [T, N]; may be grad_x
  const double* count;  // [1], or nullptr
};

// grad_x = scale * (grad_current - sums[0] / count - (x - mean) * inv_std^2 * sums[1] / count); the
// last two terms only where there is a count, otherwise the statistics are constants.
struct BatchNormBackward : NormShape {
  BatchNorm norm;
  const void* grad_current;  // [T, N]
  const void* x;             // [T, N]
  int64_t x_stride_t;        // N, or 0
  const double* sums;        // [2, C]
  const double* count;       // [1], or nullptr
  void* grad_x;              // [T, N]; may be grad_current
};

void batch_norm_moments_cpu(const BatchNormMoments& params, int num_threads);
void batch_norm_statistics_cpu(const BatchNormStatistics& params);
// Both, for moments that nobody else asks for.
void batch_norm_of_cpu(const BatchNormMoments& of, BatchNormStatistics to, double* count,
                       int num_threads);
void batch_norm_lif_fwd_cpu(const BatchNormLifForward& params, int num_threads);
void batch_norm_lif_bwd_cpu(const BatchNormLifBackward& params, int num_threads);
void batch_norm_bwd_cpu(const BatchNormBackward& params, int num_threads);

}  // namespace realspike
