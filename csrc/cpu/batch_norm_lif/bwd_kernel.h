#pragma once

#include <cstdint>

#include "core/batch_norm_lif.h"
#include "cpu/batch_norm_lif/currents.h"

// The last pass: from the gradient of the current to that of x.

namespace realspike {
namespace {

// Of a tile's columns; see NormGradients.
struct NormGradLanes {
  alignas(64) float mean[kLifTileWidth];
  alignas(64) float scale[kLifTileWidth];
  alignas(64) float shift[kLifTileWidth];
  alignas(64) float slope[kLifTileWidth];
};

inline void gather_norm_grad(const BatchNormBackward& p, const NormGradients& of,
                             const LifTile& tile, NormGradLanes& lanes) {
  const int64_t inner = p.channels_last ? 1 : p.P;
  const auto gather_lane = [&](const float* values, float* lane) {
    gather({values, 0.0f, inner, p.C}, tile.column, tile.width, lane);
  };
  gather_lane(p.norm.mean, lanes.mean);
  gather_lane(of.scale, lanes.scale);
  gather_lane(of.shift, lanes.shift);
  gather_lane(of.slope, lanes.slope);
}

// kSteps timesteps. grad_x may be grad_current.
template <class Element, int kSteps, class Storage = typename Element::Storage>
void norm_bwd_steps(int64_t count, const Storage* grad_current, const Storage* x, int64_t x_stride,
                    int64_t stride, const NormGradLanes& lanes, int64_t lane, Storage* grad_x) {
  const float* __restrict mean = lanes.mean + lane;
  const float* __restrict scale = lanes.scale + lane;
  const float* __restrict shift = lanes.shift + lane;
  const float* __restrict slope = lanes.slope + lane;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float mean_i = mean[i], scale_i = scale[i], shift_i = shift[i], slope_i = slope[i];
    for (int k = 0; k < kSteps; ++k) {
      const float centred = Element::widen(x[k * x_stride + i]) - mean_i;
      const float g = Element::widen(grad_current[k * stride + i]) - shift_i;
      grad_x[k * stride + i] = Element::round(scale_i * (g - centred * slope_i));
    }
  }
}

template <class Element>
void norm_bwd_tile(const BatchNormBackward& p, const NormGradients& of, const LifTile& tile) {
  using Storage = typename Element::Storage;
  const int64_t N = p.B * p.C * p.P;
  NormGradLanes lanes;
  gather_norm_grad(p, of, tile, lanes);
  const Storage* grad_current = static_cast<const Storage*>(p.grad_current);
  const Storage* x = static_cast<const Storage*>(p.x);
  Storage* grad_x = static_cast<Storage*>(p.grad_x);
  for_each_block(N, tile, [&](int64_t n, int64_t lane, int64_t count) {
    for_each_stretch(p.T, [&](int64_t t, auto steps) {
      norm_bwd_steps<Element, steps.value>(count, grad_current + t * N + n,
                                           x + t * p.x_stride_t + n, p.x_stride_t, N, lanes, lane,
                                           grad_x + t * N + n);
    });
  });
}

}  // namespace
}  // namespace realspike
