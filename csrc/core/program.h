#pragma once

#include <cstdint>
#include <vector>

#include "core/lif.h"
#include "core/unshared_conv.h"

namespace realspike {

// Where a tensor of a call lies: in one of the blocks of memory that the call is given, behind
// `bytes` for every element of the batch.
struct Place {
  int64_t block;  // -1: nowhere, or where the params say
  int64_t bytes;
};

// Ops that run one after the other, for any batch: params are those of a batch of one, without the
// pointers that a call brings. Nothing is written to a program while it runs, so that several
// threads may run it.
class Program {
 public:
  // LIF neurons that emit bits; lif.x_stride_t is 0 or lif.N.
  void add_lif(const LifPacked& lif, Place x, Place packed);
  // A convolution whose currents are written; products as in unshared_conv_cpu.
  void add_conv(const UnsharedConvParams& conv, Place spikes, Place out, bool products);
  // A convolution and its neurons; of every added current the values, the spikes and the negative
  // ones.
  struct AddedPlaces {
    Place values;
    Place spikes;
    Place negative;
  };
  void add_conv_lif(const UnsharedConvLif& params, Place spikes, Place packed,
                    std::vector<AddedPlaces> added, bool products);
  // Maps of spikes that are read as one batch lie side by side.
  void add_copy(Place from, Place to, int64_t bytes);
  // to[i] += from[i], or -=, for `count` currents of every element of the batch.
  void add_sum(Place from, Place to, int64_t count, bool subtract);

  // blocks: addresses. batch: the number of sequences.
  void run_cpu(const std::vector<uintptr_t>& blocks, int64_t batch, int num_threads) const;

 private:
  enum class Kind { kLif, kConv, kConvLif, kCopy, kAdd, kSubtract };
  struct Step {
    Kind kind;
    UnsharedConvLif params;
    Place from;
    Place to;
    std::vector<AddedPlaces> added;
    int64_t count;  // bytes, or currents
    bool products;
  };
  std::vector<Step> steps_;
};

}  // namespace realspike
