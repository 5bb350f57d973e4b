// Runs CUDA kernels on the CPU, for tests: every CUDA thread is a fiber of the calling thread,
// blocks run one after another, and a barrier or warp collective is a point where a fiber yields.
//
//   simt::launch(grid, block, shared_bytes, [&] { kernel(arguments...); });
//
// Found, and thrown as simt::Error: a barrier that some thread of the block does not reach, or
// reaches at another place in the source; a warp collective whose mask names lanes that have
// exited, do not exist or do something else; a shuffle from a lane outside the mask; blocks, grids
// and shared memory beyond the limits of a device. Shared memory holds NaNs when a block starts (a
// static array inside a template holds zeros: the compiler leaves it out of the section that is
// filled) and is laid out with redzones under AddressSanitizer (-fsanitize-sections=simt_shared for
// static arrays).
//
// Threads run in turn, in ascending order, which hides a missing barrier that only matters in
// another order: SIMT_SHUFFLE=<seed> in the environment, or the last argument of launch, permutes
// threads and blocks, and lets one warp at a time run as far as it gets.
//
// Not modelled: memory ordering, races inside a warp between two yields, and time. A kernel that
// spins without reaching a barrier hangs. Only one kernel runs at a time, on one host thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("simt_shared")))

extern "C" {
extern char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));
}

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

constexpr int warpSize = 32;

inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;

namespace simt {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 48 << 10;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kStackReserve = 8 << 10;  // a little overrun is seen before it does harm
constexpr char kStackMark[] = "above the reserve";

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in the kernel's source a thread yields; as a default argument it names the caller.
struct Site {
  const char* file;
  int line;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
  std::string text() const {
    const char* slash = std::strrchr(file, '/');
    return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
  }
};

// ---- fibers ----

#if defined(__x86_64__)

struct Context {
  void* stack_pointer;
};

// Saves the callee-saved registers and the stack of the caller in `from` and continues `to`.
extern "C" void simt_switch(Context* from, const Context* to);
asm(R"(
    .text
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, . - simt_switch
)");

inline void make_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  const uintptr_t top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  void** frame = reinterpret_cast<void**>(top) - 8;  // six registers, entry, a null return address
  std::fill(frame, frame + 8, nullptr);
  frame[6] = reinterpret_cast<void*>(entry);
  context->stack_pointer = frame;
}

#else

struct Context {
  ucontext_t state;
};

inline void simt_switch(Context* from, const Context* to) { swapcontext(&from->state, &to->state); }

inline void make_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context->state);
  context->state.uc_stack.ss_sp = stack;
  context->state.uc_stack.ss_size = bytes;
  context->state.uc_link = nullptr;
  makecontext(&context->state, entry, 0);
}

#endif

// ---- the block that runs ----

enum class State { kReady, kBarrier, kCollective, kExited, kFailed };

struct Thread {
  State state;
  uint3 index;
  Context context;
  char* stack;
  void* fake_stack;  // AddressSanitizer's
  Site site;         // the rest: where and in what the thread waits
  const char* collective;
  unsigned mask;
  uint64_t given;
  uint64_t seen[kWarp];
};

struct Machine {
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<Thread> threads;
  std::vector<char> shared_bytes;
  char* shared = nullptr;
  Thread* current = nullptr;
  Context scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::function<void()> kernel;
  std::string error;
};

inline Machine machine;

inline void* dynamic_shared() { return machine.shared; }

inline unsigned thread_number(const Thread* thread) {
  return static_cast<unsigned>(thread - machine.threads.data());
}

inline void yield() {
  Thread* self = machine.current;
#if defined(__SANITIZE_ADDRESS__)
  const bool returns = self->state != State::kExited && self->state != State::kFailed;
  __sanitizer_start_switch_fiber(returns ? &self->fake_stack : nullptr, machine.scheduler_stack,
                                 machine.scheduler_stack_bytes);
#endif
  simt_switch(&self->context, &machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake_stack, nullptr, nullptr);
#endif
}

