#pragma once

#include <cstdint>
#include <cstring>

#include "core/unshared_conv.h"
#include "cpu/unshared_conv_tiles.h"

namespace realspike {
namespace {

// 16 floats: one register with AVX-512, two with AVX2, four with SSE or NEON.
typedef float Vec __attribute__((vector_size(64), aligned(4)));
constexpr int64_t kVecFloats = 16;

#if defined(__AVX512F__)
constexpr int64_t kWidestChannels = 8 * kVecFloats;
#elif defined(__AVX2__)
constexpr int64_t kWidestChannels = 4 * kVecFloats;
#else
constexpr int64_t kWidestChannels = 2 * kVecFloats;
#endif

constexpr int64_t kCacheLine = 64;

// Sums of neighbouring output channels, held in registers while rows are added.
template <int kVecs>
class Sums {
 public:
  explicit Sums(int64_t) {}
  void load(const float* from) {
    for (int i = 0; i < kVecs; ++i) std::memcpy(&sums_[i], from + i * kVecFloats, sizeof(Vec));
  }
  void add(const float* row) {
    const Vec* vecs = reinterpret_cast<const Vec*>(row);
    for (int i = 0; i < kVecs; ++i) sums_[i] += vecs[i];
  }
  void store(float* to) const {
    for (int i = 0; i < kVecs; ++i) std::memcpy(to + i * kVecFloats, &sums_[i], sizeof(Vec));
  }

 private:
  Vec sums_[kVecs];
};

// Fewer channels than a Vec.
template <>
class Sums<0> {
 public:
  explicit Sums(int64_t channels) : channels_(channels) {}
  void load(const float* from) { std::memcpy(sums_, from, channels_ * sizeof(float)); }
  void add(const float* row) {
    for (int64_t i = 0; i < channels_; ++i) sums_[i] += row[i];
  }
  void store(float* to) const { std::memcpy(to, sums_, channels_ * sizeof(float)); }

 private:
  float sums_[kVecFloats];
  int64_t channels_;
};

// One (tap, block of channels) of one output position: which pixel it reads and where its rows are.
struct Tap {
  int64_t ih;
  int64_t iw;
  int64_t block;
  const float* rows;  // [channels of the block, Cout_g], from the tile's first output channel
};

// The taps of position (oh, ow) that lie on the map, in ascending (kh, kw, block).
class Taps {
 public:
  Taps(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const float* weight, int64_t oh,
       int64_t ow)
      : p_(p), tiles_(tiles), weight_(weight), oh_(oh), ow_(ow) {}

  bool next(Tap* tap) {
    const int64_t blocks = tiles_.lists.blocks;
    while (index_ < p_.KH * p_.KW * blocks) {
      const int64_t block = index_ % blocks;
      const int64_t k = index_ / blocks;
      const int64_t ih = oh_ * p_.stride_h - p_.padding_h + k / p_.KW * p_.dilation_h;
      const int64_t iw = ow_ * p_.stride_w - p_.padding_w + k % p_.KW * p_.dilation_w;
      ++index_;
      if (ih < 0 || ih >= p_.H || iw < 0 || iw >= p_.W) continue;
      *tap = {ih, iw, block, weight_ + (k * p_.Cin_g + block * kChannelBlock) * p_.Cout_g};
      return true;
    }
    return false;
  }

 private:
  const UnsharedConvParams& p_;
  const UnsharedConvTiles& tiles_;
  const float* weight_;
  int64_t oh_;
  int64_t ow_;
  int64_t index_ = 0;
};

constexpr int64_t kMostTapsPerPass = 64;

// One pass: up to blocks_per_pass taps.
struct Pass {
  Tap taps[kMostTapsPerPass];
  int64_t count;

