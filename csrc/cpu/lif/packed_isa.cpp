#include "cpu/common/isa_parts.h"
#include "cpu/lif/packed_kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_lif_packed(IsaKernels* kernels) { kernels->lif_packed = lif_packed_task; }

}  // namespace realspike::REALSPIKE_ISA
