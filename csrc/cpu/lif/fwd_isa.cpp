#include "cpu/common/isa_parts.h"
#include "cpu/lif/fwd_kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_lif_fwd(IsaKernels* kernels) { kernels->lif_fwd = lif_fwd_tile; }

}  // namespace realspike::REALSPIKE_ISA