  void fill(const UnsharedConvTiles& tiles, Taps* taps_left) {
    const int64_t most =
        tiles.blocks_per_pass < kMostTapsPerPass ? tiles.blocks_per_pass : kMostTapsPerPass;
    count = 0;
    while (count < most && taps_left->next(&taps[count])) ++count;
  }
};

struct Tile {
  int64_t group;
  int64_t first_sample;
  int64_t samples;
  int64_t first_channel;  // within the group
  int64_t channels;
};

// Brings the rows that some sample of the tile will read into the L2 cache, one pass ahead.
void prefetch(const UnsharedConvParams& p, const Tile& tile, const Pass& pass) {
  for (int64_t i = 0; i < pass.count; ++i) {
    const Tap& tap = pass.taps[i];
    const int64_t first = tile.group * p.Cin_g + tap.block * kChannelBlock;
    const int64_t left = p.Cin_g - tap.block * kChannelBlock;
    const int64_t end = first + (left < kChannelBlock ? left : kChannelBlock);
    for (int64_t word = first / 32; word * 32 < end; ++word) {
      uint32_t any = 0;
      for (int64_t s = 0; s < tile.samples; ++s) {
        const int64_t n = tile.first_sample + s;
        any |= p.spikes[((n * p.H + tap.ih) * p.W + tap.iw) * p.words + word];
      }
      if (word * 32 < first) any &= ~0u << (first - word * 32);
      if (word * 32 + 32 > end) any &= ~0u >> (word * 32 + 32 - end);
      for (; any != 0; any &= any - 1) {
        const int64_t row = word * 32 + __builtin_ctz(any) - first;
        const char* line = reinterpret_cast<const char*>(tap.rows + row * p.Cout_g);
        for (int64_t b = 0; b < tile.channels * int64_t{sizeof(float)}; b += kCacheLine) {
          __builtin_prefetch(line + b, 0, 2);
        }
      }
    }
  }
}

// Adds the rows of one pass to the sums of every sample; sums: [samples, stride].
template <int kVecs>
void add_rows(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Tile& tile,
              const Pass& pass, int64_t channel, int64_t channels, float* sums, int64_t stride) {
  const SpikeLists& lists = tiles.lists;
  for (int64_t s = 0; s < tile.samples; ++s) {
    const int64_t n = tile.first_sample + s;
    Sums<kVecs> sum(channels);
    sum.load(sums + s * stride + channel);
    for (int64_t i = 0; i < pass.count; ++i) {
      const Tap& tap = pass.taps[i];
      const int64_t row = n * p.H + tap.ih;
      const uint32_t* start = lists.starts + row * (lists.per_row + 1) +
                              (tap.iw * p.G + tile.group) * lists.blocks + tap.block;
      const uint8_t* spikes = lists.spikes + row * lists.row_capacity;
      for (uint32_t j = start[0]; j < start[1]; ++j) {
        sum.add(tap.rows + channel + spikes[j] * p.Cout_g);
      }
    }
    sum.store(sums + s * stride + channel);
  }
}

void add_pass(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, const Tile& tile,
              const Pass& pass, float* sums) {
  const int64_t stride = tile.channels;
  int64_t channel = 0;
  while (channel < tile.channels) {
    const int64_t left = tile.channels - channel;
    const auto add = [&](auto kernel, int64_t channels) {
      kernel(p, tiles, tile, pass, channel, channels, sums, stride);
      channel += channels;
    };
    if (kWidestChannels >= 8 * kVecFloats && left >= 8 * kVecFloats) {
      add(add_rows<8>, 8 * kVecFloats);
    } else if (kWidestChannels >= 4 * kVecFloats && left >= 4 * kVecFloats) {
      add(add_rows<4>, 4 * kVecFloats);
    } else if (left >= 2 * kVecFloats) {
      add(add_rows<2>, 2 * kVecFloats);
    } else if (left >= kVecFloats) {
      add(add_rows<1>, kVecFloats);
    } else {
      add(add_rows<0>, left);
    }
  }
}

void write_out(const UnsharedConvParams& p, const Tile& tile, int64_t position, const float* sums) {
  const int64_t first = tile.group * p.Cout_g + tile.first_channel;
  for (int64_t s = 0; s < tile.samples; ++s) {
    float* out = p.out + (tile.first_sample + s) * p.out_stride_n + first * p.out_stride_c +
                 position * p.out_stride_p;
    const float* sum = sums + s * tile.channels;
    if (p.bias == nullptr) {
      for (int64_t c = 0; c < tile.channels; ++c) out[c * p.out_stride_c] = sum[c];
    } else {
      const float* bias = p.bias + first * p.bias_stride_c + position * p.bias_stride_p;
      for (int64_t c = 0; c < tile.channels; ++c) {
        out[c * p.out_stride_c] = sum[c] + bias[c * p.bias_stride_c];
      }
    }
  }
}

void unshared_conv_task(const UnsharedConvParams& p, const UnsharedConvTiles& tiles, int64_t task) {
  Tile tile{};
  const int64_t sample_tile = task % tiles.sample_tiles;
  task /= tiles.sample_tiles;
  const int64_t channel_tile = task % tiles.channel_tiles;
  task /= tiles.channel_tiles;
  tile.group = task % p.G;
  const int64_t first_position = task / p.G * tiles.positions;

  tile.first_sample = sample_tile * tiles.samples;
  tile.samples = p.N - tile.first_sample < tiles.samples ? p.N - tile.first_sample : tiles.samples;
  tile.first_channel = channel_tile * tiles.channels;
  tile.channels = p.Cout_g - tile.first_channel < tiles.channels ? p.Cout_g - tile.first_channel
                                                                 : tiles.channels;
  const int64_t group_weights = p.KH * p.KW * p.Cin_g * p.Cout_g;
  const float* weight =
      static_cast<const float*>(p.weight) + tile.group * group_weights + tile.first_channel;

  float sums[kMostSamples * kWidestChannels];  // [samples, channels]
  for (int64_t i = 0; i < tiles.positions; ++i) {
    const int64_t position = first_position + i;
    if (position >= p.OH * p.OW) return;
    Taps taps(p, tiles, weight + position * p.weight_stride_p, position / p.OW, position % p.OW);
    std::memset(sums, 0, tile.samples * tile.channels * sizeof(float));
    Pass passes[2];
    int now = 0;
    passes[now].fill(tiles, &taps);
    while (passes[now].count > 0) {
      Pass& ahead = passes[1 - now];
      ahead.fill(tiles, &taps);
      if (tiles.prefetch) prefetch(p, tile, ahead);
      add_pass(p, tiles, tile, passes[now], sums);
      now = 1 - now;
    }
    write_out(p, tile, position, sums);
  }
}

// Row `row` = n * H + h of the map: every set bit becomes one byte of its list.
void decode_spikes_row(const UnsharedConvParams& p, const SpikeLists& lists, int64_t row,
                       uint32_t* starts, uint8_t* spikes) {
  uint32_t* start = starts + row * (lists.per_row + 1);
  uint8_t* list = spikes + row * lists.row_capacity;
  uint32_t count = 0;
  const uint32_t* pixel = p.spikes + row * p.W * p.words;
  for (int64_t iw = 0; iw < p.W; ++iw, pixel += p.words) {
    for (int64_t g = 0; g < p.G; ++g) {
      for (int64_t block = 0; block < lists.blocks; ++block) {
        *start++ = count;
        const int64_t left = p.Cin_g - block * kChannelBlock;
        const int64_t first = g * p.Cin_g + block * kChannelBlock;
        const int64_t end = first + (left < kChannelBlock ? left : kChannelBlock);
        for (int64_t word = first / 32; word * 32 < end; ++word) {
          uint32_t bits = pixel[word];
          if (word * 32 < first) bits &= ~0u << (first - word * 32);
          if (word * 32 + 32 > end) bits &= ~0u >> (word * 32 + 32 - end);
          for (; bits != 0; bits &= bits - 1) {
            list[count++] = static_cast<uint8_t>(word * 32 + __builtin_ctz(bits) - first);
          }
        }
      }
    }
  }
  *start = count;
}

}  // namespace
}  // namespace realspike
