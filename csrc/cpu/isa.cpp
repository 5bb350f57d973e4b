#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace realspike {

extern const IsaKernels kBaselineKernels;
#ifdef REALSPIKE_X86
extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;
#endif

namespace {

const IsaKernels& choose() {
  const char* asked = std::getenv("REALSPIKE_CPU_ISA");
  const auto allowed = [asked](const IsaKernels& kernels) {
    return asked == nullptr || std::strcmp(asked, kernels.name) == 0;
  };
#ifdef REALSPIKE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
  if (avx512 && allowed(kAvx512Kernels)) return kAvx512Kernels;
  if (avx2 && allowed(kAvx2Kernels)) return kAvx2Kernels;
#else
  (void)allowed;
#endif
  return kBaselineKernels;
}

}  // namespace

const IsaKernels& isa_kernels() {
  static const IsaKernels& chosen = choose();
  return chosen;
}

}  // namespace realspike
