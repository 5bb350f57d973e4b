#pragma once

#include "cpu/common/isa.h"

// What <op>_isa.cpp defines: each enters its inner loops into the table of one instruction set.
// These files are compiled once per set, with REALSPIKE_ISA naming it and the namespace. Everything
// else in them has internal linkage, and nothing of the C++ library is used but types: a shared
// inline function would be merged by the linker across instruction sets.

namespace realspike::REALSPIKE_ISA {

void enter_lif_fwd(IsaKernels* kernels);
void enter_lif_bwd(IsaKernels* kernels);
void enter_lif_packed(IsaKernels* kernels);
void enter_pack_spikes(IsaKernels* kernels);
void enter_unshared_conv(IsaKernels* kernels);

}  // namespace realspike::REALSPIKE_ISA
