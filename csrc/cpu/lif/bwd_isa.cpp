#include "cpu/common/isa_parts.h"
#include "cpu/lif/bwd_kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_lif_bwd(IsaKernels* kernels) { kernels->lif_bwd = lif_bwd_tile; }

}  // namespace realspike::REALSPIKE_ISA
