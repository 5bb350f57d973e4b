#pragma once

#include <cstdint>

#include "core/batch_norm_lif.h"
#include "cpu/batch_norm_lif/plan.h"
#include "cpu/common/element.h"
#include "cpu/lif/lanes.h"

// The currents of neurons behind a batch norm. The loops over neurons read them from a buffer in
// the L1 cache, so that one set of loops serves neurons with and without a norm.

namespace realspike {
namespace {

// The norm of a tile's columns.
struct NormLanes {
  alignas(64) float mean[kLifTileWidth];
  alignas(64) float scale[kLifTileWidth];
  alignas(64) float bias[kLifTileWidth];
};

inline void gather_norm(const BatchNorm& norm, const LifTile& tile, NormLanes& lanes) {
  const int64_t inner = norm.channels_last ? 1 : norm.P, width = tile.width;
  const auto gather_lane = [&](const float* values, float otherwise, float* lane) {
    gather({values, otherwise, inner, values == nullptr ? 1 : norm.C}, tile.column, width, lane);
  };
  gather_lane(norm.mean, 0.0f, lanes.mean);
  gather_lane(norm.inv_std, 1.0f, lanes.scale);
  gather_lane(norm.weight, 1.0f, lanes.bias);
  // A product with 1 is exact.
  for (int64_t i = 0; i < width; ++i) lanes.scale[i] = lanes.bias[i] * lanes.scale[i];
  gather_lane(norm.bias, 0.0f, lanes.bias);
}

// Currents of kSteps timesteps. Not inlined, so that its pointers have the registers to themselves.
template <class Element, int kSteps, bool kResidual, class Storage = typename Element::Storage>
[[gnu::noinline]] void norm_steps(int64_t count, const Storage* __restrict x, int64_t x_stride,
                                  const Storage* __restrict residual, int64_t residual_stride,
                                  const float* __restrict mean, const float* __restrict scale,
                                  const float* __restrict bias, float* __restrict current) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float mean_i = mean[i], scale_i = scale[i], bias_i = bias[i];
    for (int k = 0; k < kSteps; ++k) {
      const float centred = Element::widen(x[k * x_stride + i]) - mean_i;
      const float normed = centred * scale_i + bias_i;
      current[k * kBlock + i] =
          kResidual ? normed + Element::widen(residual[k * residual_stride + i]) : normed;
    }
  }
}

// Adds kSteps timesteps of gradients to the sums of the lanes.
template <class Element, int kSteps, class Storage = typename Element::Storage>
[[gnu::noinline]] void norm_sums(int64_t count, const Storage* __restrict grad, int64_t grad_stride,
                                 const Storage* __restrict x, int64_t x_stride,
                                 const float* __restrict mean, float* __restrict sum,
                                 float* __restrict sum_centred) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float mean_i = mean[i];
    float sum_i = sum[i], sum_centred_i = sum_centred[i];
    for (int k = 0; k < kSteps; ++k) {
      const float g = Element::widen(grad[k * grad_stride + i]);
      sum_i += g;
      sum_centred_i += g * (Element::widen(x[k * x_stride + i]) - mean_i);
    }
    sum[i] = sum_i;
    sum_centred[i] = sum_centred_i;
  }
}

// The currents of a tile, made in a buffer; see StoredCurrents and lif/bwd_tile.h.
template <class ElementType>
class NormCurrents {
  using Storage = typename ElementType::Storage;

 public:
  using Element = Float32;

  NormCurrents(const LifParams& p, const BatchNorm& norm, const LifTile& tile)
      : p_(p), norm_(norm) {
    gather_norm(norm, tile, lanes_);
  }

  void begin(int64_t n, int64_t lane, int64_t count) {
    n_ = n;
    lane_ = lane;
    count_ = count;
  }

  template <int kSteps>
  const float* rows(int64_t t) {
    const Storage* residual = static_cast<const Storage*>(norm_.residual);
    if (residual == nullptr) {
      make<kSteps, false>(t, nullptr);
    } else {
      make<kSteps, true>(t, residual + t * norm_.residual_stride + n_);
    }
    return currents_[0];
  }
  static int64_t stride() { return kBlock; }

