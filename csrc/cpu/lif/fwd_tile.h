#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/common/element.h"
#include "cpu/common/stream.h"
#include "cpu/lif/lanes.h"

// The forward pass over a tile, whatever its currents come from.

namespace realspike {
namespace {

// The currents of a block of neurons where they lie in memory. Others are made in the L1 cache: a
// class with the same functions.
template <class ElementType>
class StoredCurrents {
 public:
  using Element = ElementType;  // of the currents, and of the spikes that the loops write
  using Storage = typename Element::Storage;

  explicit StoredCurrents(const LifParams& p) : p_(p) {}

  // The block that rows are of: neurons [n, n + count), with the parameters of the lanes from
  // `lane` on.
  void begin(int64_t n, int64_t, int64_t) { n_ = n; }

  // The currents of timesteps t, t + 1, ...; stride() apart.
  template <int kSteps>
  const Storage* rows(int64_t t) {
    return static_cast<const Storage*>(p_.x) + n_ + t * p_.x_stride_t;
  }
  int64_t stride() const { return p_.x_stride_t; }

 private:
  const LifParams& p_;
  int64_t n_ = 0;
};

// [steps, count] rows of memory, `stride` apart, as float32 rows kBlock apart.
template <class Element>
void widen_rows(const typename Element::Storage* rows, int64_t stride, int64_t count, int steps,
                float* __restrict widened) {
  for (int k = 0; k < steps; ++k) {
    for (int64_t i = 0; i < count; ++i) {
      widened[k * kBlock + i] = Element::widen(rows[k * stride + i]);
    }
  }
}

// Rows that a loop writes: straight to memory, or into a buffer first, where they have to be
// rounded to another type or go past the caches.
template <class Loop, class Element>
class RowsOut {
  using LoopStorage = typename Loop::Storage;
  using Storage = typename Element::Storage;
  static constexpr bool kSame = std::is_same_v<Loop, Element>;

 public:
  explicit RowsOut(bool stream) : stream_(stream) {}

  LoopStorage* begin(Storage* to) {
    if constexpr (kSame) {
      if (!stream_) return to;
    }
    return rows_[0];
  }
  int64_t stride(int64_t in_memory) const { return kSame && !stream_ ? in_memory : kBlock; }

  // Sends what was written where it belongs: to `to`, rows `stride` apart.
  void end(Storage* to, int64_t stride, int64_t count, int steps) {
    for (int k = 0; k < steps; ++k) {
      if constexpr (kSame) {
        if (stream_) stream_copy(to + k * stride, rows_[k], count * sizeof(Storage));
      } else {
        Storage* row = stream_ ? rounded_[k] : to + k * stride;
        for (int64_t i = 0; i < count; ++i) row[i] = Element::round(rows_[k][i]);
        if (stream_) stream_copy(to + k * stride, row, count * sizeof(Storage));
      }
    }
  }

  // After end(): the rows in the element type, rounded_stride() apart, in a cache.
  const Storage* rounded(const Storage* to) const {
    if (!stream_) return to;
    if constexpr (kSame) {
      return rows_[0];
    } else {
      return rounded_[0];
    }
  }
  int64_t rounded_stride(int64_t in_memory) const { return stream_ ? kBlock : in_memory; }

 private:
  alignas(64) LoopStorage rows_[kLifBitsInterval][kBlock];
  alignas(64) Storage rounded_[kSame ? 1 : kLifBitsInterval][kSame ? 1 : kBlock];
  bool stream_;
};

template <class Element, class Currents>
void lif_fwd_block(const LifForward& p, const ForwardLoops& loops, Currents& currents,
                   const Lanes& lanes, const void* amplitude, int64_t n, int64_t lane,
                   int64_t count, bool stream) {
  using Storage = typename Element::Storage;
  alignas(64) float v[kBlock];
  alignas(64) uint16_t streamed_bits[kBlock];
  RowsOut<typename Currents::Element, Element> out(stream);
  load_potential(p.v_init, n, count, v);
  currents.begin(n, lane, count);
  Storage* y = static_cast<Storage*>(p.y) + n;
  for_each_stretch(p.T, [&](int64_t t, auto steps) {
    if (p.save == LifSave::kPotentials && t > 0 && t % kLifPotentialInterval == 0) {
      float* saved = static_cast<float*>(p.saved) + (t / kLifPotentialInterval - 1) * p.N + n;
      for (int64_t i = 0; i < count; ++i) saved[i] = v[i];
    }
    char* saved = static_cast<char*>(p.saved);
    if (loops.bits_per_step > 0) saved += (t / kLifBitsInterval * p.N + n) * loops.word_bytes;
    Storage* y_t = y + t * p.N;
    const auto* x = currents.template rows<steps.value>(t);
    loops.steps(steps)(p, count, x, currents.stride(), amplitude, lanes, lane, v, out.begin(y_t),
                       out.stride(p.N), stream ? static_cast<void*>(streamed_bits) : saved,
                       static_cast<int>(t % kLifBitsInterval) * loops.bits_per_step);
    out.end(y_t, p.N, count, steps);
    const int64_t end = t + steps.value;
    if (stream && loops.bits_per_step > 0 && (end % kLifBitsInterval == 0 || end == p.T)) {
      stream_copy(saved, streamed_bits, count * loops.word_bytes);
    }
  });
  if (p.v_last == nullptr) return;
  for (int64_t i = 0; i < count; ++i) p.v_last[n + i] = v[i];
}

template <class Element, class Currents>
void lif_fwd_tile(const LifForward& p, const LifTile& tile, const ForwardLoops& loops,
                  Currents& currents) {
  using Loop = typename Currents::Element;
  Lanes lanes;
  gather_lanes(p, tile, loops.vary, lanes);
  // Rounded to the element type of the output.
  alignas(64) typename Loop::Storage amplitude[kLifTileWidth];
  const int64_t amplitudes = loops.vary == Vary::kNothing ? 1 : tile.width;
  for (int64_t i = 0; i < amplitudes; ++i) {
    amplitude[i] = Loop::round(Element::widen(Element::round(lanes.amplitude[i])));
  }
  for_each_block(p.N, tile, [&](int64_t n, int64_t lane, int64_t count) {
    lif_fwd_block<Element>(p, loops, currents, lanes, amplitude, n, lane, count, tile.stream);
  });
  if (tile.stream) end_stream();
}

}  // namespace
}  // namespace realspike
