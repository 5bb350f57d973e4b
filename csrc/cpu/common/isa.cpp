#include "cpu/common/isa.h"

#include <cstdlib>
#include <cstring>

namespace realspike {

namespace baseline {
IsaKernels kernels();
}
#ifdef REALSPIKE_X86
namespace avx2 {
IsaKernels kernels();
}
namespace avx512 {
IsaKernels kernels();
}
#endif

namespace {

// A set's kernels() is itself compiled for that set, so it is called only where the CPU has it.
IsaKernels choose() {
  const char* asked = std::getenv("REALSPIKE_CPU_ISA");
  const auto allowed = [asked](const char* name) {
    return asked == nullptr || std::strcmp(asked, name) == 0;
  };
#ifdef REALSPIKE_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (has_avx512 && allowed("avx512")) return avx512::kernels();
  if (has_avx2 && allowed("avx2")) return avx2::kernels();
#else
  (void)allowed;
#endif
  return baseline::kernels();
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels chosen = choose();
  return chosen;
}

}  // namespace realspike
