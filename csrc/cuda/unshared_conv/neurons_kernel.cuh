#pragma once

#include <algorithm>
#include <cstdint>

#include "core/lif.h"
#include "core/neuron.h"
#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/output.cuh"

// The second pass of a convolution whose currents drive LIF neurons. It adds, scales and biases the
// sums in the workspace as unshared_conv_second_pass_kernel does, joins the maps and whatever else
// the neurons get, and runs the neuron of core/neuron.h on the currents, one timestep after the
// other. It writes packed spikes and never a current. Sample n of a map of the convolution is
// timestep n / B of element n % B of the batch.

namespace realspike {

constexpr int kNeuronsThreads = 256;
// Blocks that a multiprocessor holds at once, which bounds the registers of a thread.
constexpr int kNeuronsBlocks = 4;

// How the value of a parameter is found for a neuron, without a division.
struct PerNeuronIndex {
  Divisor inner;
  Divisor size;
};

struct NeuronsGrid {
  int64_t warps;  // [B, P, words]
  int64_t B;
  int splits;
  Divisor words;
  Divisor positions;
  PerNeuronIndex decay;
  PerNeuronIndex v_threshold;
  int64_t blocks;  // 0: there is nothing to do
};

inline NeuronsGrid make_neurons_grid(const UnsharedConvLif& params, int splits) {
  const UnsharedConvParams& p = params.conv;
  const LifPacked& lif = params.lif;
  NeuronsGrid grid{};
  if (p.N == 0 || lif.P == 0 || lif.C == 0) return grid;
  const auto index = [](const PerNeuron& of) {
    return PerNeuronIndex{make_divisor(std::max<int64_t>(of.inner, 1)),
                          make_divisor(std::max<int64_t>(of.size, 1))};
  };
  grid.B = p.N / (params.maps * params.signs * lif.T);
  grid.warps = grid.B * lif.P * lif.words;
  grid.splits = splits;
  grid.words = make_divisor(lif.words);
  grid.positions = make_divisor(lif.P);
  grid.decay = index(lif.decay);
  grid.v_threshold = index(lif.v_threshold);
  constexpr int64_t kWarps = kNeuronsThreads / 32;
  grid.blocks = ceil_div(grid.warps, kWarps);
  return grid;
}

__device__ inline float value_of(const PerNeuron& parameter, const PerNeuronIndex& index,
                                 int64_t neuron) {
  if (parameter.values == nullptr) return parameter.all;
  take_remainder(neuron, index.inner);
  return __ldg(parameter.values + take_remainder(neuron, index.size));
}

// The current of channel co that a convolution makes of one map; `pixel` counts positions of all
// samples of all maps.
template <typename Total>
__device__ inline float current_of(const UnsharedConvParams& p, int splits, int64_t all_sums,
                                   int64_t pixel, int64_t channels, int64_t co, float bias) {
  const Total* of_split = static_cast<const Total*>(p.workspace) + pixel * channels + co;
  Total total = __ldg(of_split);
#pragma unroll 2
  for (int k = 1; k < splits; ++k) {
    of_split += all_sums;
    total += __ldg(of_split);
  }
  const float x = scaled(p, co, total);
  return p.bias == nullptr ? x : x + bias;
}

// The share of an added current for the neuron of channel co, of word `word` of its pixel.
__device__ inline float value_of(const AddedCurrent& added, int64_t n, int64_t co, int64_t position,
                                 int64_t word) {
  const float value =
      __ldg(added.values + n * added.stride_n + co * added.stride_c + position * added.stride_p);
  if (added.spikes == nullptr) return value;
  const uint32_t bit = 1u << (co % 32);
  if (added.negative != nullptr && (__ldg(added.negative + word) & bit) != 0) return -value;
  return masked(value, mask_if((__ldg(added.spikes + word) & bit) != 0));
}

// A warp owns the 32 channels of one word of one output position of one element of the batch.
// Uniform over a warp: everything but the channel. Products and sums are rounded separately
// (--fmad=false).
template <typename Total>
__global__ void __launch_bounds__(kNeuronsThreads, kNeuronsBlocks)
    unshared_conv_lif_kernel(const UnsharedConvLif params, const NeuronsGrid grid) {
  const UnsharedConvParams& p = params.conv;
  const LifPacked& lif = params.lif;
  const ResetForm form = form_of(lif.reset);
  const uint32_t ternary = mask_if(lif.ternary), soft = mask_if(lif.reset == Reset::kSoft);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kWarps = kNeuronsThreads / 32;
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
        const auto of_map = [&](int64_t map) {
          return current_of<Total>(p, grid.splits, p.N * lif.P * lif.C,
                                   map * grid.B * lif.T * lif.P + pixel, lif.C, co, bias);
        };
        float x = 0.0f;
#pragma unroll 1
        for (int64_t map = 0; map < params.maps; ++map) {
          float part = of_map(map * params.signs);
          if (params.signs == 2) part -= of_map(map * params.signs + 1);
          x = map == 0 ? part : x + part;
        }
#pragma unroll 1
        for (int64_t i = 0; i < params.added_count; ++i) {
          x += value_of(params.added[i], t * grid.B + b, co, position, pixel * lif.words + word);
        }

        const float h = charge(form, decay, v, x, v_threshold, ternary);
        sign = sign_of(h, ternary);
        spike = with_sign(h, sign) >= v_threshold;
        v = reset(form, h, spike, lif.v_reset, reset_shift(soft, v_threshold, sign));
      }
      const uint32_t positive = __ballot_sync(~0u, spike && sign == 0);
      const uint32_t negative = lif.ternary ? __ballot_sync(~0u, spike && sign != 0) : 0u;
      if (lane != 0) continue;
      lif.packed[pixel * lif.words + word] = positive;
      if (lif.ternary) lif.packed[(lif.T * grid.B * lif.P + pixel) * lif.words + word] = negative;
    }
    if (exists && lif.v_last != nullptr) lif.v_last[neuron] = v;
  }
}

}  // namespace realspike
