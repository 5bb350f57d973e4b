#pragma once

#include <cstdint>
#include <type_traits>

#include "core/batch_norm_lif.h"
#include "cpu/batch_norm_lif/plan.h"
#include "cpu/common/element.h"
#include "cpu/common/vector.h"

// Means and sums of squared deviations in one pass. Blocks of rows add up the deviations d from a
// number near the mean, and their squares, in float32: the mean of the rows before. Then
// sum(d^2) - sum(d)^2 / n, the block's share, has a rounding error that is small beside what Chan's
// combination, in float64, adds for the block: that has the squared distance of the two means as
// well, as long as a block is not larger than all rows before it. The first row is read twice.

namespace realspike {
namespace {

// Rows of a block at most, channels_last; contiguous, pixels of a block at most are kNormPiece.
constexpr int64_t kMomentsRows = 256;
// Lanes that stay in registers while rows are added.
constexpr int kStrip = 4 * kFloats;
// Floats of a stretch of rows, channels_last.
constexpr int64_t kStretch = 8192;

// Statistics of up to kNormChannels columns, each of `count` values.
struct Moments {
  double count = 0.0;
  alignas(64) double mean[kNormChannels];
  alignas(64) double squares[kNormChannels];  // sum of squared deviations from the mean

  // Adds a block of `values` values to the columns [0, columns): their sums of deviations from
  // `shift` and of their squares. The columns' count is the caller's to add.
  void add(int64_t columns, double values, const float* __restrict shift,
           const double* __restrict sum, const double* __restrict sum_squares) {
    const double share = values / (count + values), weight = count * share;
#pragma GCC ivdep
    for (int64_t i = 0; i < columns; ++i) {
      const double centre = sum[i] / values;
      const double own = sum_squares[i] - sum[i] * centre;
      const double distance = shift[i] + centre - mean[i];
      mean[i] += distance * share;
      squares[i] += (own > 0.0 || own != own ? own : 0.0) + distance * distance * weight;
    }
  }
};

// The first `count` lanes from memory, the others `otherwise`.
inline Floats load_some(const float* from, int64_t count, const Floats& otherwise) {
  Floats v = otherwise;
  for (int64_t i = 0; i < count; ++i) v[i] = from[i];
  return v;
}

inline Floats all_lanes(float x) { return x - Floats{}; }

// `rows` rows of kVectors vectors; the last vector of a row has `last` lanes.
template <int kVectors>
void add_rows(const float* x, int64_t stride, int64_t rows, int64_t last, const float* shift,
              float* sum, float* sum_squares) {
  Floats s[kVectors], q[kVectors], shifts[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    s[v] = load_vector<Floats>(sum + v * kFloats);
    q[v] = load_vector<Floats>(sum_squares + v * kFloats);
    shifts[v] = load_vector<Floats>(shift + v * kFloats);
  }
  const auto add_row = [&](auto load_last) {
    for (int v = 0; v < kVectors; ++v) {
      const Floats d = (v == kVectors - 1 ? load_last(x + v * kFloats, shifts[v])
                                          : load_vector<Floats>(x + v * kFloats)) -
                       shifts[v];
      s[v] += d;
      q[v] += d * d;
    }
  };
  for (int64_t r = 0; r < rows; ++r, x += stride) {
    if (last == kFloats) {
      add_row([](const float* from, const Floats&) { return load_vector<Floats>(from); });
    } else {
      add_row([&](const float* from, const Floats& otherwise) {
        return load_some(from, last, otherwise);
      });
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store_vector(sum + v * kFloats, s[v]);
    store_vector(sum_squares + v * kFloats, q[v]);
  }
}

// One run of a channel: `count` neighbouring values.
inline void add_run(const float* x, int64_t count, float shift, float* sum, float* sum_squares) {
  const Floats shifts = all_lanes(shift);
  Floats s[4] = {}, q[4] = {};
  const auto add = [&](int v, const Floats& values) {
    const Floats d = values - shifts;
    s[v] += d;
    q[v] += d * d;
  };
  int64_t i = 0;
  for (; count - i >= kStrip; i += kStrip) {
    for (int v = 0; v < 4; ++v) add(v, load_vector<Floats>(x + i + v * kFloats));
  }
  for (int v = 0; count - i >= kFloats; i += kFloats, ++v) add(v, load_vector<Floats>(x + i));
  if (count > i) add(3, load_some(x + i, count - i, shifts));
  store_vector(sum, load_vector<Floats>(sum) + ((s[0] + s[1]) + (s[2] + s[3])));
  store_vector(sum_squares, load_vector<Floats>(sum_squares) + ((q[0] + q[1]) + (q[2] + q[3])));
}

inline double sum_of_vector(const float* lanes) {
  double sums[kFloats];
  for (int i = 0; i < kFloats; ++i) sums[i] = lanes[i];
  for (int half = kFloats / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// The sums of a block, one lane per column (channels_last) or kFloats lanes (contiguous).
struct BlockSums {
  alignas(64) float shift[kNormChannels];
  alignas(64) float sum[kNormChannels];
  alignas(64) float sum_squares[kNormChannels];
  alignas(64) double sums[kNormChannels];
  alignas(64) double sums_squares[kNormChannels];

  void clear(int64_t lanes) {
    for (int64_t i = 0; i < lanes; ++i) sum[i] = sum_squares[i] = 0.0f;
  }
};

// Calls rows(begin, end) for the blocks that make up [0, all), none larger than those before it
// together or than `most`; the first block, of one row, comes
// twice, and the first time alone end_block(rows, true) follows.
template <class Rows, class EndBlock>
void for_each_moments_block(int64_t all, int64_t most, Rows rows, EndBlock end_block) {
  rows(0, 1);
  end_block(1, true);
  for (int64_t begin = 0; begin < all;) {
    const int64_t end = least(begin + (begin == 0 ? 1 : least(begin, most)), all);
    rows(begin, end);
    end_block(end - begin, false);
    begin = end;
  }
}

// Channels [channel, channel + channels) of the runs of rows [begin, end).
template <class Element>
void moments_contiguous(const BatchNormMoments& p, const MomentsPlan& plan, int64_t channel,
                        int64_t channels, int64_t begin, int64_t end, BlockSums& block,
                        Moments& moments) {
  using Storage = typename Element::Storage;
  alignas(64) float widened[std::is_same_v<Element, Float32> ? 1 : kNormPiece];
  const auto values_of = [&](int64_t row) {
    return least(p.P - row % plan.pieces * kNormPiece, kNormPiece);
  };
  const int64_t most = plan.pieces > 1 ? 1 : kNormPiece / p.P;
  block.clear(channels * kFloats);
  double values = 0.0;
  for (int64_t c = 0; c < channels; ++c) block.shift[c] = 0.0f;
  for_each_moments_block(
      end - begin, most,
      [&](int64_t from, int64_t to) {
        for (int64_t row = begin + from; row < begin + to; ++row) {
          const int64_t image = row / plan.pieces, count = values_of(row);
          const Storage* x = static_cast<const Storage*>(p.x) + (image * p.C + channel) * p.P +
                             row % plan.pieces * kNormPiece;
          for (int64_t c = 0; c < channels; ++c, x += p.P) {
            float* sum = block.sum + c * kFloats;
            float* sum_squares = block.sum_squares + c * kFloats;
            if constexpr (std::is_same_v<Element, Float32>) {
              add_run(x, count, block.shift[c], sum, sum_squares);
            } else {
              for (int64_t i = 0; i < count; ++i) widened[i] = Element::widen(x[i]);
              add_run(widened, count, block.shift[c], sum, sum_squares);
            }
          }
          values += count;
        }
      },
      [&](int64_t, bool first) {
        for (int64_t c = 0; c < channels; ++c) {
          block.sums[c] = sum_of_vector(block.sum + c * kFloats);
          block.sums_squares[c] = sum_of_vector(block.sum_squares + c * kFloats);
        }
        block.clear(channels * kFloats);
        if (!first) {
          moments.add(channels, values, block.shift, block.sums, block.sums_squares);
          moments.count += values;
        }
        for (int64_t c = 0; c < channels; ++c) {
          block.shift[c] = static_cast<float>(first ? block.sums[c] / values : moments.mean[c]);
        }
        values = 0.0;
      });
}

// The same of pixels [begin, end), channels_last. Neighbouring pixels of few channels make one row
// of `columns` columns, and the moments of its columns are combined at the end.
template <class Element>
void moments_channels_last(const BatchNormMoments& p, int64_t channel, int64_t channels,
                           int64_t begin, int64_t end, BlockSums& block, Moments& moments) {
  using Storage = typename Element::Storage;
  constexpr bool kWide = std::is_same_v<Element, Float32>;
  alignas(64) float widened[kWide ? 1 : kStretch];
  const Storage* x = static_cast<const Storage*>(p.x) + begin * p.C + channel;
  const int64_t pixels = end - begin;
  const int64_t repeats =
      channels == p.C ? least(kStrip / channels > 1 ? kStrip / channels : 1, pixels) : 1;
  const int64_t columns = repeats * channels, stride = repeats * p.C;
  const int64_t padded = ceil_div(columns, kFloats) * kFloats;
  const int64_t at_once = kStretch / columns < 16 ? kStretch / columns : 16;
  const auto add = [&](const Storage* from, int64_t rows, int64_t count) {
    const float* wide;
    int64_t wide_stride = stride;
    if constexpr (kWide) {
      wide = from;
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < count; ++i) {
          widened[r * count + i] = Element::widen(from[r * stride + i]);
        }
      }
      wide = widened;
      wide_stride = count;
    }
    for (int64_t i = 0; i < count; i += kStrip) {
      const int64_t lanes = least(count - i, kStrip), vectors = ceil_div(lanes, kFloats);
      const auto function = vectors == 4   ? add_rows<4>
                            : vectors == 3 ? add_rows<3>
                            : vectors == 2 ? add_rows<2>
                                           : add_rows<1>;
      function(wide + i, wide_stride, rows, lanes - (vectors - 1) * kFloats, block.shift + i,
               block.sum + i, block.sum_squares + i);
    }
  };
  const auto take_sums = [&] {
    for (int64_t i = 0; i < columns; ++i) {
      block.sums[i] = block.sum[i];
      block.sums_squares[i] = block.sum_squares[i];
    }
    block.clear(padded);
  };
  block.clear(padded);
  for (int64_t i = 0; i < padded; ++i) block.shift[i] = 0.0f;
  const int64_t rows = pixels / repeats;
  for_each_moments_block(
      rows, kMomentsRows,
      [&](int64_t from, int64_t to) {
        for (int64_t row = from; row < to; row += at_once) {
          add(x + row * stride, least(to - row, at_once), columns);
        }
      },
      [&](int64_t count, bool first) {
        take_sums();
        const double values = static_cast<double>(count);
        if (!first) {
          moments.add(columns, values, block.shift, block.sums, block.sums_squares);
          moments.count += values;
        }
        for (int64_t i = 0; i < columns; ++i) {
          block.shift[i] = static_cast<float>(first ? block.sums[i] : moments.mean[i]);
        }
      });
  // Pixels that do not fill a row.
  const int64_t left = pixels % repeats;
  if (left > 0) {
    add(x + rows * stride, 1, left * channels);
    take_sums();
    moments.add(left * channels, 1.0, block.shift, block.sums, block.sums_squares);
  }
  const double count = moments.count;
  moments.count += left > 0 ? 1.0 : 0.0;
  for (int64_t r = 1; r < repeats; ++r) {
    const double more = r < left ? count + 1.0 : count;
    const double share = more / (moments.count + more), weight = moments.count * share;
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = moments.mean[r * channels + c] - moments.mean[c];
      moments.mean[c] += distance * share;
      moments.squares[c] += moments.squares[r * channels + c] + distance * distance * weight;
    }
    moments.count += more;
  }
}

// Writes [2 * channels + 1] of the task: means, sums of squared deviations, and the values that
// those are of.
inline void moments_task(const BatchNormMoments& p, const MomentsPlan& plan, int64_t task,
                         double* partial) {
  const int64_t channel = task % plan.groups * plan.channels;
  const int64_t channels = least(p.C - channel, plan.channels);
  const int64_t begin = task / plan.groups * plan.rows_per_range;
  const int64_t end = least(begin + plan.rows_per_range, plan.rows);
  BlockSums block;
  Moments moments;
  for (int64_t i = 0; i < kNormChannels; ++i) moments.mean[i] = moments.squares[i] = 0.0;
  with_element(p.dtype, [&](auto element) {
    using Element = decltype(element);
    if (plan.channels_last) {
      moments_channels_last<Element>(p, channel, channels, begin, end, block, moments);
    } else {
      moments_contiguous<Element>(p, plan, channel, channels, begin, end, block, moments);
    }
  });
  for (int64_t c = 0; c < channels; ++c) {
    partial[c] = moments.mean[c];
    partial[plan.channels + c] = moments.squares[c];
  }
  partial[2 * plan.channels] = moments.count;
}

}  // namespace
}  // namespace realspike
