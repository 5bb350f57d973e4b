#include "cpu/common/parallel.h"

#include <atomic>
#include <cfenv>
#include <exception>
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

// Of a loop. Where there are more threads, some have the same share for their own.
constexpr int kMostShares = 64;

// Neighbouring tasks, of which the next one is not taken yet.
struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Work {
  void (*body)(void*, int64_t, int);
  void* context;
  int num_threads;
  int num_shares;
  std::fenv_t mode;  // of the caller: rounding, and whether denormals are flushed to zero
  std::atomic<int> threads{0};
  Share shares[kMostShares];

  Work(void (*body)(void*, int64_t, int), void* context, int64_t num_tasks, int num_threads)
      : body(body),
        context(context),
        num_threads(num_threads),
        num_shares(num_threads < kMostShares ? num_threads : kMostShares) {
    for (int s = 0; s < num_shares; ++s) {
      shares[s].next.store(num_tasks * s / num_shares, std::memory_order_relaxed);
      shares[s].end = num_tasks * (s + 1) / num_shares;
    }
  }
};

// Every thread begins with its own share, as torch's loops have it: what it reads and writes is in
// the caches of its core from the op before. Then it helps with the shares of others. `place` tells
// whose share is its own; two threads of one place lose time, and nothing else.
void run_tasks(Work& work, int place) {
  const int thread = work.threads.fetch_add(1, std::memory_order_relaxed);
  if (thread >= work.num_threads) return;
  for (int s = 0; s < work.num_shares; ++s) {
    Share& share = work.shares[(place + s) % work.num_shares];
    for (;;) {
      const int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
      if (task >= share.end) break;
      work.body(work.context, task, thread);
    }
  }
}

// Functions of the OpenMP runtime that torch has loaded: a second runtime, linked to this
// extension, would compete with it for the cores. GOMP_parallel is what compilers emit for
// `#pragma omp parallel`.
using GompParallel = void (*)(void (*fn)(void*), void* data, unsigned num_threads, unsigned flags);
using OmpGetThreadNum = int (*)();

#ifdef REALSPIKE_HAS_DLSYM
void* find_in_openmp(const char* name) { return dlsym(RTLD_DEFAULT, name); }

// A forked child has none of its parent's OpenMP threads, and OpenMP would wait for them for ever.
std::atomic<bool> forked{false};

[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#else
void* find_in_openmp(const char*) { return nullptr; }
std::atomic<bool> forked{false};
#endif

GompParallel openmp() {
  static const auto found = reinterpret_cast<GompParallel>(find_in_openmp("GOMP_parallel"));
  return found;
}

// The place of this thread among those of its parallel region.
int place_in_region() {
  static const auto found = reinterpret_cast<OmpGetThreadNum>(find_in_openmp("omp_get_thread_num"));
  return found == nullptr ? 0 : found();
}

// Every thread computes in the mode of the caller: the bits do not depend on who runs a task.
void run_tasks_in_mode(void* data) {
  Work& work = *static_cast<Work*>(data);
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&work.mode);
  run_tasks(work, place_in_region());
  std::fesetenv(&own);
}

// Runs f(data) on the caller and on up to num_threads - 1 other threads.
void run_on_all(void (*f)(void*), void* data, int num_threads) {
  if (openmp() != nullptr && !forked.load(std::memory_order_relaxed)) {
    return openmp()(f, data, static_cast<unsigned>(num_threads), 0);
  }
  std::vector<std::thread> helpers;
  helpers.reserve(num_threads - 1);
  try {
    for (int i = 1; i < num_threads; ++i) helpers.emplace_back(f, data);
  } catch (const std::system_error&) {
    // Fewer threads than asked for: those that started, and the caller, share the tasks.
  }
  f(data);
  for (std::thread& helper : helpers) helper.join();
}

// Threads that stay awake between the loops of one caller. The caller opens the door to a piece of
// work, and shuts it when all tasks are taken; whoever is inside then finishes the last ones.
struct Team {
  void (*body)(void*);
  void* context;
  std::thread::id leader;
  std::fenv_t mode;
  std::exception_ptr error;
  std::atomic<Work*> work{nullptr};  // behind the open door
  std::atomic<uint64_t> turn{0};
  std::atomic<int> inside{0};
  std::atomic<bool> ended{false};
};

thread_local Team* led = nullptr;  // by this thread

inline void pause_for(int turns) {
  constexpr int kBusyTurns = 2000;
  if (turns > kBusyTurns) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void follow(Team& team) {
  const int place = place_in_region();
  uint64_t seen = 0;
  for (int turns = 0; !team.ended.load(); ++turns) {
    const uint64_t turn = team.turn.load();
    if (turn == seen) {
      pause_for(turns);
      continue;
    }
    team.inside.fetch_add(1);
    // Whoever comes late finds the door shut, or another turn, in which it comes again.
    Work* const work = team.work.load();
    if (work != nullptr && team.turn.load() == turn) run_tasks(*work, place);
    team.inside.fetch_sub(1);
    seen = turn;
    turns = 0;
  }
}

void lead(Team& team, Work& work) {
  team.work.store(&work);
  team.turn.fetch_add(1);
  run_tasks(work, 0);
  team.work.store(nullptr);
  for (int turns = 0; team.inside.load() != 0; ++turns) pause_for(turns);
}

void run_in_team(void* data) {
  Team& team = *static_cast<Team*>(data);
  if (std::this_thread::get_id() == team.leader) {
    led = &team;
    try {
      team.body(team.context);
    } catch (...) {  // no exception may pass through OpenMP
      team.error = std::current_exception();
    }
    led = nullptr;
    team.ended.store(true);
    return;
  }
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&team.mode);
  follow(team);
  std::fesetenv(&own);
}

}  // namespace

void run_in_parallel(int64_t num_tasks, int num_threads, void (*body)(void*, int64_t, int),
                     void* context) {
  if (num_tasks < num_threads) num_threads = static_cast<int>(num_tasks);
  Work work(body, context, num_tasks, num_threads < 1 ? 1 : num_threads);
  if (num_threads <= 1) return run_tasks(work, 0);
  if (led != nullptr) return lead(*led, work);
  std::fegetenv(&work.mode);
  run_on_all(run_tasks_in_mode, &work, num_threads);
}

void run_with_team(int num_threads, void (*body)(void* context), void* context) {
  if (num_threads <= 1 || led != nullptr) return body(context);
  Team team{body, context, std::this_thread::get_id(), {}, {}};
  std::fegetenv(&team.mode);
  run_on_all(run_in_team, &team, num_threads);
  if (team.error) std::rethrow_exception(team.error);
}

const char* parallel_backend() { return openmp() != nullptr ? "openmp" : "std::thread"; }

}  // namespace realspike
