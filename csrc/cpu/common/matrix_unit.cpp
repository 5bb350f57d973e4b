#include "cpu/common/matrix_unit.h"

#if defined(REALSPIKE_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace realspike {
namespace {

bool ask() {
#if defined(REALSPIKE_X86) && defined(__linux__)
  constexpr unsigned kVbmi = 1u << 1, kTile = 1u << 24, kInt8 = 1u << 25;  // of leaf 7
  unsigned eax, ebx, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((ecx & kVbmi) == 0 || (edx & kTile) == 0 || (edx & kInt8) == 0) return false;
  // The registers are large, so Linux gives them to the processes that ask for them.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_matrix_unit() {
  static const bool has = ask();
  return has;
}

}  // namespace realspike
