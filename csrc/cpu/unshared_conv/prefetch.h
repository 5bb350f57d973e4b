#pragma once

#include <cstdint>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/unshared_conv/lists.h"
#include "cpu/unshared_conv/passes.h"
#include "cpu/unshared_conv/tiles.h"

namespace realspike {
namespace {

constexpr int64_t kCacheLine = 64;

// Brings the rows that some sample of the tile will read into the L2 cache: those of the next pass,
// a few at a time between the additions of this one, so that memory is never idle.
class Prefetcher {
 public:
  template <class Weight>
  void plan(const UnsharedConvParams& p, const Tile& tile, const Pass<Weight>& pass,
            const uint32_t* fired) {
    row_bytes_ = tile.channels * static_cast<int64_t>(sizeof(Weight));
    for (int64_t i = 0; i < pass.count; ++i) {
      const Tap& tap = pass.taps[i];
      const ChannelBlock channels(p, tile.group, tap.block);
      const uint32_t* pixel = fired + tap.pixel * p.words;
      for (int64_t word = channels.first / 32; word * 32 < channels.end; ++word) {
        uint32_t any = pixel[word] & bits_within(word, channels.first, channels.end);
        for (; any != 0; any &= any - 1) {
          const int64_t row = word * 32 + __builtin_ctz(any) - channels.first;
          rows_[count_++] = reinterpret_cast<const char*>(pass.rows + (tap.row + row) * p.Cout_g);
        }
      }
    }
    // The pass that now begins is taken to call issue() as often as the last one did.
    per_call_ = calls_ == 0 ? count_ : ceil_div(count_, calls_);
    calls_ = 0;
  }

  void issue() {
    ++calls_;
    issue_until(least(done_ + per_call_, count_));
  }

  void finish() {
    issue_until(count_);
    count_ = done_ = 0;
  }

 private:
  void issue_until(int64_t end) {
    for (; done_ < end; ++done_) {
      for (int64_t b = 0; b < row_bytes_; b += kCacheLine) {
        __builtin_prefetch(rows_[done_] + b, 0, 2);
      }
    }
  }

  const char* rows_[kMostRowsPerPass];
  int64_t row_bytes_ = 0;
  int64_t count_ = 0;
  int64_t done_ = 0;
  int64_t calls_ = 0;
  int64_t per_call_ = 0;
};

}  // namespace
}  // namespace realspike
