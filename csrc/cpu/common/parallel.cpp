#include "cpu/common/parallel.h"

#include <atomic>
#include <cfenv>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#define REALSPIKE_HAS_DLSYM 1
#endif

namespace realspike {
namespace {

struct Work {
  void (*body)(void*, int64_t, int);
  void* context;
  int64_t num_tasks;
  std::fenv_t mode;  // of the caller: rounding, and whether denormals are flushed to zero
  std::atomic<int64_t> next{0};
  std::atomic<int> threads{0};
};

void run_tasks(Work& work) {
  const int thread = work.threads.fetch_add(1, std::memory_order_relaxed);
  for (;;) {
    const int64_t task = work.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= work.num_tasks) return;
    work.body(work.context, task, thread);
  }
}

// Every thread computes in the mode of the caller: the bits do not depend on who runs a task.
void run_tasks_in_mode(void* data) {
  Work& work = *static_cast<Work*>(data);
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&work.mode);
  run_tasks(work);
  std::fesetenv(&own);
}

#ifdef REALSPIKE_HAS_DLSYM
// The entry point that compilers emit for `#pragma omp parallel`, in the OpenMP runtime that torch
// has loaded. A second runtime, linked to this extension, would compete with it for the cores.
using GompParallel = void (*)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags);

GompParallel find_openmp() {
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// A forked child has none of its parent's OpenMP threads, and OpenMP would wait for them for ever.
std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#else
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
GompParallel find_openmp() { return nullptr; }
std::atomic<bool> forked{false};
#endif

GompParallel openmp() {
  static const GompParallel found = find_openmp();
  return found;
}

void run_on_threads(Work& work, int num_threads) {
  std::vector<std::thread> helpers;
  helpers.reserve(num_threads - 1);
  try {
    for (int i = 1; i < num_threads; ++i) helpers.emplace_back(run_tasks_in_mode, &work);
  } catch (const std::system_error&) {
    // Fewer threads than asked for: those that started, and the caller, share the tasks.
  }
  run_tasks(work);
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

void run_in_parallel(int64_t num_tasks, int num_threads, void (*body)(void*, int64_t, int),
                     void* context) {
  Work work{body, context, num_tasks, {}};
  if (num_tasks < num_threads) num_threads = static_cast<int>(num_tasks);
  if (num_threads <= 1) return run_tasks(work);
  std::fegetenv(&work.mode);
  if (openmp() != nullptr && !forked.load(std::memory_order_relaxed)) {
    openmp()(run_tasks_in_mode, &work, static_cast<unsigned>(num_threads), 0);
  } else {
    run_on_threads(work, num_threads);
  }
}

const char* parallel_backend() { return openmp() != nullptr ? "openmp" : "std::thread"; }

}  // namespace realspike
