#include "cpu/common/isa_parts.h"
#include "cpu/pack_spikes/kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_pack_spikes(IsaKernels* kernels) {
  kernels->pack_spikes = pack_range;
  kernels->unpack_spikes = unpack_range;
}

}  // namespace realspike::REALSPIKE_ISA
