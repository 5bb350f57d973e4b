#pragma once

#include <cstdint>

#include "cpu/lif/fwd_tile.h"

// The backward pass over a tile, whatever its currents come from. q is the gradient that reaches
// v[t]; it enters a step as dL/dv[t] and leaves it as decay * grad_h[t], which is dL/dv[t-1].
//
// Currents::take<kSteps>(t, grad, stride) sees the gradients of the currents of timesteps t, t + 1,
// ... while they are in a cache.

namespace realspike {
namespace {

// Currents in memory, widened to float32; nobody else wants their gradients.
template <class Element>
class WidenedCurrents {
 public:
  explicit WidenedCurrents(const LifParams& p) : stored_(p) {}

  void begin(int64_t n, int64_t lane, int64_t count) {
    count_ = count;
    stored_.begin(n, lane, count);
  }

  template <int kSteps>
  const float* rows(int64_t t) {
    const auto* x = stored_.template rows<kSteps>(t);
    if constexpr (std::is_same_v<Element, Float32>) {
      return x;
    } else {
      widen_rows<Element>(x, stored_.stride(), count_, kSteps, widened_);
      return widened_;
    }
  }
  int64_t stride() const { return std::is_same_v<Element, Float32> ? stored_.stride() : kBlock; }

  template <int kSteps>
  void take(int64_t, const typename Element::Storage*, int64_t) {}

 private:
  StoredCurrents<Element> stored_;
  int64_t count_ = 0;
  alignas(64) float widened_[std::is_same_v<Element, Float32> ? 1 : kRecomputeSteps * kBlock];
};

template <class Element, class Currents>
void lif_bwd_bits_block(const LifBackward& p, const BitsLoops& loops, Currents& currents,
                        const Lanes& lanes, int64_t n, int64_t lane, int64_t count, float* q,
                        LaneSums& sums, bool stream) {
  using Storage = typename Element::Storage;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const char* saved = static_cast<const char*>(p.saved);
  RowsOut<Element, Element> out(stream);
  for_each_stretch_reversed(p.T, [&](int64_t t, auto steps) {
    Storage* grad_x_t = grad_x + t * p.N;
    loops.steps(steps)(p, count, grad_y + t * p.N,
                       saved + (t / kLifBitsInterval * p.N + n) * loops.word_bytes,
                       static_cast<int>(t % kLifBitsInterval) * loops.bits_per_step, lanes, lane, q,
                       sums, out.begin(grad_x_t), out.stride(p.N));
    out.end(grad_x_t, p.N, count, steps);
    currents.template take<steps.value>(t, out.rounded(grad_x_t), out.rounded_stride(p.N));
  });
}

template <class Element, class Currents>
void lif_bwd_recompute_block(const LifBackward& p, const RecomputeLoops& loops, Currents& currents,
                             const Lanes& lanes, int64_t n, int64_t lane, int64_t count, float* q,
                             LaneSums& sums, bool stream) {
  using Storage = typename Element::Storage;
  constexpr bool kWide = std::is_same_v<Element, Float32>;
  const Storage* grad_y = static_cast<const Storage*>(p.grad_y) + n;
  Storage* grad_x = static_cast<Storage*>(p.grad_x) + n;
  const float* saved = static_cast<const float*>(p.saved);
  RowsOut<Float32, Element> out(stream);
  alignas(64) float v[kBlock];
  alignas(64) float widened[kWide ? 1 : kRecomputeSteps * kBlock];
  for_each_stretch_reversed(p.T, [&](int64_t t, auto steps) {
    const int64_t kept = t / kLifPotentialInterval;
    load_potential(kept == 0 ? p.v_init : saved + (kept - 1) * p.N, n, count, v);
    // The potentials between the one that was kept and this stretch.
    for (int64_t before = kept * kLifPotentialInterval; before < t; ++before) {
      loops.advance(p, count, currents.template rows<1>(before), lanes, lane, v);
    }
    Storage* grad_x_t = grad_x + t * p.N;
    Rows rows = {currents.template rows<steps.value>(t),
                 currents.stride(),
                 widened,
                 kBlock,
                 out.begin(grad_x_t),
                 out.stride(p.N)};
    if constexpr (kWide) {
      rows.grad_y = grad_y + t * p.N;
      rows.grad_y_stride = p.N;
    } else {
      widen_rows<Element>(grad_y + t * p.N, p.N, count, steps, widened);
    }
    loops.steps(steps)(p, count, rows, lanes, lane, v, q, sums);
    out.end(grad_x_t, p.N, count, steps);
    currents.template take<steps.value>(t, out.rounded(grad_x_t), out.rounded_stride(p.N));
  });
}

template <class Element, class Currents>
void lif_bwd_tile(const LifBackward& p, const LifTile& tile, Currents& currents, LaneSums& sums) {
  Lanes lanes;
  gather_lanes(p, tile, what_varies(p), lanes);
  load_potential(nullptr, 0, tile.width, sums.amplitude);
  load_potential(nullptr, 0, tile.width, sums.decay);
  load_potential(nullptr, 0, tile.width, sums.v_threshold);
  const bool from_bits = p.save == LifSave::kBits;
  const BitsLoops* bits = from_bits ? &REALSPIKE_ISA::bits_loops(p) : nullptr;
  const RecomputeLoops* recompute = from_bits ? nullptr : &REALSPIKE_ISA::recompute_loops(p);
  for_each_block(p.N, tile, [&](int64_t n, int64_t lane, int64_t count) {
    alignas(64) float q[kBlock];
    load_potential(p.grad_v_last, n, count, q);
    currents.begin(n, lane, count);
    if (from_bits) {
      lif_bwd_bits_block<Element>(p, *bits, currents, lanes, n, lane, count, q, sums, tile.stream);
    } else {
      lif_bwd_recompute_block<Element>(p, *recompute, currents, lanes, n, lane, count, q, sums,
                                       tile.stream);
    }
    if (p.grad_v_init == nullptr) return;
    for (int64_t i = 0; i < count; ++i) p.grad_v_init[n + i] = q[i];
  });
  if (tile.stream) end_stream();
}

// The sums of the tile's columns, to the rows of partial sums.
inline void store_sums(const LifBackward& p, const LifTile& tile, const LaneSums& sums) {
  const auto store = [&](float* partial, const float* sum) {
    if (partial == nullptr) return;
    partial += tile.chunk * tile.row + tile.column;
    for (int64_t i = 0; i < tile.width; ++i) partial[i] = sum[i];
  };
  store(p.grad_amplitude, sums.amplitude);
  store(p.grad_decay, sums.decay);
  store(p.grad_v_threshold, sums.v_threshold);
}

}  // namespace
}  // namespace realspike
