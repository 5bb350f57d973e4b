#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/pack_spikes.h"
#include "cuda/common/device.cuh"

namespace realspike {

constexpr int kPackSpikesThreads = 256;

// One thread per (sample, word, pixel). Neighbouring threads take the neighbours in memory: pixels
// of a contiguous map, words of a channels_last map.
struct PackSpikesGrid {
  int64_t words;  // in all: the number of threads with work
  bool channels_last;
  Divisor words_per_pixel;
  Divisor pixels;
  int64_t blocks;  // 0: there is nothing to do
};

template <typename Params>
PackSpikesGrid make_pack_spikes_grid(const Params& p) {
  PackSpikesGrid grid{};
  grid.words = p.N * p.P * p.words;
  grid.channels_last = p.stride_c == 1 && p.stride_p != 1;
  if (grid.words == 0) return grid;
  grid.words_per_pixel = make_divisor(p.words);
  grid.pixels = make_divisor(p.P);
  grid.blocks = ceil_div(grid.words, kPackSpikesThreads);
  return grid;
}

struct PackSpikesIndex {
  int64_t n;
  int64_t word;
  int64_t pixel;
};

__device__ inline PackSpikesIndex pack_spikes_index(int64_t i, const PackSpikesGrid& grid) {
  PackSpikesIndex index;
  if (grid.channels_last) {
    index.word = take_remainder(i, grid.words_per_pixel);
    index.pixel = take_remainder(i, grid.pixels);
  } else {
    index.pixel = take_remainder(i, grid.pixels);
    index.word = take_remainder(i, grid.words_per_pixel);
  }
  index.n = i;
  return index;
}

// Element is an unsigned integer of the size of a spike: the kernel compares bit patterns, not
// values.
template <typename Element>
__global__ void __launch_bounds__(kPackSpikesThreads)
    pack_spikes_kernel(const PackSpikesParams p, const PackSpikesGrid grid) {
  const Element* const spikes = static_cast<const Element*>(p.spikes);
  const Element one = static_cast<Element>(p.one);
  const Element magnitude = static_cast<Element>(~p.sign);

  int64_t i = static_cast<int64_t>(blockIdx.x) * kPackSpikesThreads + threadIdx.x;
  for (; i < grid.words; i += static_cast<int64_t>(gridDim.x) * kPackSpikesThreads) {
    const PackSpikesIndex index = pack_spikes_index(i, grid);
    const int64_t c_0 = index.word * 32;
    const Element* const first =
        spikes + index.n * p.stride_n + c_0 * p.stride_c + index.pixel * p.stride_p;
    uint32_t packed = 0;
    bool binary = true;
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      if (c_0 + c >= p.C) break;
      const Element spike = __ldg(first + c * p.stride_c);
      if ((spike & magnitude) != 0) {
        packed |= 1u << c;
        binary = binary && spike == one;
      }
    }
    p.packed[(index.n * p.P + index.pixel) * p.words + index.word] = packed;
    // Every thread that comes here stores the same value.
    if (!binary && p.not_binary != nullptr) *p.not_binary = 1;
  }
}

template <typename Element>
__global__ void __launch_bounds__(kPackSpikesThreads)
    unpack_spikes_kernel(const UnpackSpikesParams p, const PackSpikesGrid grid) {
  int64_t i = static_cast<int64_t>(blockIdx.x) * kPackSpikesThreads + threadIdx.x;
  for (; i < grid.words; i += static_cast<int64_t>(gridDim.x) * kPackSpikesThreads) {
    const PackSpikesIndex index = pack_spikes_index(i, grid);
    const int64_t c_0 = index.word * 32;
    const uint32_t packed = __ldg(p.packed + (index.n * p.P + index.pixel) * p.words + index.word);
    Element* const first =
        p.spikes + index.n * p.stride_n + c_0 * p.stride_c + index.pixel * p.stride_p;
#pragma unroll
    for (int c = 0; c < 32; ++c) {
      if (c_0 + c >= p.C) break;
      first[c * p.stride_c] = (packed >> c & 1u) != 0 ? Element{1} : Element{0};
    }
  }
}

using PackSpikesKernel = void (*)(const PackSpikesParams, const PackSpikesGrid);

// Returns nullptr for a size that no element has.
inline PackSpikesKernel select_pack_spikes_kernel(int32_t element_size) {
  switch (element_size) {
    case 1:
      return pack_spikes_kernel<uint8_t>;
    case 2:
      return pack_spikes_kernel<uint16_t>;
    case 4:
      return pack_spikes_kernel<uint32_t>;
    case 8:
      return pack_spikes_kernel<unsigned long long>;
    default:
      return nullptr;
  }
}

}  // namespace realspike
