// The shipped CUDA kernels of pack_spikes behind a C ABI that runs them on the CPU.

#include <cstdint>
#include <cstdio>

#include "cuda/pack_spikes/kernel.cuh"

namespace {

template <typename Kernel, typename Params>
int run(Kernel kernel, const Params& params, int64_t blocks, uint64_t shuffle, char* error,
        size_t error_size) {
  const realspike::PackSpikesGrid grid = realspike::make_pack_spikes_grid(params);
  if (grid.blocks == 0) return 0;
  if (kernel == nullptr) {
    std::snprintf(error, error_size, "no kernel for this element size");
    return 1;
  }
  if (blocks == 0) blocks = grid.blocks;
  try {
    simt::launch(
        dim3(static_cast<unsigned>(blocks)), dim3(realspike::kPackSpikesThreads), 0,
        [&] { kernel(params, grid); }, shuffle);
  } catch (const simt::Error& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" {

int64_t pack_spikes_simt_sizeof_params() { return sizeof(realspike::PackSpikesParams); }
int64_t unpack_spikes_simt_sizeof_params() { return sizeof(realspike::UnpackSpikesParams); }

// blocks: how many to launch; 0 for as many as the launcher would.
int pack_spikes_simt(const realspike::PackSpikesParams* params, int64_t blocks, uint64_t shuffle,
                     char* error, size_t error_size) {
  return run(realspike::select_pack_spikes_kernel(params->element_size), *params, blocks, shuffle,
             error, error_size);
}

int unpack_spikes_simt(const realspike::UnpackSpikesParams* params, int64_t blocks,
                       uint64_t shuffle, char* error, size_t error_size) {
  return run(realspike::unpack_spikes_kernel<float>, *params, blocks, shuffle, error, error_size);
}

}  // extern "C"
