#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/lif.h"
#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/config.h"

// The second pass of the convolution where its currents drive LIF neurons: what the first pass left
// in the workspace is added, scaled and biased as in unshared_conv_second_pass_kernel, and goes
// through the neuron of core/lif.h, one timestep after the other, to packed spikes. The currents
// are never written. Sample n of the convolution is timestep n / B of element n % B of the batch.

namespace realspike {

constexpr int kUnsharedConvLifThreads = 256;

// A parameter of the neurons, found without a division.
struct PerNeuronIndex {
  Divisor inner;
  Divisor size;
};

struct UnsharedConvLifGrid {
  int64_t warps;  // [B, P, words]
  int64_t B;
  int splits;
  Divisor words;
  Divisor positions;
  PerNeuronIndex decay;
  PerNeuronIndex v_threshold;
  int64_t blocks;  // 0: there is nothing to do
};

inline UnsharedConvLifGrid make_unshared_conv_lif_grid(const UnsharedConvLif& params, int splits) {
  const UnsharedConvParams& p = params.conv;
  const LifPacked& lif = params.lif;
  UnsharedConvLifGrid grid{};
  if (p.N == 0 || lif.P == 0 || lif.C == 0) return grid;
  const auto index = [](const PerNeuron& of) {
    return PerNeuronIndex{make_divisor(std::max<int64_t>(of.inner, 1)),
                          make_divisor(std::max<int64_t>(of.size, 1))};
  };
  grid.B = p.N / lif.T;
  grid.warps = grid.B * lif.P * lif.words;
  grid.splits = splits;
  grid.words = make_divisor(lif.words);
  grid.positions = make_divisor(lif.P);
  grid.decay = index(lif.decay);
  grid.v_threshold = index(lif.v_threshold);
  constexpr int64_t kWarps = kUnsharedConvLifThreads / 32;
  grid.blocks = std::min<int64_t>((grid.warps + kWarps - 1) / kWarps, INT32_MAX);
  return grid;
}

__device__ inline float value_of(const PerNeuron& parameter, const PerNeuronIndex& index,
                                 int64_t neuron) {
  if (parameter.values == nullptr) return parameter.all;
  take_remainder(neuron, index.inner);
  return __ldg(parameter.values + take_remainder(neuron, index.size));
}

__device__ inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// h after the soft reset of the spike that a potential v fires, if it does.
__device__ inline float subtract_threshold(float h, float v, float v_threshold, bool ternary) {
  const bool negative = ternary && (bits_of(v) & 0x80000000u) != 0;
  if (!((negative ? -v : v) >= v_threshold)) return h;
  return negative ? h + v_threshold : h - v_threshold;
}

// A warp owns the 32 channels of one word of one output position of one element of the batch.
// Uniform over a warp: everything but the channel. Products and sums are rounded separately
// (--fmad=false).
template <typename Total>
__global__ void __launch_bounds__(kUnsharedConvLifThreads)
    unshared_conv_lif_kernel(const UnsharedConvLif params, const UnsharedConvLifGrid grid) {
  const UnsharedConvParams& p = params.conv;
  const LifPacked& lif = params.lif;
  const Total* const sums = static_cast<const Total*>(p.workspace);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kWarps = kUnsharedConvLifThreads / 32;
  int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  for (; warp < grid.warps; warp += int64_t{gridDim.x} * kWarps) {
    int64_t b = warp;
    const int64_t word = take_remainder(b, grid.words);
    const int64_t position = take_remainder(b, grid.positions);
    const int64_t co = word * 32 + lane;
    const bool exists = co < lif.C;
    const int64_t neuron = (b * lif.P + position) * lif.C + co;

    float v = exists && lif.v_init != nullptr ? __ldg(lif.v_init + neuron) : 0.0f;
    const float decay = exists ? value_of(lif.decay, grid.decay, neuron) : 0.0f;
    const float v_threshold = exists ? value_of(lif.v_threshold, grid.v_threshold, neuron) : 0.0f;
    float bias = 0.0f;
    if (exists && p.bias != nullptr) {
      bias = __ldg(p.bias + co * p.bias_stride_c + position * p.bias_stride_p);
    }
#pragma unroll 1
    for (int64_t t = 0; t < lif.T; ++t) {
      const int64_t pixel = (t * grid.B + b) * lif.P + position;
      bool spike = false;
      uint32_t sign = 0;
      if (exists) {
        const Total* of_split = sums + pixel * lif.C + co;
        Total total = __ldg(of_split);
        for (int k = 1; k < grid.splits; ++k) {
          of_split += p.N * lif.P * lif.C;
          total += __ldg(of_split);
        }
        float x = static_cast<float>(total);
        if constexpr (static_cast<Total>(0.5) == 0) {  // int32_t
          if (p.scale != nullptr) x *= __ldg(p.scale + co);
        }
        if (p.bias != nullptr) x += bias;

        float h = decay * v + x;
        if (lif.reset == Reset::kSoftDelayed)
          h = subtract_threshold(h, v, v_threshold, lif.ternary);
        sign = lif.ternary ? bits_of(h) & 0x80000000u : 0u;
        spike = (sign != 0 ? -h : h) >= v_threshold;
        v = h;
        if (lif.reset == Reset::kHard) v = spike ? lif.v_reset : h;
        if (lif.reset == Reset::kSoft) v = subtract_threshold(h, h, v_threshold, lif.ternary);
      }
      const uint32_t positive = __ballot_sync(~0u, spike && sign == 0);
      const uint32_t negative = lif.ternary ? __ballot_sync(~0u, spike && sign != 0) : 0u;
      if (lane != 0) continue;
      lif.packed[pixel * lif.words + word] = positive;
      if (lif.ternary) lif.packed[(p.N * lif.P + pixel) * lif.words + word] = negative;
    }
    if (exists && lif.v_last != nullptr) lif.v_last[neuron] = v;
  }
}

}  // namespace realspike
