#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {

// The kernels of a CPU, in the order in which they are asked whether they take a convolution.
enum class UnsharedConvKernel {
  kDepthwise,  // one input and one output channel per group: 32 channels side by side, under masks
  kMatrix,     // int8 weights, where products are allowed and the CPU has a unit for them
  kMasked,     // few float32 or int8 weights: every row is added, under masks
  kListed,     // any convolution: the rows that a list of spikes names are added
};

// Taps of a depthwise convolution, and of one whose spikes are masks, at most.
constexpr int64_t kMostDepthwiseTaps = 256;
constexpr int64_t kMostMaskedTaps = 64;

// Where every row is added, the weights of a position and group are at most those of 3 x 3 taps, 16
// channels to 16.
constexpr int64_t kFewWeights = 2304;

// Where every float32 row is added, a register holds the sums of so many samples, of as many
// channels each.
constexpr int kQuad = 4;

// Where every int8 row is added, a register holds so many rows of so many channels.
constexpr int64_t kByteRows = 4;
constexpr int64_t kByteChannels = 16;

// A register of the matrix unit: so many bytes in each of up to 16 rows. Fewer samples leave rows
// empty, and then it takes longer to lay out weights for the unit than to add them.
constexpr int64_t kRegisterBytes = 64;
constexpr int64_t kRegisterRows = 16;
constexpr int64_t kRegisterChannels = 16;  // sums of int32 in a row

namespace {

// How the registers of the matrix unit are filled.
struct MatrixShape {
  MatrixShape(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t all_samples) {
    samples = ceil_div(all_samples, ceil_div(all_samples, kRegisterRows));
    blocks = ceil_div(p.Cin_g, kRegisterBytes);
    rows = ceil_div(ceil_div(p.Cin_g, blocks), 4) * 4;
    tap_bytes = ceil_div(tiles.channels, kRegisterChannels) * kRegisterChannels * blocks * rows;
  }

  int64_t samples;    // of a register
  int64_t blocks;     // of a tap's rows of weights
  int64_t rows;       // of a block: a multiple of four; the last ones may lie beyond Cin_g
  int64_t tap_bytes;  // of weights
};

// Masks of the channels of a group at one pixel: 16 bits for a quad, 8 for a sample's int8 row.
inline int64_t masks_per_group(const UnsharedConvParams& p, const UnsharedConvTiles& tiles) {
  const bool bytes = p.weight_dtype == DType::kInt8;
  return (bytes ? tiles.samples : ceil_div(tiles.samples, kQuad)) * p.Cin_g;
}

inline bool adds_every_row(const UnsharedConvParams& p) {
  const int64_t taps = p.KH * p.KW;
  if (p.amplitude != nullptr || taps > kMostMaskedTaps || taps * p.Cin_g * p.Cout_g > kFewWeights) {
    return false;
  }
  if (p.weight_dtype == DType::kInt8) {
    return p.Cin_g % kByteRows == 0 && p.Cout_g == kByteChannels;
  }
  // Halves would have to be widened first, which takes the time that masks save.
  return p.weight_dtype == DType::kFloat32 && p.N >= kQuad && p.Cout_g % kQuad == 0;
}

// Pure. The sums of all kernels have the same bits.
inline UnsharedConvKernel choose_unshared_conv_kernel(const UnsharedConvParams& p, bool has_masks,
                                                      bool multiplies) {
  if (p.Cin_g == 1 && p.Cout_g == 1 && p.KH * p.KW <= kMostDepthwiseTaps) {
    return UnsharedConvKernel::kDepthwise;
  }
  if (multiplies && p.weight_dtype == DType::kInt8 && p.N >= kRegisterRows &&
      p.KH * p.KW <= kMostMaskedTaps) {
    return UnsharedConvKernel::kMatrix;
  }
  if (has_masks && adds_every_row(p)) return UnsharedConvKernel::kMasked;
  return UnsharedConvKernel::kListed;
}

}  // namespace
}  // namespace realspike
