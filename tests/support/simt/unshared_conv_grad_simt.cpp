// The shipped CUDA kernels of the weight's gradient behind a C ABI that runs them on the CPU.

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "cuda/unshared_conv/grad_config.h"
#include "cuda/unshared_conv/grad_kernel.cuh"

using realspike::GradConfig;
using realspike::UnsharedConvParams;

extern "C" {

// config: vec, sample_tile, lanes, threads, splits, shared_bytes, channel_tiles, blocks
void unshared_conv_grad_simt_config(const UnsharedConvParams* params, void* grad_weight,
                                    int64_t config[8]) {
  const GradConfig c = realspike::choose_grad_config(*params, grad_weight);
  const int64_t fields[8] = {c.vec,    c.sample_tile,  c.lanes,         c.threads,
                             c.splits, c.shared_bytes, c.channel_tiles, c.blocks};
  std::copy(fields, fields + 8, config);
}

// forced: vec, sample_tile, lanes, threads, splits, blocks to launch; 0 leaves the choice to the
// launcher's configuration. Returns 0, or 1 with a message in `error`.
int unshared_conv_grad_simt(const UnsharedConvParams* params, const float* grad_out,
                            void* grad_weight, const int64_t forced[6], uint64_t shuffle,
                            char* error, size_t error_size) {
  GradConfig config = realspike::choose_grad_config(*params, grad_weight);
  if (config.blocks == 0) return 0;
  if (forced[0] != 0) config.vec = static_cast<int>(forced[0]);
  if (forced[1] != 0) config.sample_tile = static_cast<int>(forced[1]);
  if (forced[2] != 0) config.lanes = static_cast<int>(forced[2]);
  if (forced[3] != 0) config.threads = static_cast<int>(forced[3]);
  if (forced[4] != 0) config.splits = static_cast<int>(forced[4]);
  config = realspike::complete_grad_config(*params, config);
  const int64_t blocks = forced[5] != 0 ? forced[5] : config.blocks;
  const auto kernel = realspike::select_grad_kernel(*params, config);
  if (kernel == nullptr) {
    std::snprintf(error, error_size, "no kernel for this gradient");
    return 1;
  }
  try {
    const auto grid = realspike::make_grad_grid(*params, config);
    simt::launch(
        dim3(static_cast<unsigned>(blocks)), dim3(config.threads), config.shared_bytes,
        [&] { kernel(*params, grad_out, grad_weight, grid); }, shuffle);
  } catch (const simt::Error& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

}  // extern "C"
