#pragma once

#include <cstdint>

namespace realspike {

// One bit per channel: channel c of a pixel is bit (c % 32) of word (c / 32), least significant bit
// first; bits at and beyond C are 0. Pixels are the flattened [H, W] (or any trailing shape).
struct PackSpikesParams {
  const void* spikes;  // [N, C, P] by strides, element_size bytes each, 0 or 1
  uint32_t* packed;    // [N, P, words]
  int64_t N;
  int64_t C;
  int64_t P;
  int64_t words;  // ceil(C / 32)
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_p;
  int32_t element_size;  // 1, 2, 4 or 8
  uint64_t one;          // bit pattern of the value 1 in the element type
  uint64_t sign;         // bit pattern of the sign bit (0 if unsigned): -0.0 is silence too
  int32_t* not_binary;   // set to 1 if an element is neither 0 nor 1; nullptr to skip the check
};

struct UnpackSpikesParams {
  const uint32_t* packed;  // [N, P, words]
  float* spikes;           // [N, C, P] by strides, 0 or 1
  int64_t N;
  int64_t C;
  int64_t P;
  int64_t words;  // ceil(C / 32)
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_p;
};

void pack_spikes_cpu(const PackSpikesParams& params, int num_threads);
void unpack_spikes_cpu(const UnpackSpikesParams& params, int num_threads);

// Whether a bit beyond the last channel is set; packed [pixels, ceil(channels / 32)].
bool has_spare_bits_cpu(const uint32_t* packed, int64_t pixels, int64_t channels);

// Enqueue on `stream` (a cudaStream_t) and return the cudaError_t of the launch.
int pack_spikes_cuda(const PackSpikesParams& params, void* stream);
int unpack_spikes_cuda(const UnpackSpikesParams& params, void* stream);

}  // namespace realspike
