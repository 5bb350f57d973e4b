#include "core/lif.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace realspike {
namespace {

// Neurons are independent, so any split gives the same bits. Tasks are whole cache lines of every
// element type, and long enough (in neuron-timesteps) to be worth a thread.
int64_t neurons_per_task(const LifParams& p, int num_threads) {
  constexpr int64_t kLine = 64;
  constexpr int64_t kMinimumWork = 32768;
  const int64_t shared_out = (p.N + num_threads - 1) / num_threads;
  const int64_t worthwhile = (kMinimumWork + p.T - 1) / p.T;
  const int64_t neurons = shared_out > worthwhile ? shared_out : worthwhile;
  return (neurons + kLine - 1) / kLine * kLine;
}

template <class Params>
struct Job {
  const Params& params;
  void (*kernel)(const Params&, int64_t begin, int64_t end);
  int64_t neurons_per_task;
};

template <class Params>
void run(const Params& params, void (*kernel)(const Params&, int64_t, int64_t), int num_threads) {
  if (params.N == 0 || params.T == 0) return;
  Job<Params> job{params, kernel, neurons_per_task(params, num_threads)};
  const int64_t tasks = (params.N + job.neurons_per_task - 1) / job.neurons_per_task;
  parallel_for(
      tasks, num_threads,
      [](void* context, int64_t task) {
        const auto& job = *static_cast<Job<Params>*>(context);
        const int64_t begin = task * job.neurons_per_task;
        const int64_t end = begin + job.neurons_per_task;
        job.kernel(job.params, begin, end < job.params.N ? end : job.params.N);
      },
      &job);
}

}  // namespace

void lif_fwd_cpu(const LifForward& params, int num_threads) {
  run(params, isa_kernels().lif_fwd, num_threads);
}

void lif_bwd_cpu(const LifBackward& params, int num_threads) {
  run(params, isa_kernels().lif_bwd, num_threads);
}

}  // namespace realspike
