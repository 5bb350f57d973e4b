#include "cpu/common/isa_parts.h"

#define REALSPIKE_TEXT_OF(name) #name
#define REALSPIKE_TEXT(name) REALSPIKE_TEXT_OF(name)

namespace realspike::REALSPIKE_ISA {

IsaKernels kernels();

IsaKernels kernels() {
  IsaKernels all{};
  all.name = REALSPIKE_TEXT(REALSPIKE_ISA);
  enter_lif_fwd(&all);
  enter_lif_bwd(&all);
  enter_lif_packed(&all);
  enter_batch_norm_lif(&all);
  enter_pack_spikes(&all);
  enter_unshared_conv(&all);
  return all;
}

}  // namespace realspike::REALSPIKE_ISA
