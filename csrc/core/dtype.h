#pragma once

#include <cstdint>

namespace realspike {

// Element types that cross the Python boundary; the numbers are those of realspike_ops/_native.py.
enum class DType : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kBFloat16 = 2,
  kInt8 = 3,
};

namespace {

constexpr int bytes_of(DType dtype) {
  return dtype == DType::kFloat32 ? 4 : dtype == DType::kInt8 ? 1 : 2;
}

}  // namespace
}  // namespace realspike
