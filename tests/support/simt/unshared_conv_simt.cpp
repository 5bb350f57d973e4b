// The shipped CUDA kernels of unshared_conv behind a C ABI that runs them on the CPU.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda/unshared_conv/depthwise_kernel.cuh"
#include "cuda/unshared_conv/listed_kernel.cuh"
#include "cuda/unshared_conv/neurons_kernel.cuh"
#include "cuda/unshared_conv/second_pass.cuh"
#include "cuda/unshared_conv/staged_kernel.cuh"

using realspike::DepthwiseConfig;
using realspike::ListedConfig;
using realspike::StagedConfig;
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

// config: vec, sample_tile, lanes, threads, splits, shared_bytes, sample_tiles, channel_tiles,
// blocks, staged, stream_samples, shares, keep_rows
void unshared_conv_simt_config(const UnsharedConvParams* params, int64_t config[13]) {
  if (realspike::stages_rows(*params)) {
    const StagedConfig c = realspike::choose_staged_config(*params);
    const int64_t fields[13] = {realspike::kUnsharedConvVec,
                                c.sample_tile,
                                c.lanes,
                                c.threads,
                                1,
                                c.shared_bytes,
                                c.sample_tiles,
                                c.channel_tiles,
                                c.blocks,
                                1,
                                c.stream_samples,
                                1,
                                0};
    std::copy(fields, fields + 13, config);
    return;
  }
  const ListedConfig c = realspike::choose_listed_config(*params);
  const int64_t fields[13] = {
      c.vec,           c.sample_tile, c.lanes, c.threads, c.splits, c.shared_bytes, c.sample_tiles,
      c.channel_tiles, c.blocks,      0,       0,         c.shares, c.keep_rows};
  std::copy(fields, fields + 13, config);
}

int unshared_conv_simt_field_fits(const UnsharedConvParams* params) {
  return realspike::field_fits(*params);
}

// config: sample_tile, warps, sample_tiles, column_tiles, blocks
void unshared_conv_simt_depthwise_config(const UnsharedConvParams* params, int64_t config[5]) {
  const DepthwiseConfig c = realspike::choose_depthwise_config(*params);
  const int64_t fields[5] = {c.sample_tile, c.warps, c.sample_tiles, c.column_tiles, c.blocks};
  std::copy(fields, fields + 5, config);
}

int unshared_conv_simt_depthwise_fits(const UnsharedConvParams* params) {
  return realspike::depthwise_fits(*params);
}

}  // extern "C"

namespace {

// forced: vec, sample_tile (of a stream, in stages), lanes, threads (in stages; else shares),
// splits, blocks to launch, kernel (1 lists, 2 stages); 0 leaves the choice to the launcher.
bool runs_staged(const UnsharedConvParams& params, const int64_t forced[7]) {
  return forced[6] == 0 ? realspike::stages_rows(params) : forced[6] == 2;
}

StagedConfig configure_staged(const UnsharedConvParams& params, const int64_t forced[7]) {
  StagedConfig config = realspike::choose_staged_config(params);
  if (forced[1] != 0) config.stream_samples = static_cast<int>(forced[1]);
  if (forced[2] != 0) config.lanes = static_cast<int>(forced[2]);
  if (forced[3] != 0) config.threads = static_cast<int>(forced[3]);
  return realspike::complete_staged_config(params, config);
}

ListedConfig configure_listed(const UnsharedConvParams& params, const int64_t forced[7]) {
  ListedConfig config = realspike::choose_listed_config(params);
  if (config.blocks == 0) return config;
  if (forced[0] != 0) config.vec = static_cast<int>(forced[0]);
  if (forced[1] != 0) config.sample_tile = static_cast<int>(forced[1]);
  if (forced[2] != 0) config.lanes = static_cast<int>(forced[2]);
  if (forced[3] != 0) {
    config.shares = static_cast<int>(forced[3]);
  } else if (forced[1] != 0 || forced[2] != 0) {  // one warp, or more if there are more samples
    config.shares = 32 / std::min(32, config.lanes * config.sample_tile);
  }
  if (forced[4] != 0) config.splits = static_cast<int>(forced[4]);
  return realspike::complete_listed_config(params, config);
}

// Only its sample tile can be forced. Anything else is asked of the kernels for rows of weights,
// which take one channel per group, too.
bool runs_depthwise(const UnsharedConvParams& params, const int64_t forced[7]) {
  const bool has_tile = forced[1] == 0 || forced[1] == realspike::kDepthwiseFewSamples ||
                        forced[1] == realspike::kDepthwiseManySamples;
  const bool others = forced[0] != 0 || forced[2] != 0 || forced[3] != 0 || forced[4] != 0;
  return realspike::is_depthwise(params) && has_tile && !others && forced[6] == 0;
}

void run_depthwise(const UnsharedConvParams& params, const int64_t forced[7], uint64_t shuffle) {
  DepthwiseConfig config = realspike::choose_depthwise_config(params);
  if (config.blocks == 0) return;
  if (forced[1] != 0) config.sample_tile = static_cast<int>(forced[1]);
  config = realspike::complete_depthwise_config(params, config);
  const auto kernel = realspike::select_depthwise_kernel(params.weight_dtype, config);
  const auto grid = realspike::make_depthwise_grid(params, config);
  simt::launch(
      dim3(static_cast<unsigned>(forced[5] != 0 ? forced[5] : config.blocks)),
      dim3(32 * config.warps), realspike::kDepthwiseSharedBytes, [&] { kernel(params, grid); },
      shuffle);
}

int splits_of(const UnsharedConvParams& params, const int64_t forced[7]) {
  if (runs_depthwise(params, forced) || runs_staged(params, forced)) return 1;
  return configure_listed(params, forced).splits;
}

template <typename Kernel, typename Config, typename Grid>
void run(Kernel kernel, const Config& config, const Grid& grid, const UnsharedConvParams& params,
         const int64_t forced[7], uint64_t shuffle) {
  if (kernel == nullptr) throw simt::Error("no kernel for this sample tile");
  simt::launch(
      dim3(static_cast<unsigned>(forced[5] != 0 ? forced[5] : config.blocks)), dim3(config.threads),
      config.shared_bytes, [&] { kernel(params, grid); }, shuffle);
}

void first_pass(const UnsharedConvParams& params, const int64_t forced[7], uint64_t shuffle) {
  if (realspike::workspace_bytes(params, 1) == 0) return;  // there are no outputs
  if (runs_depthwise(params, forced)) return run_depthwise(params, forced, shuffle);
  if (runs_staged(params, forced)) {
    const StagedConfig config = configure_staged(params, forced);
    return run(realspike::select_staged_kernel(params.weight_dtype, config), config,
               realspike::make_staged_grid(params, config), params, forced, shuffle);
  }
  const ListedConfig config = configure_listed(params, forced);
  run(realspike::select_listed_kernel(params.weight_dtype, config), config,
      realspike::make_listed_grid(params, config), params, forced, shuffle);
}

// Returns 0, or 1 with a message in `error`.
template <typename Run>
int guarded(const Run& run, char* error, size_t error_size) {
  try {
    run();
  } catch (const simt::Error& e) {
    std::snprintf(error, error_size, "%s", e.what());
    return 1;
  }
  return 0;
}

// NaNs, or, as integers, what no sum is.
std::vector<char> poisoned(int64_t bytes) { return std::vector<char>(bytes, '\xff'); }

}  // namespace

