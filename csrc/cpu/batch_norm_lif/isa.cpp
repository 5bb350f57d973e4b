#include "cpu/batch_norm_lif/bwd_kernel.h"
#include "cpu/batch_norm_lif/currents.h"
#include "cpu/batch_norm_lif/moments_kernel.h"
#include "cpu/common/isa_parts.h"
#include "cpu/lif/bwd_tile.h"
#include "cpu/lif/fwd_tile.h"

namespace realspike::REALSPIKE_ISA {

void enter_batch_norm_lif(IsaKernels* kernels) {
  kernels->batch_norm_moments = moments_task;
  kernels->batch_norm_lif_fwd = [](const BatchNormLifForward& p, const LifTile& tile) {
    with_element(p.lif.dtype, [&](auto element) {
      using Element = decltype(element);
      NormCurrents<Element> currents(p.lif, p.norm, tile);
      lif_fwd_tile<Element>(p.lif, tile, forward_loops(p.lif, DType::kFloat32), currents);
    });
  };
  kernels->batch_norm_lif_bwd = [](const BatchNormLifBackward& p, const NormTile& task) {
    with_element(p.lif.dtype, [&](auto element) {
      using Element = decltype(element);
      SummedNormCurrents<Element> currents(p.lif, p.norm, task);
      LaneSums sums;
      lif_bwd_tile<Element>(p.lif, task.tile, currents, sums);
      currents.add_to_channels();
      if (p.lif.period > 1) return store_sums(p.lif, task.tile, sums);
      task.parameter_sums[0] = sum_of(sums.amplitude, task.tile.width);
      task.parameter_sums[1] = sum_of(sums.decay, task.tile.width);
      task.parameter_sums[2] = sum_of(sums.v_threshold, task.tile.width);
    });
  };
  kernels->batch_norm_bwd = [](const BatchNormBackward& p, const NormGradients& of,
                               const LifTile& tile) {
    with_element(p.dtype, [&](auto element) { norm_bwd_tile<decltype(element)>(p, of, tile); });
  };
}

}  // namespace realspike::REALSPIKE_ISA
