#pragma once

#include <cstdint>

#include "core/unshared_conv.h"
#include "cuda/common/device.cuh"
#include "cuda/unshared_conv/field.cuh"
#include "cuda/unshared_conv/listed_config.h"
#include "cuda/unshared_conv/output.cuh"
#include "cuda/unshared_conv/rows.cuh"

namespace realspike {

// Rows of a stream that are loaded before the first of them is added. Rows of bytes take fewer
// registers, so there may be more of them; before Hopper, where 16-bit lanes take several
// instructions to add, the additions need these registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <typename Weight>
constexpr int kRowsInFlight = 8;
#else
template <typename Weight>
constexpr int kRowsInFlight = sizeof(Weight) == 1 ? 16 : 8;
#endif

// How blocks are numbered: sample tiles fastest, so that blocks which read the same weights run
// together, then channel tiles, splits, groups and output positions.
struct ListedGrid {
  int64_t blocks;
  int lanes;
  int lanes_log2;
  int sample_tile_log2;
  bool wide_out;  // writes_vectors
  Divisor sample_tiles;
  Divisor channel_tiles;
  Divisor splits;
  Divisor word_shares;  // splits * shares
  Divisor groups;
  Divisor out_width;
};

inline ListedGrid make_listed_grid(const UnsharedConvParams& p, const ListedConfig& config) {
  return {config.blocks,
          config.lanes,
          log2_of(config.lanes),
          log2_of(config.sample_tile),
          writes_vectors(p),
          make_divisor(config.sample_tiles),
          make_divisor(config.channel_tiles),
          make_divisor(config.splits),
          make_divisor(int64_t{config.splits} * config.shares),
          make_divisor(p.G),
          make_divisor(p.OW)};
}

// Lists, in ascending order, the rows of a stream. Each of its lanes passes one spike word, whose
// bit 0 selects row `row`. Returns how many rows there are.
__device__ inline int list_rows(uint32_t* list, uint32_t word, int row, int lane, int lanes) {
  const int own = __popc(word);
  int sum = own;
  for (int distance = 1; distance < lanes; distance *= 2) {
    const int lower = __shfl_up_sync(~0u, sum, distance, lanes);
    if (lane >= distance) sum += lower;
  }
  uint32_t* to = list + sum - own;
  for (uint32_t rest = word; rest != 0; rest &= rest - 1) {
    *to++ = static_cast<uint32_t>(row + __ffs(static_cast<int>(rest)) - 1);
  }
  return __shfl_sync(~0u, sum, lanes - 1, lanes);
}

// Every sample reads the rows that it uses once; other samples of the block find them in the cache.
// A block owns `sample_tile` samples x (lanes * VEC) channels of one output position and group, in
// one of `splits` shares of the spike words. A stream of `lanes` threads owns one of the samples,
// in one of `shares` shares of these words; each of its threads sums VEC neighbouring channels. A
// stream lists the rows of `lanes` words at a time, in shared memory that its warp alone uses. It
// takes the rows in groups; all loads of a group are issued before its first addition. The sums of
// a sample's shares meet in shared memory, where one thread per output adds them in ascending
// order.
//
// Uniform over a block: the position, the channels, how often words are listed and all barriers.
// Uniform over a stream: the sample, its words and rows. Streams share a warp if a row is narrow;
// then they diverge, but list their words together.
template <typename Weight, int VEC, bool KEEP_ROWS>
__global__ void __launch_bounds__(kUnsharedConvMaxThreads, 4)
    unshared_conv_fwd_kernel(const UnsharedConvParams p, const ListedGrid grid) {
  using Total = typename Sums<Weight, VEC, 1>::Total;
  constexpr int kMostRows = Sums<Weight, VEC, 1>::kMostRows;
  constexpr int kGroup = kRowsInFlight<Weight>;
  static_assert(kMostRows % kGroup == 0, "sums are emptied between two groups");
  static_assert(kGroup <= kUnsharedConvListFill, "the list has room to be filled up");

  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int stream = thread >> grid.lanes_log2;
  const int lane = thread & (grid.lanes - 1);
  const int shares = threads >> (grid.lanes_log2 + grid.sample_tile_log2);
  const int sample = stream & ((1 << grid.sample_tile_log2) - 1);
  constexpr int kVecLog2 = VEC == 4 ? 2 : 0;
  const int tile_channels_log2 = grid.lanes_log2 + kVecLog2;
  const int tile_channels = 1 << tile_channels_log2;
  const int Cout_g = static_cast<int>(p.Cout_g);
  const uint32_t row_bytes = static_cast<uint32_t>(Cout_g * sizeof(Weight));
  uint32_t* const list =
      dynamic_shared<uint32_t>() + stream * ((32 << grid.lanes_log2) + kUnsharedConvListFill);
  // After the lists, in their place: [shares, sample_tile, tile_channels].
  Total* const partial = dynamic_shared<Total>();

  for (int64_t block = blockIdx.x; block < grid.blocks; block += gridDim.x) {
    int64_t position = block;
    const int64_t n_0 = take_remainder(position, grid.sample_tiles) << grid.sample_tile_log2;
    const int co_0 = static_cast<int>(take_remainder(position, grid.channel_tiles))
                     << tile_channels_log2;
    const int split = static_cast<int>(take_remainder(position, grid.splits));
    const int64_t g = take_remainder(position, grid.groups);
    const bool has_sample = n_0 + sample < p.N;
    const int co = co_0 + lane * VEC;
    // Threads beyond the last channel own nothing.
    const bool owns = co < Cout_g;

    const ReceptiveField field(p, grid.out_width, position, g);
    const FieldWords words(p, field);
    int64_t quotient = words.count + grid.word_shares.divisor - 1;
    take_remainder(quotient, grid.word_shares);
    const int share_words = static_cast<int>(quotient);
    const int first = (split * shares + (stream >> grid.sample_tile_log2)) * share_words;
    const int last = first + share_words < words.count ? first + share_words : words.count;
    const int end = has_sample ? last : first;

    const uint32_t* const spikes =
        p.spikes + (n_0 + sample) * p.H * p.W * p.words + field.first_word;
    const char* weight = reinterpret_cast<const char*>(static_cast<const Weight*>(p.weight) +
                                                       position * p.weight_stride_p +
                                                       g * p.KH * p.KW * p.Cin_g * p.Cout_g + co);
    compute_once(weight);

    // The lane's next spike word, fetched while the rows of the word before are added.
    uint32_t word = 0;
    int row_of_word = 0;
    const auto fetch = [&](int number) {
      word = 0;
      if (number < end) {
        const FieldWord at = words.at(p, field, number);
        word = __ldg(spikes + at.spikes) & field.mask(at.word);
        row_of_word = at.row;
      }
    };

    Sums<Weight, VEC, 1> sums;
    int rows_left = kMostRows;
    int fired_rows = 0;
    fetch(first + lane);
    for (int done = 0; done < share_words; done += grid.lanes) {
      const int rows = list_rows(list, word, row_of_word, lane, grid.lanes);
      // The last group is filled up with row 0, which is loaded but not added.
      for (int i = lane; i < kGroup; i += grid.lanes) list[rows + i] = 0;
      if (done + grid.lanes < share_words) fetch(first + done + grid.lanes + lane);
      fired_rows += rows;
      __syncwarp();
      for (int at = 0; owns && at < rows; at += kGroup) {
        uint32_t number[kGroup];
        WeightVector<Weight, VEC> row[kGroup];
#pragma unroll
        for (int r = 0; r < kGroup; r += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(list + at + r);
          number[r] = four.x;
          number[r + 1] = four.y;
          number[r + 2] = four.z;
          number[r + 3] = four.w;
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
          row[r].template load<KEEP_ROWS>(
              reinterpret_cast<const Weight*>(plus_product(weight, number[r], row_bytes)));
        }
        const int left = rows - at;
        if (left >= kGroup) {
#pragma unroll
          for (int r = 0; r < kGroup; ++r) sums.add(0, row[r].prepared());
        } else {
#pragma unroll
          for (int r = 0; r < kGroup - 1; ++r) {
            if (r < left) sums.add(0, row[r].prepared());
          }
        }
        if constexpr (kMostRows > 0) {
          rows_left -= kGroup;
          if (rows_left == 0) {
            sums.empty();
            rows_left = kMostRows;
          }
        }
      }
      __syncwarp();
    }

    Total totals[VEC];
    sums.total(0, totals);
    if constexpr (kMostRows > 0) {
#pragma unroll
      for (int i = 0; i < VEC; ++i) totals[i] -= excess_of_bytes(fired_rows);
    }
    if (shares == 1) {
      if (has_sample && owns) {
        write_totals(p, grid.wide_out, split, n_0 + sample, g * p.Cout_g + co, position, totals);
      }
      continue;
    }
    __syncthreads();
    store_totals(partial + (stream << tile_channels_log2) + lane * VEC, totals);
    __syncthreads();
    const int outputs = tile_channels << grid.sample_tile_log2;
    for (int i = thread; i < outputs; i += threads) {
      const int64_t n = n_0 + (i >> tile_channels_log2);
      const int channel = co_0 + (i & (tile_channels - 1));
      if (n >= p.N || channel >= Cout_g) continue;
      Total total = partial[i];
      for (int k = 1; k < shares; ++k) total += partial[k * outputs + i];
      write_total(p, split, n, g * p.Cout_g + channel, position, total);
    }
    __syncthreads();
  }
}

using ListedKernel = void (*)(const UnsharedConvParams, const ListedGrid);

template <typename Weight>
ListedKernel select_listed(const ListedConfig& config) {
  if (config.vec != kUnsharedConvVec) return unshared_conv_fwd_kernel<Weight, 1, true>;
  return config.keep_rows ? unshared_conv_fwd_kernel<Weight, kUnsharedConvVec, true>
                          : unshared_conv_fwd_kernel<Weight, kUnsharedConvVec, false>;
}

inline ListedKernel select_listed_kernel(DType weight_dtype, const ListedConfig& config) {
  return with_weight(weight_dtype,
                     [&](auto weight) { return select_listed<decltype(weight)>(config); });
}

}  // namespace realspike
