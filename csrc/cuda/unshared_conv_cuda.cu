#include <algorithm>
#include <cstdint>

#include "cuda/unshared_conv_kernel.cuh"

namespace realspike {

int unshared_conv_cuda(const UnsharedConvParams& params, void* stream) {
  const UnsharedConvConfig config = choose_unshared_conv_config(params);
  if (config.blocks == 0) return cudaSuccess;
  const UnsharedConvKernel kernel = select_unshared_conv_kernel(params.weight_dtype, config);
  if (kernel == nullptr) return cudaErrorInvalidValue;

  // gridDim.x is a signed 32-bit number; the blocks of a larger problem take turns.
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(config.blocks, INT32_MAX));
  kernel<<<blocks, config.threads, config.shared_bytes, static_cast<cudaStream_t>(stream)>>>(
      params, make_unshared_conv_grid(params, config));
  return cudaGetLastError();
}

}  // namespace realspike
