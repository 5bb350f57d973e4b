#include <cstdint>

#include "cuda/common/launch.cuh"
#include "cuda/unshared_conv/depthwise_kernel.cuh"
#include "cuda/unshared_conv/dispatch.h"
#include "cuda/unshared_conv/listed_kernel.cuh"
#include "cuda/unshared_conv/neurons_kernel.cuh"
#include "cuda/unshared_conv/second_pass.cuh"
#include "cuda/unshared_conv/staged_kernel.cuh"

namespace realspike {
namespace {

cudaError_t launch_depthwise(const UnsharedConvParams& params, cudaStream_t stream) {
  const DepthwiseConfig config = choose_depthwise_config(params);
  if (!depthwise_fits(params)) return cudaErrorInvalidValue;
  return launch(select_depthwise_kernel(params.weight_dtype, config), config.blocks,
                32 * config.warps, kDepthwiseSharedBytes, stream, params,
                make_depthwise_grid(params, config));
}

cudaError_t launch_staged(const UnsharedConvParams& params, cudaStream_t stream) {
  const StagedConfig config = choose_staged_config(params);
  if (!field_fits(params)) return cudaErrorInvalidValue;
  return launch(select_staged_kernel(params.weight_dtype, config), config.blocks, config.threads,
                config.shared_bytes, stream, params, make_staged_grid(params, config));
}

cudaError_t launch_listed(const UnsharedConvParams& params, cudaStream_t stream) {
  const ListedConfig config = choose_listed_config(params);
  if (!field_fits(params)) return cudaErrorInvalidValue;
  return launch(select_listed_kernel(params.weight_dtype, config), config.blocks, config.threads,
                config.shared_bytes, stream, params, make_listed_grid(params, config));
}

// To params.out or, if there is one, to the workspace.
cudaError_t launch_first_pass(const UnsharedConvParams& params, cudaStream_t stream) {
  if (params.amplitude != nullptr) return cudaErrorInvalidValue;
  switch (choose_unshared_conv_cuda_kernel(params)) {
    case UnsharedConvCudaKernel::kDepthwise:
      return launch_depthwise(params, stream);
    case UnsharedConvCudaKernel::kStaged:
      return launch_staged(params, stream);
    default:
      return launch_listed(params, stream);
  }
}

bool is_empty(const UnsharedConvParams& p) { return p.N * p.G * p.Cout_g * p.OH * p.OW == 0; }

}  // namespace

int64_t unshared_conv_workspace_cuda(const UnsharedConvParams& params) {
  const int splits = splits_of(params);
  return splits > 1 ? workspace_bytes(params, splits) : 0;
}

int unshared_conv_cuda(const UnsharedConvParams& params, void* stream_address) {
  if (is_empty(params)) return cudaSuccess;
  const auto stream = static_cast<cudaStream_t>(stream_address);
  const int splits = splits_of(params);
  if ((splits > 1) != (params.workspace != nullptr)) return cudaErrorInvalidValue;
  const cudaError_t error = launch_first_pass(params, stream);
  if (error != cudaSuccess || splits == 1) return error;
  const SecondPassGrid grid = make_second_pass_grid(params, splits);
  const auto finish = params.weight_dtype == DType::kInt8
                          ? unshared_conv_second_pass_kernel<int32_t>
                          : unshared_conv_second_pass_kernel<float>;
  return launch(finish, grid.blocks, kSecondPassThreads, 0, stream, params, grid);
}

int64_t unshared_conv_lif_workspace_cuda(const UnsharedConvParams& params) {
  return workspace_bytes(params, splits_of(params));
}

int unshared_conv_lif_cuda(const UnsharedConvLif& params, void* stream_address) {
  const UnsharedConvParams& conv = params.conv;
  if (is_empty(conv)) return cudaSuccess;
  if (conv.workspace == nullptr) return cudaErrorInvalidValue;
  const auto stream = static_cast<cudaStream_t>(stream_address);
  const cudaError_t error = launch_first_pass(conv, stream);
  if (error != cudaSuccess) return error;
  const NeuronsGrid grid = make_neurons_grid(params, splits_of(conv));
  const auto fire = conv.weight_dtype == DType::kInt8 ? unshared_conv_lif_kernel<int32_t>
                                                      : unshared_conv_lif_kernel<float>;
  return launch(fire, grid.blocks, kNeuronsThreads, 0, stream, params, grid);
}

}  // namespace realspike
