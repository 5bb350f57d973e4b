#pragma once

#include "core/unshared_conv.h"
#include "cuda/unshared_conv/depthwise_config.h"
#include "cuda/unshared_conv/listed_config.h"
#include "cuda/unshared_conv/staged_config.h"

namespace realspike {

// The kernels of a GPU, in the order in which they are asked whether they take a convolution.
enum class UnsharedConvCudaKernel {
  kDepthwise,  // one input and one output channel per group: a lane is a channel
  kStaged,     // many samples and rows that the cache delivers too slowly: rows in shared memory
  kListed,     // any convolution: a stream adds the rows that its list of spikes names
};

// Pure.
inline UnsharedConvCudaKernel choose_unshared_conv_cuda_kernel(const UnsharedConvParams& p) {
  if (is_depthwise(p)) return UnsharedConvCudaKernel::kDepthwise;
  if (stages_rows(p)) return UnsharedConvCudaKernel::kStaged;
  return UnsharedConvCudaKernel::kListed;
}

// Blocks whose sums a second pass adds up; 1: there is none.
inline int splits_of(const UnsharedConvParams& p) {
  const bool listed = choose_unshared_conv_cuda_kernel(p) == UnsharedConvCudaKernel::kListed;
  return listed ? choose_listed_config(p).splits : 1;
}

}  // namespace realspike
