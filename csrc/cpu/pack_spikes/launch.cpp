#include "core/numbers.h"
#include "core/pack_spikes.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"

namespace realspike {
namespace {

// A task owns whole pixels of one sample, hence whole words.
template <class Params>
void run(const Params& params, void (*kernel)(const Params&, int64_t, int64_t, int64_t),
         int num_threads) {
  if (params.N == 0 || params.P == 0 || params.C == 0) return;
  constexpr int64_t kMinimumWork = 65536;
  const int64_t pixels = ceil_div(kMinimumWork, params.C);
  const int64_t per_sample = ceil_div(params.P, pixels);
  const int64_t work = params.N * params.P * params.C;
  parallel_for(params.N * per_sample, threads_worth(work, kMinimumWork, num_threads),
               [&](int64_t task, int) {
                 const int64_t begin = task % per_sample * pixels;
                 kernel(params, task / per_sample, begin, least(begin + pixels, params.P));
               });
}

}  // namespace

void pack_spikes_cpu(const PackSpikesParams& params, int num_threads) {
  run(params, isa_kernels().pack_spikes, num_threads);
}

void unpack_spikes_cpu(const UnpackSpikesParams& params, int num_threads) {
  run(params, isa_kernels().unpack_spikes, num_threads);
}

bool has_spare_bits_cpu(const uint32_t* packed, int64_t pixels, int64_t channels) {
  if (channels % 32 == 0) return false;
  const int64_t words = channels / 32 + 1;
  uint32_t any = 0;
  for (int64_t i = 0; i < pixels; ++i) any |= packed[i * words + words - 1];
  return any >> (channels % 32) != 0;
}

}  // namespace realspike
