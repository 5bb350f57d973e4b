#include <algorithm>
#include <cstdint>

#include "cuda/unshared_conv/grad_config.h"
#include "cuda/unshared_conv/grad_kernel.cuh"

namespace realspike {

int unshared_conv_grad_weight_cuda(const UnsharedConvParams& params, const float* grad_out,
                                   void* grad_weight, void* stream) {
  const UnsharedConvConfig config = choose_unshared_conv_grad_config(params, grad_weight);
  if (config.blocks == 0) return cudaSuccess;
  const auto kernel = select_unshared_conv_grad_kernel(params, config);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  // gridDim.x is a signed 32-bit number; the blocks of a larger problem take turns.
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(config.blocks, INT32_MAX));
  kernel<<<blocks, config.threads, config.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      params, grad_out, grad_weight, make_unshared_conv_grid(params, config), config.sample_tile);
  return cudaGetLastError();
}

}  // namespace realspike
