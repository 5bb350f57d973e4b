#pragma once

#include <cstdint>

namespace realspike {

void run_in_parallel(int64_t num_tasks, int num_threads,
                     void (*body)(void* context, int64_t task, int thread), void* context);

// Runs body(task, thread) for every task in [0, num_tasks), each exactly once, on at most
// num_threads threads including the caller, and returns when all are done. Any thread may run any
// task, so a task writes only what is its own: its share of the output, and the memory of its
// thread, which has a number in [0, num_threads). All threads compute in the caller's
// floating-point mode.
template <class Body>
void parallel_for(int64_t num_tasks, int num_threads, const Body& body) {
  run_in_parallel(
      num_tasks, num_threads,
      [](void* context, int64_t task, int thread) {
        (*static_cast<const Body*>(context))(task, thread);
      },
      const_cast<Body*>(&body));
}

void run_with_team(int num_threads, void (*body)(void* context), void* context);

// Runs body() on the caller, and keeps num_threads - 1 threads awake beside it meanwhile: they take
// part in every parallel_for of the body. To wake threads for a small loop takes longer than the
// loop; here a loop costs two turns of a flag. A thread that finds nothing to do for long yields.
template <class Body>
void with_team(int num_threads, const Body& body) {
  run_with_team(
      num_threads, [](void* context) { (*static_cast<const Body*>(context))(); },
      const_cast<Body*>(&body));
}

// One thread where two would have less than `per_thread` work each, otherwise all. Nothing in
// between: OpenMP ends the threads that a smaller team leaves idle, and starts them anew for the
// next large team.
inline int threads_worth(int64_t work, int64_t per_thread, int num_threads) {
  return work < 2 * per_thread ? 1 : num_threads;
}

// "openmp" when the process already has an OpenMP runtime (torch's), otherwise "std::thread".
const char* parallel_backend();

}  // namespace realspike
