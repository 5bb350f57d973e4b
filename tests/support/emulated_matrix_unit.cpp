#include "cpu/common/matrix_unit.h"

namespace realspike {

// The functions that use the unit are compiled for a CPU with VBMI.
bool has_matrix_unit() { return __builtin_cpu_supports("avx512vbmi"); }

}  // namespace realspike
