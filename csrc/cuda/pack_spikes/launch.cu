#include "cuda/pack_spikes/kernel.cuh"

namespace realspike {

int pack_spikes_cuda(const PackSpikesParams& params, void* stream) {
  const PackSpikesGrid grid = make_pack_spikes_grid(params);
  if (grid.blocks == 0) return cudaSuccess;
  const PackSpikesKernel kernel = select_pack_spikes_kernel(params.element_size);
  if (kernel == nullptr) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(grid.blocks), kPackSpikesThreads, 0,
           static_cast<cudaStream_t>(stream)>>>(params, grid);
  return cudaGetLastError();
}

int unpack_spikes_cuda(const UnpackSpikesParams& params, void* stream) {
  const PackSpikesGrid grid = make_pack_spikes_grid(params);
  if (grid.blocks == 0) return cudaSuccess;
  unpack_spikes_kernel<float><<<static_cast<unsigned>(grid.blocks), kPackSpikesThreads, 0,
                                static_cast<cudaStream_t>(stream)>>>(params, grid);
  return cudaGetLastError();
}

}  // namespace realspike
