#pragma once

#include <cstdint>

#include "core/unshared_conv.h"

namespace realspike {
namespace {

constexpr int64_t kOutside = -1;

// Which pixels the taps of one output position read.
class Window {
 public:
  Window(const UnsharedConvParams& p, int64_t position)
      : h_0_(position / p.OW * p.stride_h - p.padding_h),
        w_0_(position % p.OW * p.stride_w - p.padding_w) {}

  // The number h * W + w of the pixel of tap (kh, kw), or kOutside.
  int64_t pixel(const UnsharedConvParams& p, int64_t kh, int64_t kw) const {
    const int64_t h = h_0_ + kh * p.dilation_h, w = w_0_ + kw * p.dilation_w;
    return h < 0 || h >= p.H || w < 0 || w >= p.W ? kOutside : h * p.W + w;
  }

 private:
  int64_t h_0_;  // of tap (0, 0)
  int64_t w_0_;
};

// Calls f(kh * KW + kw, pixel) for the taps of a position that lie inside the map, in ascending
// (kh, kw).
template <class F>
inline void for_each_tap(const UnsharedConvParams& p, int64_t position, F f) {
  const Window window(p, position);
  for (int64_t kh = 0; kh < p.KH; ++kh) {
    for (int64_t kw = 0; kw < p.KW; ++kw) {
      const int64_t pixel = window.pixel(p, kh, kw);
      if (pixel != kOutside) f(kh * p.KW + kw, pixel);
    }
  }
}

}  // namespace
}  // namespace realspike
