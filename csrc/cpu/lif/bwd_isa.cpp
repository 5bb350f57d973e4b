#include "cpu/common/isa_parts.h"
#include "cpu/lif/bwd_bits_kernel.h"
#include "cpu/lif/bwd_recompute_kernel.h"
#include "cpu/lif/bwd_tile.h"

namespace realspike::REALSPIKE_ISA {

const BitsLoops& bits_loops(const LifBackward& p) {
  const BitsLoops* loops = nullptr;
  with_element(p.dtype, [&](auto element) { loops = &choose_bits<decltype(element)>(p); });
  return *loops;
}

const RecomputeLoops& recompute_loops(const LifBackward& p) { return recompute_for(p); }

void enter_lif_bwd(IsaKernels* kernels) {
  kernels->lif_bwd = [](const LifBackward& p, const LifTile& tile) {
    with_element(p.dtype, [&](auto element) {
      WidenedCurrents<decltype(element)> currents(p);
      LaneSums sums;
      lif_bwd_tile<decltype(element)>(p, tile, currents, sums);
      store_sums(p, tile, sums);
    });
  };
}

}  // namespace realspike::REALSPIKE_ISA
