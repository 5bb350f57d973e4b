#pragma once

#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "core/unshared_conv.h"
#include "cpu/common/matrix_unit.h"
#include "cpu/unshared_conv/dispatch.h"
#include "cpu/unshared_conv/masked_bytes.h"
#include "cpu/unshared_conv/masked_kernel.h"
#include "cpu/unshared_conv/task.h"
#include "cpu/unshared_conv/tiles.h"

#if defined(REALSPIKE_MATRIX_UNIT)
#include <immintrin.h>

// int8 rows on the matrix unit of a CPU (AMX), where products are allowed. The masks of the
// masked kernel are one factor as they are: a byte of ones is -1, so that the unit adds up the
// negative of every sum. The sums are int32, the same integers as those of the other kernels.
//
// The unit has eight registers: 0 to 3 hold sums [samples, channels], 4 and 5 masks [samples,
// rows], 6 and 7 weights [rows / 4, channels, 4]. Its macros take literal numbers.

namespace realspike {
namespace {

struct alignas(64) RegisterShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// GCC's macros do not say what memory they read and write.
inline void settle_memory() { __asm__ volatile("" ::: "memory"); }

REALSPIKE_MATRIX_UNIT void shape_registers(const MatrixShape& shape) {
  RegisterShapes registers;
  for (int i = 0; i < 8; ++i) {
    const bool masks = i == 4 || i == 5, weights = i > 5;
    registers.bytes[i] = static_cast<uint16_t>(masks ? shape.rows : kRegisterBytes);
    registers.rows[i] = static_cast<uint8_t>(weights ? shape.rows / 4 : shape.samples);
  }
  settle_memory();
  _tile_loadconfig(&registers);
}

// Four rows of up to 16 channels, [4, channels] by `stride`, as the unit reads them: [16, 4].
// `rows` of the four exist, or more; the others are zeros.
REALSPIKE_MATRIX_UNIT inline void interleave(const uint8_t* row, int64_t stride, int64_t rows,
                                             int64_t channels, uint8_t* to) {
  const __m512i by_channel =
      _mm512_set_epi32(0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a,
                       0x39291909, 0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404,
                       0x33231303, 0x32221202, 0x31211101, 0x30201000);
  const __m512i zeros = _mm512_set1_epi8(-128);  // bytes are 128 too large
  __m512i four = zeros;
  if (rows > 3 && channels == kRegisterChannels) {
    const __m128i_u* lanes[4];
    for (int r = 0; r < 4; ++r) lanes[r] = reinterpret_cast<const __m128i_u*>(row + r * stride);
    four = _mm512_castsi128_si512(*lanes[0]);
    four = _mm512_inserti32x4(four, *lanes[1], 1);
    four = _mm512_inserti32x4(four, *lanes[2], 2);
    four = _mm512_inserti32x4(four, *lanes[3], 3);
  } else {
    alignas(64) uint8_t bytes[4 * kRegisterChannels];
    _mm512_store_si512(bytes, zeros);
    for (int64_t r = 0; r < least(rows, 4); ++r) {
      std::memcpy(bytes + r * kRegisterChannels, row + r * stride, channels);
    }
    four = _mm512_load_si512(bytes);
  }
  four = _mm512_maskz_permutexvar_epi8(~__mmask64{0}, by_channel, four);
  // With its highest bit flipped a byte is the weight.
  _mm512_store_si512(to, _mm512_xor_si512(four, zeros));
}

// The taps of one position inside the map, their rows as the unit reads them. It owns the
// registers.
class MatrixPosition {
 public:
  MatrixPosition(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Task& work,
                 const uint8_t* masks, void* memory)
      : shape(p, tiles, work.tile.samples), taps(p, tiles, work, masks), p_(p), tile_(work.tile) {
    memory_ = static_cast<uint8_t*>(memory);
    memory_ += -reinterpret_cast<uintptr_t>(memory_) % kRegisterBytes;
    shape_registers(shape);
    if (p.weight_stride_p != 0) return;
    const uint8_t* rows = taps.rows_of(0);
    for (int64_t n = 0; n < p.KH * p.KW; ++n) interleave_tap(rows, n);
  }

  REALSPIKE_MATRIX_UNIT ~MatrixPosition() { _tile_release(); }

  void go_to(int64_t position) {
    taps.go_to(position);
    const uint8_t* rows = taps.rows_of(position);
    for (int64_t k = 0; k < taps.count; ++k) {
      const int64_t n = taps.taps[k].number;
      if (p_.weight_stride_p != 0) interleave_tap(rows, n);
      weights[k] = memory_ + n * shape.tap_bytes;
    }
  }

  const MatrixShape shape;
  BytePosition taps;
  const uint8_t* weights[kMostMaskedTaps];  // [channels / 16, blocks, rows / 4, 16, 4] of each tap

