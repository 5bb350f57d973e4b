#include "cpu/common/isa_parts.h"
#include "cpu/unshared_conv/decode.h"
#include "cpu/unshared_conv/depthwise_kernel.h"
#include "cpu/unshared_conv/grad_kernel.h"
#include "cpu/unshared_conv/listed_kernel.h"
#include "cpu/unshared_conv/masked_kernel.h"
#include "cpu/unshared_conv/matrix_kernel.h"

namespace realspike::REALSPIKE_ISA {

void enter_unshared_conv(IsaKernels* kernels) {
  kernels->count_spikes = count_spikes;
  kernels->decode_pixels = decode_pixels;
  kernels->unshared_conv_listed = unshared_conv_listed_task;
#if defined(__AVX512F__)
  kernels->mask_pixels = mask_pixels;
  kernels->unshared_conv_masked = unshared_conv_masked_task;
#endif
#if defined(REALSPIKE_MATRIX_UNIT)
  kernels->unshared_conv_matrix = unshared_conv_matrix_task;
#endif
  kernels->unshared_conv_depthwise = unshared_conv_depthwise_task;
  kernels->unshared_conv_grad_weight = unshared_conv_grad_weight_task;
}

}  // namespace realspike::REALSPIKE_ISA
