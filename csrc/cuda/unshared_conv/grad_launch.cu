#include "cuda/common/launch.cuh"
#include "cuda/unshared_conv/grad_config.h"
#include "cuda/unshared_conv/grad_kernel.cuh"

namespace realspike {

int unshared_conv_grad_weight_cuda(const UnsharedConvParams& params, const float* grad_out,
                                   void* grad_weight, void* stream) {
  const GradConfig config = choose_grad_config(params, grad_weight);
  if (config.blocks == 0) return cudaSuccess;
  if (!field_fits(params)) return cudaErrorInvalidValue;
  return launch(select_grad_kernel(params, config), config.blocks, config.threads,
                config.shared_bytes, static_cast<cudaStream_t>(stream), params, grad_out,
                grad_weight, make_grad_grid(params, config));
}

}  // namespace realspike
