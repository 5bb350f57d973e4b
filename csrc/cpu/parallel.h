#pragma once

#include <cstdint>

namespace realspike {

// Runs body(context, task, thread) for every task in [0, num_tasks), each exactly once, on at most
// num_threads threads including the caller, and returns when all are done. Which thread runs which
// task is not defined, so a task must own what it writes; but for memory that it owns by its
// thread's number, in [0, num_threads), while it runs.
void parallel_for(int64_t num_tasks, int num_threads,
                  void (*body)(void* context, int64_t task, int thread), void* context);

// "openmp" when the process already has an OpenMP runtime (torch's), otherwise "std::thread".
const char* parallel_backend();

}  // namespace realspike