 protected:
  const Storage* x(int64_t t) const {
    return static_cast<const Storage*>(p_.x) + t * p_.x_stride_t + n_;
  }

  const LifParams& p_;
  const BatchNorm& norm_;
  NormLanes lanes_;
  int64_t n_ = 0, lane_ = 0, count_ = 0;

 private:
  template <int kSteps, bool kResidual>
  void make(int64_t t, const Storage* residual) {
    norm_steps<ElementType, kSteps, kResidual>(
        count_, x(t), p_.x_stride_t, residual, norm_.residual_stride, lanes_.mean + lane_,
        lanes_.scale + lane_, lanes_.bias + lane_, currents_[0]);
  }

  alignas(64) float currents_[kLifBitsInterval][kBlock];
};

// The sum of `lanes` in float64, in an order that depends on their number alone.
inline double sum_of(const float* lanes, int64_t count) {
  constexpr int kWays = 8;
  double sums[kWays] = {};
  int64_t i = 0;
  for (; count - i >= kWays; i += kWays) {
    for (int k = 0; k < kWays; ++k) sums[k] += lanes[i + k];
  }
  for (int half = kWays / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  for (; i < count; ++i) sums[0] += lanes[i];
  return sums[0];
}

// Gradients of a lane that are added up in float32.
constexpr int64_t kFloatSums = 1024;

// Currents whose gradients are added up per channel.
template <class Element>
class SummedNormCurrents : public NormCurrents<Element> {
  using Storage = typename Element::Storage;

 public:
  SummedNormCurrents(const LifParams& p, const BatchNorm& norm, const NormTile& task)
      : NormCurrents<Element>(p, norm, task.tile), task_(task) {
    clear();
  }

  void begin(int64_t n, int64_t lane, int64_t count) {
    steps_ += this->p_.T;
    if (steps_ > kFloatSums) {
      add_to_channels();
      steps_ = this->p_.T;
    }
    NormCurrents<Element>::begin(n, lane, count);
  }

  template <int kSteps>
  void take(int64_t t, const Storage* grad, int64_t stride) {
    const int64_t lane = this->lane_;
    norm_sums<Element, kSteps>(this->count_, grad, stride, this->x(t), this->p_.x_stride_t,
                               this->lanes_.mean + lane, sum_ + lane, sum_centred_ + lane);
  }

  // Adds the sums of the lanes to those of the task's channels.
  void add_to_channels() {
    const BatchNorm& norm = this->norm_;
    const int64_t inner = norm.channels_last ? 1 : norm.P, width = task_.tile.width;
    double* sums = task_.sums;
    double* sums_centred = task_.sums + task_.slots;
    if (inner == 1) {
      for (int64_t i = 0; i < width; i += norm.C) {
        const int64_t channels = least(norm.C, width - i);
        for (int64_t c = 0; c < channels; ++c) sums[c] += sum_[i + c];
        for (int64_t c = 0; c < channels; ++c) sums_centred[c] += sum_centred_[i + c];
      }
    } else {
      int64_t end = inner - task_.tile.column % inner;
      for (int64_t i = 0, slot = 0; i < width; i = end, end += inner) {
        const int64_t lanes = least(end, width) - i;
        sums[slot] += sum_of(sum_ + i, lanes);
        sums_centred[slot] += sum_of(sum_centred_ + i, lanes);
        slot = slot + 1 == norm.C ? 0 : slot + 1;
      }
    }
    clear();
  }

 private:
  void clear() {
    load_potential(nullptr, 0, task_.tile.width, sum_);
    load_potential(nullptr, 0, task_.tile.width, sum_centred_);
  }

  const NormTile& task_;
  int64_t steps_ = 0;
  alignas(64) float sum_[kLifTileWidth];
  alignas(64) float sum_centred_[kLifTileWidth];
};

}  // namespace
}  // namespace realspike
