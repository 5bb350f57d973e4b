#include "cuda/common/launch.cuh"
#include "cuda/pack_spikes/kernel.cuh"

namespace realspike {

int pack_spikes_cuda(const PackSpikesParams& params, void* stream) {
  const PackSpikesGrid grid = make_pack_spikes_grid(params);
  if (grid.blocks == 0) return cudaSuccess;
  return launch(select_pack_spikes_kernel(params.element_size), grid.blocks, kPackSpikesThreads, 0,
                static_cast<cudaStream_t>(stream), params, grid);
}

int unpack_spikes_cuda(const UnpackSpikesParams& params, void* stream) {
  const PackSpikesGrid grid = make_pack_spikes_grid(params);
  if (grid.blocks == 0) return cudaSuccess;
  return launch(unpack_spikes_kernel<float>, grid.blocks, kPackSpikesThreads, 0,
                static_cast<cudaStream_t>(stream), params, grid);
}

}  // namespace realspike
