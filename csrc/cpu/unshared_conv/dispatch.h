#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {

// The kernels of a CPU, in the order in which they are asked whether they take a convolution.
enum class UnsharedConvKernel {
  kDepthwise,  // one input and one output channel per group: 32 channels side by side, under masks
  kMasked,     // few float32 weights and at least four samples: every row is added, under masks
  kListed,     // any convolution: the rows that a list of spikes names are added
};

// Taps of a depthwise convolution, and of one whose rows are all added, at most.
constexpr int64_t kMostDepthwiseTaps = 256;
constexpr int64_t kMostMaskedTaps = 64;

// Where every row is added, a register holds the sums of so many samples, of as many channels each.
constexpr int kQuad = 4;

namespace {

inline int64_t sample_quads(const UnsharedConvTiles& tiles) {
  return ceil_div(tiles.samples, kQuad);
}

// Pure. The sums of all kernels have the same bits.
inline UnsharedConvKernel choose_unshared_conv_kernel(const UnsharedConvParams& p, bool has_masks) {
  constexpr int64_t kFewWeights = 2304;  // of a position and group: 3 x 3 taps, 16 channels to 16
  const int64_t taps = p.KH * p.KW;
  if (p.Cin_g == 1 && p.Cout_g == 1 && taps <= kMostDepthwiseTaps) {
    return UnsharedConvKernel::kDepthwise;
  }
  // float32: other weights would have to be widened first, which takes the time that masks save.
  if (has_masks && p.weight_dtype == DType::kFloat32 && p.amplitude == nullptr && p.N >= kQuad &&
      p.Cout_g % kQuad == 0 && taps <= kMostMaskedTaps &&
      taps * p.Cin_g * p.Cout_g <= kFewWeights) {
    return UnsharedConvKernel::kMasked;
  }
  return UnsharedConvKernel::kListed;
}

}  // namespace
}  // namespace realspike