inline void resume(Thread* thread) {
  machine.current = thread;
  threadIdx = thread->index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, thread->stack, kStackBytes);
#endif
  simt_switch(&machine.scheduler, &thread->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

__attribute__((no_sanitize("address"))) inline void fiber_entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack,
                                  &machine.scheduler_stack_bytes);
#endif
  State end = State::kExited;
  try {
    machine.kernel();
  } catch (const std::exception& e) {
    machine.error = e.what();
    end = State::kFailed;
  }
  machine.current->state = end;
  yield();
  std::abort();  // it is never resumed
}

inline std::string block_text() {
  return "block (" + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + ")";
}

// Ends the launch with an error; called by a thread of the kernel.
[[noreturn]] inline void fail(const std::string& what) {
  throw Error(block_text() + ", thread " + std::to_string(thread_number(machine.current)) + ": " +
              what);
}

inline std::string state_text(const Thread& thread) {
  switch (thread.state) {
    case State::kBarrier:
      return "waits in __syncthreads at " + thread.site.text();
    case State::kCollective:
      return std::string("waits in ") + thread.collective + " at " + thread.site.text();
    case State::kExited:
      return "has exited";
    default:
      return "runs";
  }
}

// "thread 0-31 waits in ... at kernel.cu:12; thread 32 has exited"
inline std::string threads_text() {
  std::string text;
  const auto& threads = machine.threads;
  for (size_t first = 0, end; first < threads.size(); first = end) {
    const std::string state = state_text(threads[first]);
    for (end = first + 1; end < threads.size() && state_text(threads[end]) == state; ++end) {
    }
    text += (first ? "; thread " : "thread ") + std::to_string(first);
    if (end - first > 1) text += "-" + std::to_string(end - 1);
    text += " " + state;
  }
  return text;
}

inline void poison_static_shared() __attribute__((no_sanitize("address")));
inline void poison_static_shared() {
  for (volatile char* byte = __start_simt_shared; byte < __stop_simt_shared; ++byte) {
    *byte = static_cast<char>(0xff);
  }
}

template <typename Random>
void run_block(Random& random, bool shuffle) {
  std::vector<Thread*> order;
  for (Thread& thread : machine.threads) {
    thread.state = State::kReady;
    std::memcpy(thread.stack + kStackReserve, kStackMark, sizeof(kStackMark));
    make_context(&thread.context, thread.stack, kStackBytes, fiber_entry);
    order.push_back(&thread);
  }
  poison_static_shared();
  std::fill(machine.shared_bytes.begin(), machine.shared_bytes.end(), static_cast<char>(0xff));

  const auto is_ready = [](const Thread* thread) { return thread->state == State::kReady; };
  const auto warp_of = [](const Thread* thread) { return thread_number(thread) / kWarp; };
  unsigned alone = 0;  // the warp that runs while the others wait, if threads are shuffled
  for (;;) {
    if (shuffle) {
      std::shuffle(order.begin(), order.end(), random);
      const bool goes_on = std::any_of(order.begin(), order.end(), [&](const Thread* thread) {
        return is_ready(thread) && warp_of(thread) == alone;
      });
      const auto next = std::find_if(order.begin(), order.end(), is_ready);
      if (!goes_on && next != order.end()) alone = warp_of(*next);
    }
    bool progress = false;
    for (Thread* thread : order) {
      if (!is_ready(thread) || (shuffle && warp_of(thread) != alone)) continue;
      progress = true;
      resume(thread);
      if (thread->state == State::kFailed) throw Error(machine.error);
      if (std::memcmp(thread->stack + kStackReserve, kStackMark, sizeof(kStackMark)) != 0) {
        throw Error(block_text() + ": a thread needs more stack than there is");
      }
    }
    if (progress) continue;

    const Thread& first = machine.threads.front();
    const bool agree =
        std::all_of(machine.threads.begin(), machine.threads.end(), [&](const Thread& thread) {
          return thread.state == first.state &&
                 (first.state == State::kExited || thread.site == first.site);
        });
    if (agree && first.state == State::kExited) return;
    if (!agree || first.state != State::kBarrier) {
      throw Error(block_text() + ": threads wait for each other for ever: " + threads_text());
    }
    for (Thread& thread : machine.threads) thread.state = State::kReady;
  }
}

