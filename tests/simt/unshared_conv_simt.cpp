// The shipped CUDA kernels of unshared_conv behind a C ABI that runs them on the CPU.

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "cuda/unshared_conv_kernel.cuh"

using realspike::UnsharedConvConfig;
using realspike::UnsharedConvParams;

extern "C" {

int64_t unshared_conv_simt_sizeof_params() { return sizeof(UnsharedConvParams); }

int unshared_conv_simt_is_sanitized() {
#ifdef __SANITIZE_ADDRESS__
  return 1;
#else
  return 0;
#endif
}

// config: vec, sample_tile, lanes, threads, shared_bytes, sample_tiles, channel_tiles, blocks
void unshared_conv_simt_config(const UnsharedConvParams* params, int64_t config[8]) {
  const UnsharedConvConfig c = realspike::choose_unshared_conv_config(*params);
  const int64_t fields[8] = {c.vec,          c.sample_tile,  c.lanes,         c.threads,
                             c.shared_bytes, c.sample_tiles, c.channel_tiles, c.blocks};
  std::copy(fields, fields + 8, config);
}

// forced: vec, sample_tile, lanes, threads, blocks to launch; 0 leaves the choice to the launcher's
// configuration. Returns 0, or 1 with a message in `error`.
int unshared_conv_simt(const UnsharedConvParams* params, const int64_t forced[5], uint64_t shuffle,
                       char* error, size_t error_size) {
  UnsharedConvConfig config = realspike::choose_unshared_conv_config(*params);
  if (config.blocks == 0) return 0;
  if (forced[0] != 0) config.vec = static_cast<int>(forced[0]);
  if (forced[1] != 0) config.sample_tile = static_cast<int>(forced[1]);
  if (forced[2] != 0) config.lanes = static_cast<int>(forced[2]);
  if (forced[3] != 0) config.threads = static_cast<int>(forced[3]);
  config = realspike::complete_unshared_conv_config(*params, config);
  const int64_t blocks = forced[4] != 0 ? forced[4] : config.blocks;

  const auto kernel = realspike::select_unshared_conv_kernel(params->weight_dtype, config);
  if (kernel == nullptr) {
    std::snprintf(error, error_size, "no kernel for this weight type or sample tile");
    return 1;
  }
  const auto grid = realspike::make_unshared_conv_grid(*params, config);
  try {
    simt::launch(
        dim3(static_cast<unsigned>(blocks)), dim3(config.threads), config.shared_bytes,
        [&] { kernel(*params, grid); }, shuffle);
  } catch (const simt::Error& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

void divisor_simt(int64_t n, int64_t divisor, int64_t* quotient, int64_t* remainder) {
  *quotient = n;
  *remainder = realspike::take_remainder(*quotient, realspike::make_divisor(divisor));
}

}  // extern "C"
