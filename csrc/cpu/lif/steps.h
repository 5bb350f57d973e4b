#pragma once

#include <cstdint>

#include "core/lif.h"

// The loops over neighbouring neurons, which lif/fwd_isa.cpp and lif/bwd_isa.cpp compile once per
// form of the neuron, as functions that other ops of the same instruction set call, too.

namespace realspike {

// Neurons whose state stays in the L1 cache while time passes.
constexpr int64_t kBlock = 512;

// Timesteps whose recomputed potentials a register can hold for every lane.
constexpr int kRecomputeSteps = 4;

// The parameters that differ between neighbouring neurons. The others stay in registers.
enum class Vary { kNothing, kAmplitude, kEverything };

// The parameters of a tile's columns; of the first alone where none of them differs.
struct Lanes {
  alignas(64) float amplitude[kLifTileWidth];
  alignas(64) float decay[kLifTileWidth];
  alignas(64) float v_threshold[kLifTileWidth];
};

// Sums over time and rows for the columns of a tile.
struct LaneSums {
  alignas(64) float amplitude[kLifTileWidth];
  alignas(64) float decay[kLifTileWidth];
  alignas(64) float v_threshold[kLifTileWidth];
};

// Functions for 1, 2 and 4 timesteps of `count` neurons, whose parameters are those of the lanes
// from `lane` on.
template <class Function>
struct Steps {
  Function one, two, four;
  Function operator()(int steps) const { return steps == 4 ? four : steps == 2 ? two : one; }
};

// Forward. x, amplitude and y have the element type that the function is chosen for.
struct ForwardLoops {
  Steps<void (*)(const LifForward&, int64_t count,
                 const void* x,  // [steps, count], x_stride apart
                 int64_t x_stride,
                 const void* amplitude,  // [lanes]
                 const Lanes&, int64_t lane,
                 float* v,  // [count]
                 void* y,   // [steps, count], y_stride apart
                 int64_t y_stride,
                 void* bits,  // [count]
                 int first_bit)>
      steps;
  Vary vary;
  int bits_per_step;  // 0: no bits are saved
  int word_bytes;     // of the bits of kLifBitsInterval timesteps
};

// Backward from bits. grad_y and grad_x have the element type of LifParams.
struct BitsLoops {
  Steps<void (*)(const LifBackward&, int64_t count,
                 const void* grad_y,  // [steps, count], N apart
                 const void* bits,    // [count]
                 int first_bit, const Lanes&, int64_t lane,
                 float* q,  // [count]
                 LaneSums&,
                 void* grad_x,  // [steps, count], grad_x_stride apart
                 int64_t grad_x_stride)>
      steps;
  int bits_per_step;
  int word_bytes;
};

// Rows of timesteps in float32, each `count` neurons.
struct Rows {
  const float* x;  // x_stride apart
  int64_t x_stride;
  const float* grad_y;  // grad_y_stride apart
  int64_t grad_y_stride;
  float* grad_x;  // grad_x_stride apart
  int64_t grad_x_stride;
};

// Backward that recomputes. `advance` carries v over one timestep.
struct RecomputeLoops {
  Steps<void (*)(const LifBackward&, int64_t count, const Rows&, const Lanes&, int64_t lane,
                 const float* v, float* q, LaneSums&)>
      steps;
  void (*advance)(const LifBackward&, int64_t count, const float* x, const Lanes&, int64_t lane,
                  float* v);
};

#ifdef REALSPIKE_ISA
namespace REALSPIKE_ISA {

// The loops for these neurons; forward, with elements of type `elements`.
const ForwardLoops& forward_loops(const LifForward&, DType elements);
const BitsLoops& bits_loops(const LifBackward&);
const RecomputeLoops& recompute_loops(const LifBackward&);

}  // namespace REALSPIKE_ISA
#endif

}  // namespace realspike