inline uint64_t shuffle_seed_from_environment() {
  const char* seed = std::getenv("SIMT_SHUFFLE");
  return seed ? std::strtoull(seed, nullptr, 10) : 0;
}

// Runs `kernel` once per thread of the grid; throws Error. A shuffle_seed of 0 keeps the threads in
// ascending order.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel,
                   uint64_t shuffle_seed = shuffle_seed_from_environment()) {
  const size_t num_threads = size_t{block.x} * block.y * block.z;
  const size_t num_blocks = size_t{grid.x} * grid.y * grid.z;
  const auto require = [](bool good, const std::string& what) {
    if (!good) throw Error("launch: " + what);
  };
  require(num_threads > 0 && num_blocks > 0, "an empty block or grid");
  require(num_threads <= kMaxThreads,
          "a block of " + std::to_string(num_threads) + " threads; at most 1024 are possible");
  require(block.z <= 64, "blockDim.z is above 64");
  require(grid.x <= 0x7fffffffu && grid.y <= 0xffffu && grid.z <= 0xffffu,
          "gridDim is above 2147483647, 65535, 65535");
  require(shared_bytes <= kMaxSharedBytes, std::to_string(shared_bytes) +
                                               " bytes of dynamic shared memory; at most " +
                                               std::to_string(kMaxSharedBytes) + " are possible");

  machine.kernel = std::move(kernel);
  // One allocation of exactly this size, so that AddressSanitizer sees an overrun.
  machine.shared_bytes = std::vector<char>(shared_bytes);
  machine.shared = machine.shared_bytes.data();
  machine.threads.assign(num_threads, Thread{});
  while (machine.stacks.size() < num_threads) {
    machine.stacks.emplace_back(new char[kStackBytes]);
  }
  for (size_t i = 0; i < num_threads; ++i) {
    const unsigned x = i % block.x, y = i / block.x % block.y, z = i / block.x / block.y;
    machine.threads[i].index = {x, y, z};
    machine.threads[i].stack = machine.stacks[i].get();
  }
  blockDim = block;
  gridDim = grid;

  std::mt19937_64 random(shuffle_seed);
  std::vector<size_t> blocks;
  if (shuffle_seed != 0) {
    for (size_t i = 0; i < num_blocks; ++i) blocks.push_back(i);
    std::shuffle(blocks.begin(), blocks.end(), random);
  }
  try {
    for (size_t i = 0; i < num_blocks; ++i) {
      const size_t number = blocks.empty() ? i : blocks[i];
      blockIdx.x = number % grid.x;
      blockIdx.y = number / grid.x % grid.y;
      blockIdx.z = number / grid.x / grid.y;
      run_block(random, shuffle_seed != 0);
    }
  } catch (const Error&) {
    machine.stacks.clear();  // frames of abandoned threads are still poisoned
    throw;
  }
}

// ---- collectives ----

