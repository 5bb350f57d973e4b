#pragma once

// REALSPIKE_MATRIX_UNIT stands before a function that uses the matrix unit of a CPU (AMX). It is
// defined where an instruction set that has masks is compiled by a compiler that knows the unit.
// Such a function is called only where has_matrix_unit().

#if defined(__AVX512F__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxint8intrin.h>)
#define REALSPIKE_MATRIX_UNIT __attribute__((target("amx-tile,amx-int8,avx512vbmi")))
#endif
#endif

namespace realspike {

// Whether the CPU has a matrix unit for int8 and the system lets this process use it. The first
// call asks the system, which from then on wants larger stacks for signals: so only a process that
// may multiply asks.
bool has_matrix_unit();

}  // namespace realspike
