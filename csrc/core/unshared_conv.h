#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/lif.h"

namespace realspike {

// out[n, co, oh, ow] = bias + sum of weight[oh, ow, g, kh, kw, ci, co] over the taps (kh, kw, ci)
// whose input bit is set. A tap reads row oh * stride_h - padding_h + kh * dilation_h of the map,
// and the column by the same rule; outside the map it adds nothing. A set bit selects one
// contiguous row of Cout_g weights, so there is nothing to multiply.
//
// With an amplitude (factored storage) a row is multiplied by the amplitude of its input element.
// int8 weights are stored as unsigned bytes that are 128 too large. Their sum is an integer; if
// there is a scale, scale[co] multiplies the sum before the bias is added.
struct UnsharedConvParams {
  const uint32_t* spikes;  // [N, H, W, words], one bit per channel (core/pack_spikes.h)
  const void* weight;      // [OH, OW, G, KH, KW, Cin_g, Cout_g], or one position shared by all
  const float* bias;       // [Cout] or [Cout, OH, OW] by strides, or nullptr
  const float* amplitude;  // [H, W, G * Cin_g], or nullptr; not with int8 weights
  const float* scale;      // [Cout], or nullptr; with int8 weights alone
  float* out;              // [N, Cout, OH, OW] by strides
  void* workspace;         // of unshared_conv_workspace_cuda bytes, or nullptr if there are none
  DType weight_dtype;
  int64_t N;
  int64_t H;
  int64_t W;
  int64_t words;  // ceil(G * Cin_g / 32)
  int64_t OH;
  int64_t OW;
  int64_t G;
  int64_t KH;
  int64_t KW;
  int64_t Cin_g;   // input channels per group
  int64_t Cout_g;  // output channels per group
  int64_t stride_h;
  int64_t stride_w;
  int64_t padding_h;
  int64_t padding_w;
  int64_t dilation_h;
  int64_t dilation_w;
  int64_t weight_stride_p;  // elements from one output position to the next; 0: one kernel for all
  int64_t bias_stride_c;    // elements from one output channel to the next
  int64_t bias_stride_p;    // elements from one output position to the next; 0: one bias for all
  int64_t out_stride_n;
  int64_t out_stride_c;
  int64_t out_stride_p;  // elements from output position oh * OW + ow to the next
};

// grad_weight[oh, ow, g, kh, kw, ci, :] += grad_out[n, :, oh, ow] for every n whose tap is set. The
// strides of `out` are those of grad_out; weight, bias, amplitude, scale and out are not used.
struct UnsharedConvGradWeight : UnsharedConvParams {
  const float* grad_out;  // [N, Cout, OH, OW] by strides
  float* grad_weight;     // [OH, OW, G, KH, KW, Cin_g, Cout_g]
};

// In ascending n.
void unshared_conv_grad_weight_cpu(const UnsharedConvGradWeight& params, int num_threads);

// Each output is one float32 sum (int32 for int8 weights) over its rows in ascending (kh, kw, ci),
// then the bias: the same bits whatever the number of threads and the instruction set. products:
// int8 weights may be multiplied by spikes, where the CPU has a unit for it; to the same bits.
void unshared_conv_cpu(const UnsharedConvParams& params, int num_threads, bool products);

// A current that joins the one of a convolution: values[n, co, position] by strides. With `spikes`
// a neuron gets its value where its bit is set and 0 where it is not: an identity shortcut.
struct AddedCurrent {
  const float* values;
  int64_t stride_n;  // elements from one sample to the next; 0: the same for all
  int64_t stride_c;
  int64_t stride_p;
  const uint32_t* spikes;    // [N, OH, OW, ceil(Cout / 32)], or nullptr: every neuron gets it
  const uint32_t* negative;  // as spikes, of those that subtract the value; or nullptr
};

constexpr int64_t kMostAddedCurrents = 4;

// Currents that go straight into LIF neurons. The result is that of unshared_conv_cpu, of adding,
// and then of lif_packed_cpu on the currents [T, B, OH * OW, Cout], bit for bit, but the currents
// are never in memory. A convolution reads `maps` maps of spikes through the same weights; of
// ternary ones (`signs` = 2) the positive and the negative bits. Its batch is [maps, signs, T, B].
// The current is map 0 + map 1 + ..., each its positive part minus its negative part, and then
// `added` after `added`, in this order. lif.C = Cout and lif.P = OH * OW. lif.x, `out` and the
// strides of `out` are not used.
struct UnsharedConvLif {
  UnsharedConvParams conv;
  LifPacked lif;  // channels_last, currents of float32
  int64_t maps;
  int64_t signs;  // 1 or 2
  int64_t added_count;
  AddedCurrent added[kMostAddedCurrents];
};

// For one group, a multiple of 32 channels in each or one channel in each, so that no group shares
// a word with another task, and for up to 256 of maps * signs * T, which are one task.
void unshared_conv_lif_cpu(const UnsharedConvLif& params, int num_threads, bool products);

// Whether a convolution of these sizes multiplies if it may: N, KH, KW, Cin_g, Cout_g and the type
// of the weights decide, and what this CPU has.
bool multiplies_cpu(const UnsharedConvParams& params);

// Enqueue on `stream` (a cudaStream_t) and return the cudaError_t of the launch. Deterministic; the
// order of the additions may differ from the CPU's. Without amplitude: there is no factored kernel.
int unshared_conv_cuda(const UnsharedConvParams& params, void* stream);

int64_t unshared_conv_workspace_cuda(const UnsharedConvParams& params);

// unshared_conv_cuda, then the neurons on what it left in conv.workspace, of
// unshared_conv_lif_workspace_cuda bytes. The spikes are those of lif_packed for the same currents.
int unshared_conv_lif_cuda(const UnsharedConvLif& params, void* stream);

int64_t unshared_conv_lif_workspace_cuda(const UnsharedConvParams& params);

// Samples that one pass of the gradient on a GPU takes; more are added to what it has stored.
constexpr int kUnsharedConvGradSamples = 256;

// unshared_conv_grad_weight_cpu onto zeros, to the same bits. Every element of grad_weight is
// written. It is of params.weight_dtype: float32, or float16 or bfloat16 (the sum rounded once),
// for up to kUnsharedConvGradSamples samples. Returns the cudaError_t of the launch.
int unshared_conv_grad_weight_cuda(const UnsharedConvParams& params, const float* grad_out,
                                   void* grad_weight, void* stream);

}  // namespace realspike