// Waits until every lane of `mask` is in the same collective. Afterwards `seen` of each holds what
// the lanes gave.
inline Thread& meet(const char* collective, unsigned mask, uint64_t given, Site site) {
  Thread& self = *machine.current;
  const unsigned number = thread_number(&self);
  const unsigned warp = number / kWarp * kWarp;
  self.site = site;
  self.collective = collective;
  self.mask = mask;
  self.given = given;
  self.state = State::kCollective;
  const auto complain = [&](const std::string& what) {
    fail(std::string(collective) + " at " + site.text() + ": " + what);
  };
  if (!(mask >> (number - warp) & 1)) complain("the mask does not name the calling lane");

  bool complete = true;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    if (warp + lane >= machine.threads.size()) {
      complain("the mask names lane " + std::to_string(lane) + ", which does not exist");
    }
    const Thread& peer = machine.threads[warp + lane];
    if (peer.state == State::kExited) {
      complain("the mask names lane " + std::to_string(lane) + ", which has exited");
    }
    const bool same = peer.state == State::kCollective && peer.mask == mask &&
                      std::strcmp(peer.collective, collective) == 0;
    complete = complete && same;
    // A peer that does not wait for this lane will go on and may still come here.
    if (!same && peer.state == State::kCollective && (peer.mask >> (number - warp) & 1)) {
      complain("lane " + std::to_string(lane) + " " + state_text(peer) +
               (peer.mask != mask ? " with another mask" : ""));
    }
  }
  if (!complete) {
    yield();
    return self;
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Thread& peer = machine.threads[warp + lane];
    for (unsigned from = 0; from < kWarp; ++from) {
      if (mask >> from & 1) peer.seen[from] = machine.threads[warp + from].given;
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) machine.threads[warp + lane].state = State::kReady;
  }
  return self;
}

template <typename T>
T shuffle(const char* collective, unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t given = 0;
  std::memcpy(&given, &value, sizeof(T));
  const Thread& self = meet(collective, mask, given, site);
  if (!(mask >> source & 1)) {
    fail(std::string(collective) + " at " + site.text() + ": reads lane " + std::to_string(source) +
         ", which the mask does not name");
  }
  std::memcpy(&value, &self.seen[source], sizeof(T));
  return value;
}

inline int lane_number() { return static_cast<int>(thread_number(machine.current) % kWarp); }

}  // namespace simt

inline void __syncthreads(simt::Site site = simt::Site::here()) {
  simt::machine.current->site = site;
  simt::machine.current->state = simt::State::kBarrier;
  simt::yield();
}

inline void __syncwarp(unsigned mask = ~0u, simt::Site site = simt::Site::here()) {
  simt::meet("__syncwarp", mask, 0, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  const simt::Thread& self = simt::meet("__ballot_sync", mask, predicate != 0, site);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    if (mask >> lane & 1) votes |= static_cast<unsigned>(self.seen[lane]) << lane;
  }
  return votes;
}

inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return __ballot_sync(mask, predicate, site) != 0;
}

inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return __ballot_sync(mask, predicate, site) == mask;
}

// A source outside the segment of `width` lanes leaves the caller's own value, as on a device.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              simt::Site site = simt::Site::here()) {
  const int first = simt::lane_number() & ~(width - 1);
  return simt::shuffle("__shfl_sync", mask, value, first + (source & (width - 1)), site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  simt::Site site = simt::Site::here()) {
  const int lane = simt::lane_number(), source = lane ^ lane_mask;
  const bool inside = source < (lane & ~(width - 1)) + width;
  return simt::shuffle("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   simt::Site site = simt::Site::here()) {
  const int lane = simt::lane_number(), source = lane + static_cast<int>(delta);
  const bool inside = source < (lane & ~(width - 1)) + width;
  return simt::shuffle("__shfl_down_sync", mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 simt::Site site = simt::Site::here()) {
  const int lane = simt::lane_number(), source = lane - static_cast<int>(delta);
  const bool inside = source >= (lane & ~(width - 1));
  return simt::shuffle("__shfl_up_sync", mask, value, inside ? source : lane, site);
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Byte i of the result is the byte of {y, x} that nibble i of the selector names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  }
  return result;
}

inline unsigned __vadd2(unsigned x, unsigned y) {
  return ((x & 0xffff0000u) + (y & 0xffff0000u)) | ((x + y) & 0xffffu);
}

inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
// The upper half of {high, low} shifted to the left.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
  return static_cast<unsigned>(both << (shift & 31u) >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(x) * y) >> 64);
}

template <typename T>
T __ldg(const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) {
    simt::fail("__ldg: the address is not a multiple of " + std::to_string(alignof(T)));
  }
  return *pointer;
}