extern "C" {

int unshared_conv_simt(const UnsharedConvParams* given, const int64_t forced[7], uint64_t shuffle,
                       char* error, size_t error_size) {
  UnsharedConvParams params = *given;
  const int splits = splits_of(params, forced);
  auto workspace = poisoned(splits > 1 ? realspike::workspace_bytes(params, splits) : 0);
  params.workspace = workspace.empty() ? nullptr : workspace.data();
  return guarded(
      [&] {
        first_pass(params, forced, shuffle);
        if (workspace.empty()) return;
        const auto second = realspike::make_second_pass_grid(params, splits);
        const auto finish = params.weight_dtype == realspike::DType::kInt8
                                ? realspike::unshared_conv_second_pass_kernel<int32_t>
                                : realspike::unshared_conv_second_pass_kernel<float>;
        simt::launch(
            dim3(static_cast<unsigned>(second.blocks)), dim3(realspike::kSecondPassThreads), 0,
            [&] { finish(params, second); }, shuffle);
      },
      error, error_size);
}

struct Neurons {
  realspike::PerNeuron decay;
  realspike::PerNeuron v_threshold;
  const float* v_init;
  float* v_last;
  uint32_t* packed;
  int64_t T;
  float v_reset;
  int32_t reset;
  int32_t ternary;
  int64_t maps;
  int64_t signs;
  int64_t added_count;
  const realspike::AddedCurrent* added;
};

// blocks: of the second pass; 0 for as many as the launcher would.
int unshared_conv_lif_simt(const UnsharedConvParams* given, const Neurons* neurons,
                           const int64_t forced[7], int64_t blocks, uint64_t shuffle, char* error,
                           size_t error_size) {
  realspike::UnsharedConvLif params{};
  UnsharedConvParams& conv = params.conv;
  realspike::LifPacked& lif = params.lif;
  conv = *given;
  lif.decay = neurons->decay;
  lif.v_threshold = neurons->v_threshold;
  lif.v_init = neurons->v_init;
  lif.v_last = neurons->v_last;
  lif.packed = neurons->packed;
  lif.T = neurons->T;
  lif.v_reset = neurons->v_reset;
  lif.reset = static_cast<realspike::Reset>(neurons->reset);
  lif.ternary = neurons->ternary != 0;
  lif.channels_last = true;
  params.maps = neurons->maps;
  params.signs = neurons->signs;
  params.added_count = neurons->added_count;
  for (int64_t i = 0; i < params.added_count; ++i) params.added[i] = neurons->added[i];
  lif.C = conv.G * conv.Cout_g;
  lif.P = conv.OH * conv.OW;
  lif.words = realspike::ceil_div(lif.C, 32);
  const int splits = splits_of(conv, forced);
  const auto grid = realspike::make_neurons_grid(params, splits);
  if (grid.blocks == 0) return 0;
  auto workspace = poisoned(realspike::workspace_bytes(conv, splits));
  conv.workspace = workspace.data();
  const auto fire = conv.weight_dtype == realspike::DType::kInt8
                        ? realspike::unshared_conv_lif_kernel<int32_t>
                        : realspike::unshared_conv_lif_kernel<float>;
  return guarded(
      [&] {
        first_pass(conv, forced, shuffle);
        simt::launch(
            dim3(static_cast<unsigned>(blocks != 0 ? blocks : grid.blocks)),
            dim3(realspike::kNeuronsThreads), 0, [&] { fire(params, grid); }, shuffle);
      },
      error, error_size);
}

void divisor_simt(int64_t n, int64_t divisor, int64_t* quotient, int64_t* remainder) {
  *quotient = n;
  *remainder = realspike::take_remainder(*quotient, realspike::make_divisor(divisor));
}

}  // extern "C"
