#include <cstring>
#include <type_traits>
#include <utility>

#include "core/program.h"
#include "cpu/common/parallel.h"

namespace realspike {

void Program::add_lif(const LifPacked& lif, Place x, Place packed) {
  Step step{Kind::kLif, {}, x, packed, {}, 0, false};
  step.params.lif = lif;
  steps_.push_back(std::move(step));
}

void Program::add_conv(const UnsharedConvParams& conv, Place spikes, Place out, bool products) {
  Step step{Kind::kConv, {}, spikes, out, {}, 0, products};
  step.params.conv = conv;
  steps_.push_back(std::move(step));
}

void Program::add_conv_lif(const UnsharedConvLif& params, Place spikes, Place packed,
                           std::vector<AddedPlaces> added, bool products) {
  steps_.push_back({Kind::kConvLif, params, spikes, packed, std::move(added), 0, products});
}

void Program::add_copy(Place from, Place to, int64_t bytes) {
  steps_.push_back({Kind::kCopy, {}, from, to, {}, bytes, false});
}

void Program::add_sum(Place from, Place to, int64_t count, bool subtract) {
  steps_.push_back({subtract ? Kind::kSubtract : Kind::kAdd, {}, from, to, {}, count, false});
}

void Program::run_cpu(const std::vector<uintptr_t>& blocks, int64_t batch, int num_threads) const {
  const auto at = [&](const Place& place) { return blocks[place.block] + place.bytes * batch; };
  const auto set = [&](auto** pointer, const Place& place) {
    if (place.block < 0) return;
    *pointer = reinterpret_cast<std::remove_reference_t<decltype(*pointer)>>(at(place));
  };
  with_team(num_threads, [&] {
    for (const Step& step : steps_) {
      UnsharedConvLif params = step.params;
      LifPacked& lif = params.lif;
      params.conv.N *= batch;
      lif.N *= batch;
      lif.x_stride_t *= batch;
      switch (step.kind) {
        case Kind::kLif:
          set(&lif.x, step.from);
          set(&lif.packed, step.to);
          lif_packed_cpu(lif, num_threads);
          break;
        case Kind::kConv:
          set(&params.conv.spikes, step.from);
          set(&params.conv.out, step.to);
          unshared_conv_cpu(params.conv, num_threads, step.products);
          break;
        case Kind::kConvLif:
          set(&params.conv.spikes, step.from);
          set(&lif.packed, step.to);
          for (size_t i = 0; i < step.added.size(); ++i) {
            set(&params.added[i].values, step.added[i].values);
            set(&params.added[i].spikes, step.added[i].spikes);
            set(&params.added[i].negative, step.added[i].negative);
          }
          unshared_conv_lif_cpu(params, num_threads, step.products);
          break;
        case Kind::kCopy:
          std::memcpy(reinterpret_cast<void*>(at(step.to)),
                      reinterpret_cast<const void*>(at(step.from)), step.count * batch);
          break;
        case Kind::kAdd:
        case Kind::kSubtract: {
          float* const to = reinterpret_cast<float*>(at(step.to));
          const float* const from = reinterpret_cast<const float*>(at(step.from));
          const int64_t count = step.count * batch;
          if (step.kind == Kind::kAdd) {
            for (int64_t i = 0; i < count; ++i) to[i] += from[i];
          } else {
            for (int64_t i = 0; i < count; ++i) to[i] -= from[i];
          }
          break;
        }
      }
    }
  });
}

}  // namespace realspike
