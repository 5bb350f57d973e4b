#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/lif/steps.h"
#include "cpu/lif/tile.h"

namespace realspike {
namespace {

inline bool differs(const PerNeuron& parameter) { return parameter.size > 1; }

// The paper's neuron, binary with a hard reset, has loops for parameters that do not vary. Every
// other neuron takes the loop for parameters that do.
inline Vary what_varies(const LifParams& p) {
  const bool papers = p.reset == Reset::kHard && !p.ternary;
  if (!papers || differs(p.decay) || differs(p.v_threshold)) return Vary::kEverything;
  return differs(p.amplitude) ? Vary::kAmplitude : Vary::kNothing;
}

// Which parameters backward treats as varying: those whose gradient is wanted, too.
inline Vary what_varies(const LifBackward& p) {
  if (p.grad_decay != nullptr || p.grad_v_threshold != nullptr) return Vary::kEverything;
  const Vary vary = what_varies(static_cast<const LifParams&>(p));
  return vary == Vary::kNothing && p.grad_amplitude != nullptr ? Vary::kAmplitude : vary;
}

template <class T>
struct Uniform {
  T value;
  Uniform(const T* values, int64_t) : value(values[0]) {}
  T operator[](int64_t) const { return value; }
};

template <class T>
struct PerLane {
  const T* values;
  PerLane(const T* all_values, int64_t lane) : values(all_values + lane) {}
  T operator[](int64_t i) const { return values[i]; }
};

template <class T, bool kVaries>
using Parameter = std::conditional_t<kVaries, PerLane<T>, Uniform<T>>;

inline void gather(const PerNeuron& parameter, int64_t n, int64_t count, float* lanes) {
  if (!differs(parameter)) {
    const float all = parameter.values == nullptr ? parameter.all : parameter.values[0];
    for (int64_t i = 0; i < count; ++i) lanes[i] = all;
    return;
  }
  const int64_t inner = parameter.inner;
  int64_t index = n / inner % parameter.size;
  int64_t end = inner - n % inner;
  for (int64_t i = 0; i < count;) {
    if (inner == 1) {
      end = i + parameter.size - index;
      if (end > count) end = count;
      std::memcpy(lanes + i, parameter.values + index, (end - i) * sizeof(float));
      i = end;
      index = 0;
      continue;
    }
    if (end > count) end = count;
    for (; i < end; ++i) lanes[i] = parameter.values[index];
    end += inner;
    if (++index == parameter.size) index = 0;
  }
}

inline void gather_lanes(const LifParams& p, const LifTile& tile, Vary vary, Lanes& lanes) {
  const int64_t dynamics = vary == Vary::kEverything ? tile.width : 1;
  gather(p.amplitude, tile.column, vary == Vary::kNothing ? 1 : tile.width, lanes.amplitude);
  gather(p.decay, tile.column, dynamics, lanes.decay);
  gather(p.v_threshold, tile.column, dynamics, lanes.v_threshold);
}

// Calls block(n, lane, count) for every block of the tile: neurons [n, n + count), which have the
// parameters of the lanes from `lane` on. Rows in ascending order.
template <class Block>
void for_each_block(int64_t N, const LifTile& tile, Block block) {
  for (int64_t lane = 0; lane < tile.width; lane += kBlock) {
    for (int64_t r = tile.row_begin; r < tile.row_end; ++r) {
      const int64_t n = r * tile.row + tile.column + lane;
      const int64_t count = least(least(tile.width - lane, kBlock), N - n);
      if (count > 0) block(n, lane, count);
    }
  }
}

inline void load_potential(const float* source, int64_t n, int64_t count, float* v) {
  for (int64_t i = 0; i < count; ++i) v[i] = source == nullptr ? 0.0f : source[n + i];
}

// Calls steps(t, std::integral_constant<int, K>) for stretches of K = 4, 2 or 1 timesteps that make
// up [0, T) and do not cross a multiple of 4.
template <class Steps>
void for_each_stretch(int64_t T, Steps steps) {
  int64_t t = 0;
  for (; T - t >= 4; t += 4) steps(t, std::integral_constant<int, 4>{});
  if (T - t >= 2) {
    steps(t, std::integral_constant<int, 2>{});
    t += 2;
  }
  if (T > t) steps(t, std::integral_constant<int, 1>{});
}

// The same stretches in the opposite order.
template <class Steps>
void for_each_stretch_reversed(int64_t T, Steps steps) {
  const int64_t whole = T / 4 * 4;
  if (T % 2 == 1) steps(T - 1, std::integral_constant<int, 1>{});
  if (T - whole >= 2) steps(whole, std::integral_constant<int, 2>{});
  for (int64_t t = whole - 4; t >= 0; t -= 4) steps(t, std::integral_constant<int, 4>{});
}

}  // namespace
}  // namespace realspike
