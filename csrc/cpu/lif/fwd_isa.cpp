#include "cpu/common/isa_parts.h"
#include "cpu/lif/fwd_kernel.h"
#include "cpu/lif/fwd_tile.h"
#include "cpu/lif/spikes_kernel.h"

namespace realspike::REALSPIKE_ISA {

const ForwardLoops& forward_loops(const LifForward& p, DType elements) {
  const ForwardLoops* loops = nullptr;
  with_element(elements, [&](auto element) { loops = &choose_forward<decltype(element)>(p); });
  return *loops;
}

void enter_lif_fwd(IsaKernels* kernels) {
  kernels->lif_fwd = [](const LifForward& p, const LifTile& tile) {
    with_element(p.dtype, [&](auto element) {
      using Element = decltype(element);
      StoredCurrents<Element> currents(p);
      lif_fwd_tile<Element>(p, tile, choose_forward<Element>(p), currents);
    });
  };
  kernels->lif_spikes = [](const LifForward& p, const LifTile& tile) {
    with_element(p.dtype, [&](auto element) {
      using Element = decltype(element);
      p.ternary ? lif_spikes_tile<Element, true>(p, tile)
                : lif_spikes_tile<Element, false>(p, tile);
    });
  };
}

}  // namespace realspike::REALSPIKE_ISA
