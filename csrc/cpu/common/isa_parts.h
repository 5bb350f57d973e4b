#pragma once

#include "cpu/common/isa.h"

// The files <op>/*isa.cpp define these functions, which enter the inner loops of an op into the
// table of one instruction set. They are compiled once per set; REALSPIKE_ISA is the set and the
// namespace. Everything else in them has internal linkage, and of the C++ library they use types
// alone: the linker would merge an inline function across instruction sets.

namespace realspike::REALSPIKE_ISA {

void enter_lif_fwd(IsaKernels* kernels);
void enter_lif_bwd(IsaKernels* kernels);
void enter_lif_packed(IsaKernels* kernels);
void enter_batch_norm_lif(IsaKernels* kernels);
void enter_pack_spikes(IsaKernels* kernels);
void enter_unshared_conv(IsaKernels* kernels);

}  // namespace realspike::REALSPIKE_ISA
