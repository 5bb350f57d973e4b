#include <algorithm>
#include <cmath>
#include <vector>

#include "core/batch_norm_lif.h"
#include "core/numbers.h"
#include "cpu/batch_norm_lif/plan.h"
#include "cpu/common/element.h"
#include "cpu/common/isa.h"
#include "cpu/common/memory.h"
#include "cpu/common/parallel.h"
#include "cpu/lif/each_tile.h"

namespace realspike {
namespace {

// Values that are worth a task, and tasks that are enough.
constexpr int64_t kMinimumWork = 32768;
constexpr int64_t kTasks = 64;

int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

MomentsPlan plan_moments(const BatchNormMoments& p, int64_t images) {
  MomentsPlan plan;
  plan.channels_last = p.channels_last || p.P == 1;
  plan.pieces = plan.channels_last ? p.P : ceil_div(p.P, kNormPiece);
  plan.rows = images * plan.pieces;
  // Contiguous, a task reads some kilobytes of each image in one go.
  plan.channels =
      plan.channels_last ? least(p.C, kNormChannels) : least(p.C, most(1, least(2048 / p.P, 64)));
  plan.groups = ceil_div(p.C, plan.channels);
  const int64_t row_values = plan.channels * ceil_div(p.P, plan.pieces);
  const int64_t worthwhile = ceil_div(kMinimumWork, row_values);
  const int64_t shared_out = ceil_div(plan.rows * plan.groups, kTasks);
  plan.rows_per_range = most(worthwhile, shared_out);
  // channels_last puts up to 64 pixels in a row.
  if (plan.channels_last) plan.rows_per_range = ceil_div(plan.rows_per_range, 64) * 64;
  plan.ranges = ceil_div(plan.rows, plan.rows_per_range);
  return plan;
}

// The moments of one channel in float64, where float32's range was not enough or a value is not
// finite.
void wide_moments(const BatchNormMoments& p, int64_t images, int64_t c, double* mean,
                  double* squares) {
  const int64_t pixels = images * p.P;
  with_element(p.dtype, [&](auto element) {
    using Element = decltype(element);
    const auto* x = static_cast<const typename Element::Storage*>(p.x);
    const auto value = [&](int64_t i) -> double {
      const int64_t at = p.channels_last ? i * p.C + c : (i / p.P * p.C + c) * p.P + i % p.P;
      return Element::widen(x[at]);
    };
    *mean = *squares = 0.0;
    for (int64_t i = 0; i < pixels; ++i) *mean += value(i);
    *mean /= static_cast<double>(pixels);
    for (int64_t i = 0; i < pixels; ++i) {
      const double distance = value(i) - *mean;
      *squares += distance * distance;
    }
  });
}

// Neurons after which the norm and all parameters repeat. Where that is a pixel, a task walks
// through memory from one end to the other.
int64_t norm_period(const BatchNorm& norm, bool parameters_vary) {
  return norm.channels_last && !parameters_vary ? norm.C : norm.C * norm.P;
}

}  // namespace

void batch_norm_moments_cpu(const BatchNormMoments& p, int num_threads) {
  // Timesteps that are the same memory do not change the moments.
  const int64_t images = p.x_stride_t == 0 ? p.B : p.T * p.B;
  const MomentsPlan plan = plan_moments(p, images);
  const int64_t tasks = plan.groups * plan.ranges, size = 2 * plan.channels + 1;
  std::vector<double> partials(tasks * size);
  parallel_for(tasks, threads_worth(images * p.C * p.P, kMinimumWork, num_threads),
               [&](int64_t task, int) {
                 isa_kernels().batch_norm_moments(p, plan, task, partials.data() + task * size);
               });
  const double count = static_cast<double>(images * p.P);
  for (int64_t c = 0; c < p.C; ++c) {
    const int64_t group = c / plan.channels, column = c % plan.channels;
    double values = 0.0, mean = 0.0, squares = 0.0;
    for (int64_t range = 0; range < plan.ranges; ++range) {
      const double* partial = partials.data() + (range * plan.groups + group) * size;
      const double more = partial[2 * plan.channels];
      const double distance = partial[column] - mean;
      mean += distance * (more / (values + more));
      squares +=
          partial[plan.channels + column] + distance * distance * (values * more / (values + more));
      values += more;
    }
    if (!std::isfinite(squares)) wide_moments(p, images, c, &mean, &squares);
    p.moments[c] = mean;
    p.moments[p.C + c] = squares / count;
  }
  p.moments[2 * p.C] = static_cast<double>(p.T * p.B * p.P);
}

void batch_norm_statistics_cpu(const BatchNormStatistics& p) {
  const double count = p.moments[2 * p.C];
  for (int64_t c = 0; c < p.C; ++c) {
    const double mean = p.moments[c], var = p.moments[p.C + c];
    p.mean[c] = static_cast<float>(mean);
    p.inv_std[c] = static_cast<float>(1.0 / std::sqrt(double{static_cast<float>(var)} + p.eps));
    const auto move = [&](float* running, double to) {
      if (running != nullptr && count > 0.0) {
        running[c] = static_cast<float>(running[c] + p.momentum * (to - running[c]));
      }
    };
    move(p.running_mean, mean);
    move(p.running_var, var * (count / std::max(count - 1.0, 1.0)));
  }
}

void batch_norm_of_cpu(const BatchNormMoments& of, BatchNormStatistics to, double* count,
                       int num_threads) {
  std::vector<double> moments(2 * of.C + 1);
  BatchNormMoments p = of;
  to.moments = p.moments = moments.data();
  batch_norm_moments_cpu(p, num_threads);
  batch_norm_statistics_cpu(to);
  *count = moments.back();
}

void batch_norm_lif_fwd_cpu(const BatchNormLifForward& p, int num_threads) {
  const int64_t T = p.lif.T, N = p.lif.N;
  const int64_t bytes = T * N * bytes_of(p.lif.dtype);
  prefer_huge_pages(p.lif.y, bytes);
  for_each_tile(lif_tiling(T, N, norm_period(p.norm, p.lif.period > 1)), N, bytes, true,
                num_threads,
                [&](int64_t, const LifTile& tile) { isa_kernels().batch_norm_lif_fwd(p, tile); });
}

void batch_norm_lif_bwd_cpu(const BatchNormLifBackward& p, int num_threads) {
  const int64_t T = p.lif.T, N = p.lif.N, C = p.norm.C;
  const int64_t bytes = T * N * bytes_of(p.lif.dtype);
  prefer_huge_pages(p.lif.grad_x, bytes);
  const LifTiling tiling = lif_tiling(T, N, norm_period(p.norm, p.lif.period > 1));
  const int64_t columns = ceil_div(tiling.row, tiling.width), tasks = tiling.chunks * columns;
  const int64_t slots = norm_slots(p.norm, tiling.width), size = 2 * slots + 3;
  std::vector<double> partials(tasks * size);
  for_each_tile(tiling, N, bytes, true, num_threads, [&](int64_t task, const LifTile& tile) {
    double* sums = partials.data() + task * size;
    isa_kernels().batch_norm_lif_bwd(p, {tile, sums, sums + 2 * slots, slots});
  });
  double parameters[3] = {};
  std::vector<double> own(p.sums == nullptr ? 2 * C : 0);
  double* totals = p.sums == nullptr ? own.data() : p.sums;
  for (int64_t c = 0; c < 2 * C; ++c) totals[c] = 0.0;
  for (int64_t task = 0; task < tasks; ++task) {
    const double* sums = partials.data() + task * size;
    int64_t c = norm_first_channel(p.norm, task % columns * tiling.width);
    for (int64_t slot = 0; slot < slots; ++slot) {
      totals[c] += sums[slot];
      totals[C + c] += sums[slots + slot];
      c = c + 1 == C ? 0 : c + 1;
    }
    for (int k = 0; k < 3; ++k) parameters[k] += sums[2 * slots + k];
  }
  const auto store = [](float* sum, double value) {
    if (sum != nullptr) *sum = static_cast<float>(value);
  };
  if (p.lif.period == 1) {
    store(p.lif.grad_amplitude, parameters[0]);
    store(p.lif.grad_decay, parameters[1]);
    store(p.lif.grad_v_threshold, parameters[2]);
  }
  for (int64_t c = 0; c < C; ++c) {
    if (p.grad_weight != nullptr) store(p.grad_weight + c, totals[C + c] * p.norm.inv_std[c]);
    if (p.grad_bias != nullptr) store(p.grad_bias + c, totals[c]);
  }
  if (p.grad_input == nullptr) return;
  const NormShape shape = {p.lif.dtype, T, N / (C * p.norm.P), C, p.norm.P, p.norm.channels_last};
  batch_norm_bwd_cpu(
      {shape, p.norm, p.lif.grad_x, p.lif.x, p.lif.x_stride_t, totals, p.count, p.grad_input},
      num_threads);
}

void batch_norm_bwd_cpu(const BatchNormBackward& p, int num_threads) {
  const int64_t N = p.B * p.C * p.P;
  std::vector<float> per_channel(3 * p.C);
  float* scale = per_channel.data();
  float* shift = scale + p.C;
  float* slope = shift + p.C;
  for (int64_t c = 0; c < p.C; ++c) {
    const float inv_std = p.norm.inv_std[c];
    scale[c] = p.norm.weight == nullptr ? inv_std : p.norm.weight[c] * inv_std;
    if (p.count == nullptr) continue;  // the other two stay 0
    shift[c] = static_cast<float>(p.sums[c] / *p.count);
    slope[c] = static_cast<float>(p.sums[p.C + c] / *p.count * inv_std * inv_std);
  }
  prefer_huge_pages(p.grad_x, p.T * N * bytes_of(p.dtype));
  const int64_t bytes = p.T * N * bytes_of(p.dtype);
  for_each_tile(lif_tiling(p.T, N, norm_period(p.norm, false)), N, bytes, false, num_threads,
                [&](int64_t, const LifTile& tile) {
                  isa_kernels().batch_norm_bwd(p, {scale, shift, slope}, tile);
                });
}

}  // namespace realspike