 private:
  REALSPIKE_MATRIX_UNIT void interleave_tap(const uint8_t* rows, int64_t n) {
    // Copies: the bytes that are written could be any member.
    const int64_t Cin_g = p_.Cin_g, Cout_g = p_.Cout_g, channels = tile_.channels;
    const int64_t end = shape.blocks * shape.rows;
    const uint8_t* row = rows + n * Cin_g * Cout_g;
    uint8_t* to = memory_ + n * shape.tap_bytes;
    for (int64_t ci = 0; ci < end; ci += 4, row += 4 * Cout_g, to += 4 * kRegisterChannels) {
      for (int64_t c = 0; c < channels; c += kRegisterChannels) {
        __builtin_prefetch(row + 4 * c + kAhead);
        interleave(row + c, Cout_g, Cin_g - ci, least(channels - c, kRegisterChannels),
                   to + c * end);
      }
    }
  }

  const UnsharedConvParams& p_;
  const Tile& tile_;
  uint8_t* memory_;
};

// The negative sums of 16 or 32 channels from `channel` on, for one or two registers of samples
// from `sample` on: negative[0] and [1] those of the first 16 channels, [2] and [3] of the others.
template <bool kMoreSamples, bool kMoreChannels>
REALSPIKE_MATRIX_UNIT void multiply(const UnsharedConvParams& p, const MatrixPosition& position,
                                    int64_t sample, int64_t channel,
                                    int32_t (*negative)[16 * kRegisterChannels]) {
  const MatrixShape& shape = position.shape;
  const int64_t of_channels = shape.blocks * shape.rows * kRegisterChannels;
  settle_memory();
  _tile_zero(0);
  if constexpr (kMoreSamples) _tile_zero(1);
  if constexpr (kMoreChannels) _tile_zero(2);
  if constexpr (kMoreSamples && kMoreChannels) _tile_zero(3);
  for (int64_t k = 0; k < position.taps.count; ++k) {
    const uint8_t* fired = position.taps.taps[k].fired + sample * p.Cin_g;
    const uint8_t* weights = position.weights[k] + channel * shape.blocks * shape.rows;
    for (int64_t b = 0; b < shape.blocks; ++b) {
      _tile_loadd(4, fired, p.Cin_g);
      _tile_loadd(6, weights, kRegisterBytes);
      _tile_dpbssd(0, 4, 6);
      if constexpr (kMoreSamples) {
        _tile_loadd(5, fired + shape.samples * p.Cin_g, p.Cin_g);
        _tile_dpbssd(1, 5, 6);
      }
      if constexpr (kMoreChannels) {
        _tile_loadd(7, weights + of_channels, kRegisterBytes);
        _tile_dpbssd(2, 4, 7);
        if constexpr (kMoreSamples) _tile_dpbssd(3, 5, 7);
      }
      fired += shape.rows;
      weights += shape.rows * kRegisterChannels;
    }
  }
  _tile_stored(0, negative[0], kRegisterBytes);
  if constexpr (kMoreSamples) _tile_stored(1, negative[1], kRegisterBytes);
  if constexpr (kMoreChannels) _tile_stored(2, negative[2], kRegisterBytes);
  if constexpr (kMoreSamples && kMoreChannels) _tile_stored(3, negative[3], kRegisterBytes);
  settle_memory();
}

// sums [samples, channels] by stride_s.
inline void store_sums(const int32_t* negative, int64_t samples, int64_t channels, float* sums,
                       int64_t stride_s) {
  const __mmask16 some = static_cast<__mmask16>(0xffff >> (kRegisterChannels - channels));
  for (int64_t s = 0; s < samples; ++s) {
    const __m512i sum =
        _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_load_si512(negative + s * 16));
    _mm512_mask_storeu_ps(sums + s * stride_s, some, _mm512_maskz_cvtepi32_ps(some, sum));
  }
}

// sums [samples, channels] by stride_s.
void add_channels(const UnsharedConvParams& p, const MatrixPosition& position, const Tile& tile,
                  float* sums, int64_t stride_s) {
  alignas(64) int32_t negative[4][16 * kRegisterChannels];
  const int64_t per_register = position.shape.samples;
  for (int64_t s = 0; s < tile.samples; s += 2 * per_register) {
    const bool more_samples = tile.samples - s > per_register;
    for (int64_t c = 0; c < tile.channels; c += 2 * kRegisterChannels) {
      const bool more_channels = tile.channels - c > kRegisterChannels;
      const auto run = more_samples
                           ? (more_channels ? multiply<true, true> : multiply<true, false>)
                           : (more_channels ? multiply<false, true> : multiply<false, false>);
      run(p, position, s, c, negative);
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t first = s + i % 2 * per_register, channel = c + i / 2 * kRegisterChannels;
        if (first >= tile.samples || channel >= tile.channels) continue;
        store_sums(negative[i], least(tile.samples - first, per_register),
                   least(tile.channels - channel, kRegisterChannels),
                   sums + first * stride_s + channel, stride_s);
      }
    }
  }
}

void unshared_conv_matrix_task(const UnsharedConvParams& p, const UnsharedConvLif* neurons,
                               const UnsharedConvTiles& tiles, const void* masks, int64_t task,
                               const TaskMemory& memory) {
  const Task work(p, tiles, task);
  MatrixPosition at(p, tiles, work, static_cast<const uint8_t*>(masks), memory.weights);
  run_positions(p, neurons, tiles, work, at, memory.currents);
}

}  // namespace
}  // namespace realspike

#endif
