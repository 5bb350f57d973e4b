#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace realspike {

// Enqueues a kernel; nullptr is one that does not exist. A grid has up to 2^31 - 1 blocks; the
// kernels let the blocks of a larger problem take turns.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int shared_bytes,
                   cudaStream_t stream, Parameters... arguments) {
  if (kernel == nullptr) return cudaErrorInvalidValue;
  const auto some = static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
  kernel<<<some, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace realspike
