#include "cpu/isa_parts.h"
#include "cpu/lif_bwd_kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_lif_bwd(IsaKernels* kernels) { kernels->lif_bwd = lif_bwd_tile; }

}  // namespace realspike::REALSPIKE_ISA
