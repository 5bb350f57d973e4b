#include <algorithm>
#include <cstdint>

#include "cuda/unshared_conv/depthwise_kernel.cuh"
#include "cuda/unshared_conv/lif_kernel.cuh"
#include "cuda/unshared_conv/listed_kernel.cuh"
#include "cuda/unshared_conv/second_pass.cuh"
#include "cuda/unshared_conv/staged_kernel.cuh"

namespace realspike {

namespace {

// With a workspace, for a second pass.
cudaError_t launch_first_pass(const UnsharedConvParams& params, const UnsharedConvConfig& config,
                              cudaStream_t stream) {
  const UnsharedConvKernel kernel = select_kernel(params.weight_dtype, config);
  if (kernel == nullptr || params.amplitude != nullptr || !field_fits(params)) {
    return cudaErrorInvalidValue;
  }
  // gridDim.x is a signed 32-bit number; the blocks of a larger problem take turns.
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(config.blocks, INT32_MAX));
  kernel<<<blocks, config.threads, config.shared_bytes, stream>>>(
      params, make_unshared_conv_grid(params, config));
  return cudaGetLastError();
}

// To params.out or, if there is one, to a workspace [N, OH, OW, Cout].
cudaError_t launch_depthwise(const UnsharedConvParams& params, cudaStream_t stream) {
  const UnsharedConvDepthwiseConfig config = choose_unshared_conv_depthwise_config(params);
  if (config.blocks == 0) return cudaSuccess;
  if (params.amplitude != nullptr || !depthwise_fits(params)) return cudaErrorInvalidValue;
  const auto kernel = select_unshared_conv_depthwise_kernel(params.weight_dtype, config);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(config.blocks, INT32_MAX));
  kernel<<<blocks, 32 * config.warps, kUnsharedConvDepthwiseSharedBytes, stream>>>(
      params, make_unshared_conv_depthwise_grid(params, config));
  return cudaGetLastError();
}

}  // namespace

int64_t unshared_conv_workspace_cuda(const UnsharedConvParams& params) {
  if (is_depthwise(params)) return 0;
  return unshared_conv_workspace_bytes(params, choose_unshared_conv_config(params));
}

int unshared_conv_cuda(const UnsharedConvParams& params, void* stream_address) {
  const auto stream = static_cast<cudaStream_t>(stream_address);
  if (is_depthwise(params)) {
    if (params.workspace != nullptr) return cudaErrorInvalidValue;
    return launch_depthwise(params, stream);
  }
  const UnsharedConvConfig config = choose_unshared_conv_config(params);
  if (config.blocks == 0) return cudaSuccess;
  const bool second_pass = needs_second_pass(config);
  if (second_pass != (params.workspace != nullptr)) return cudaErrorInvalidValue;
  const cudaError_t error = launch_first_pass(params, config, stream);
  if (error != cudaSuccess || !second_pass) return error;

  const UnsharedConvSecondPass grid = make_unshared_conv_second_pass(params, config);
  const auto finish = params.weight_dtype == DType::kInt8
                          ? unshared_conv_second_pass_kernel<int32_t>
                          : unshared_conv_second_pass_kernel<float>;
  finish<<<static_cast<unsigned>(grid.blocks), kUnsharedConvSecondPassThreads, 0, stream>>>(params,
                                                                                            grid);
  return cudaGetLastError();
}

int64_t unshared_conv_lif_workspace_cuda(const UnsharedConvParams& params) {
  if (is_depthwise(params)) return depthwise_workspace_bytes(params);
  return workspace_bytes(params, choose_unshared_conv_config(params));
}

int unshared_conv_lif_cuda(const UnsharedConvLif& params, void* stream_address) {
  const UnsharedConvParams& conv = params.conv;
  const bool depthwise = is_depthwise(conv);
  const UnsharedConvConfig config = choose_unshared_conv_config(conv);
  const UnsharedConvLifGrid grid =
      make_unshared_conv_lif_grid(params, depthwise ? 1 : config.splits);
  if (grid.blocks == 0) return cudaSuccess;
  if (conv.workspace == nullptr) return cudaErrorInvalidValue;
  const auto stream = static_cast<cudaStream_t>(stream_address);
  const cudaError_t error =
      depthwise ? launch_depthwise(conv, stream) : launch_first_pass(conv, config, stream);
  if (error != cudaSuccess) return error;
  const auto fire = conv.weight_dtype == DType::kInt8 ? unshared_conv_lif_kernel<int32_t>
                                                      : unshared_conv_lif_kernel<float>;
  fire<<<static_cast<unsigned>(grid.blocks), kUnsharedConvLifThreads, 0, stream>>>(params, grid);
  return cudaGetLastError();
}

}  // namespace realspike
