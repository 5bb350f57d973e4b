#pragma once

#include <cstdint>

namespace realspike {

// Runs body(context, task, thread) for every task in [0, num_tasks), each exactly once, on at most
// num_threads threads including the caller, and returns when all are done. Which thread runs which
// task is not defined, so a task must own what it writes; but for memory that it owns by its
// thread's number, in [0, num_threads), while it runs. All compute in the caller's floating-point
// mode.
void parallel_for(int64_t num_tasks, int num_threads,
                  void (*body)(void* context, int64_t task, int thread), void* context);

// The caller alone where two threads would have less than so much work each. Otherwise all: OpenMP
// ends the threads that a smaller team does without, and starts them again for the next.
inline int threads_worth(int64_t work, int64_t per_thread, int num_threads) {
  return work < 2 * per_thread ? 1 : num_threads;
}

// "openmp" when the process already has an OpenMP runtime (torch's), otherwise "std::thread".
const char* parallel_backend();

}  // namespace realspike
