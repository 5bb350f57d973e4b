#include "core/pack_spikes.h"
#include "cpu/common/isa.h"
#include "cpu/common/parallel.h"

namespace realspike {
namespace {

template <class Params>
struct Job {
  const Params& params;
  void (*kernel)(const Params&, int64_t n, int64_t begin, int64_t end);
  int64_t tasks_per_sample;
  int64_t pixels_per_task;
};

// A task owns whole pixels of one sample, hence whole words.
template <class Params>
void run(const Params& params, void (*kernel)(const Params&, int64_t, int64_t, int64_t),
         int num_threads) {
  if (params.N == 0 || params.P == 0 || params.C == 0) return;
  constexpr int64_t kMinimumWork = 65536;
  const int64_t pixels = (kMinimumWork + params.C - 1) / params.C;
  const int64_t per_sample = (params.P + pixels - 1) / pixels;
  Job<Params> job{params, kernel, per_sample, pixels};
  parallel_for(
      params.N * per_sample,
      threads_worth(params.N * params.P * params.C, kMinimumWork, num_threads),
      [](void* context, int64_t task, int) {
        const auto& job = *static_cast<Job<Params>*>(context);
        const int64_t begin = task % job.tasks_per_sample * job.pixels_per_task;
        const int64_t end = begin + job.pixels_per_task;
        job.kernel(job.params, task / job.tasks_per_sample, begin,
                   end < job.params.P ? end : job.params.P);
      },
      &job);
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
