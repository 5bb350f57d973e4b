// Compiled once per instruction set, with REALSPIKE_ISA_TABLE and REALSPIKE_ISA_NAME naming it.
// Everything here has internal linkage and nothing of the C++ library is used but types: a shared
// inline function would be merged by the linker across instruction sets.

#include "cpu/isa.h"
#include "cpu/lif_bwd_kernel.h"
#include "cpu/lif_packed_kernel.h"
#include "cpu/pack_spikes_kernel.h"
#include "cpu/unshared_conv_grad_kernel.h"
#include "cpu/unshared_conv_kernel.h"

namespace realspike {

extern const IsaKernels REALSPIKE_ISA_TABLE;
const IsaKernels REALSPIKE_ISA_TABLE = {
    REALSPIKE_ISA_NAME, lif_fwd_tile,
    lif_bwd_tile,       lif_packed_task,
    pack_range,         unpack_range,
    count_spikes,       decode_pixels,
    unshared_conv_task, unshared_conv_grad_weight_task,
};

}  // namespace realspike
